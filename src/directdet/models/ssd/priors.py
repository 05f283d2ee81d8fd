"""SSD's prior boxes: several shapes at every cell of every map."""

import math

import torch
from torch import Tensor

REFERENCE = 300  # input size in pixels to which the sides below refer
# The smallest square of each of the six maps, and the largest of the last (Caffe scripts of SSD and ScratchDet).
SIDES = {"voc": (30, 60, 111, 162, 213, 264, 315), "coco": (21, 45, 99, 153, 207, 261, 315)}
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))  # width / height; each also as height / width
NOMINAL_STEPS = (8, 16, 32, 64)  # pixels between cells; on the two coarsest maps, input size / map size

PRIORS_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in RATIOS)  # 4, 6, 6, 6, 4, 4


def map_steps(size: int, map_sizes: list[int]) -> list[float]:
    """Pixels between the cells of each of the six maps: 8, 16, 32, 64, 100, 300 at 300 pixels.

    If the last map is 3x3, its step is 100: the 300 of the authors' configuration would put most of its cells outside
    the image.
    """
    return [*NOMINAL_STEPS, *(size / side for side in map_sizes[len(NOMINAL_STEPS) :])]


def prior_boxes(name: str, size: int, map_sizes: list[int]) -> Tensor:
    """Priors [A, 4], xyxy in pixels of a square input of `size`, ordered by map, row, column, shape; not clipped.

    name: a key of SIDES. Shapes are in Caffe's order: the small square of side s, the square of side sqrt(s * next s),
    then for each ratio the wide box followed by the tall one. Sides scale with the input size.
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
