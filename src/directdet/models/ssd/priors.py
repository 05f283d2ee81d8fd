"""SSD's prior boxes: a few shapes at every cell of every map."""

import math

import torch
from torch import Tensor

REFERENCE = 300  # pixels of the input that the sides below are for
# The smallest square of each of the six maps, and the largest of the last (SSD's Caffe scripts, ScratchDet's too).
SIDES = {"voc": (30, 60, 111, 162, 213, 264, 315), "coco": (21, 45, 99, 153, 207, 261, 315)}
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))  # width / height; each is turned round as well
NOMINAL_STEPS = (8, 16, 32, 64)  # pixels between cells; those of the two coarsest maps divide the input evenly

PRIORS_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in RATIOS)  # 4, 6, 6, 6, 4, 4


def map_steps(size: int, map_sizes: list[int]) -> list[float]:
    """Pixels between the cells of each of the six maps: 8, 16, 32, 64, 100, 300 at 300 pixels.

    A last map of 3x3 has 100 too: the 300 of the authors' configuration puts most of its cells outside the image.
    """
    return [*NOMINAL_STEPS, *(size / side for side in map_sizes[len(NOMINAL_STEPS) :])]


def prior_boxes(name: str, size: int, map_sizes: list[int]) -> Tensor:
    """Priors [A, 4], xyxy in pixels of a square input of `size`, ordered by map, row, column, shape; not clipped.

    name: a key of SIDES. Shapes in Caffe's order: the small square s, the square of side sqrt(s * next s), then each
    ratio's upright counterpart after its lying box. Sides grow with the input.
    """
    sides, boxes = [side * size / REFERENCE for side in SIDES[name]], []
    for level, (cells, step) in enumerate(zip(map_sizes, map_steps(size, map_sizes), strict=True)):
        small, large = sides[level : level + 2]
        shapes = [(small, small), (math.sqrt(small * large),) * 2]
        for ratio in RATIOS[level]:
            width, height = small * math.sqrt(ratio), small / math.sqrt(ratio)
            shapes += [(width, height), (height, width)]
        half = torch.tensor(shapes, dtype=torch.float64) / 2
        centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * step
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        corners = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        boxes.append((corners + torch.cat([-half, half], 1)).reshape(-1, 4))
    return torch.cat(boxes).float()
