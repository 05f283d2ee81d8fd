"""SSD's prior boxes: several shapes at every cell of every map."""

import math

import torch
from torch import Tensor

# The smallest square of the first map, and of the second, in per cent of the input, for six maps (SSD300) and for seven
# (SSD512). Between the second's and 90 per cent they grow evenly (Caffe scripts of SSD and ScratchDet).
FIRST_SIDES = {("voc", 6): (10, 20), ("coco", 6): (7, 15), ("voc", 7): (7, 15), ("coco", 7): (4, 10)}
LARGEST = 90
NOMINAL_STEPS = (8, 16, 32, 64)  # pixels between cells; on coarser maps, input size / map size


def relative_sides(name: str, maps: int) -> list[int]:
    """The smallest square of each map, and the largest of the last, in per cent of the input.

    Raises:
        KeyError: such sides are not published for so many maps.
    """
    first, second = FIRST_SIDES[name, maps]
    step = (LARGEST - second) // (maps - 2)
    return [first, *(second + step * number for number in range(maps))]


def ratios_of(maps: int) -> list[tuple[int, ...]]:
    """Width / height of the shapes of each map; each also as height / width."""
    return [(2,), *[(2, 3)] * (maps - 3), (2,), (2,)]


def priors_per_cell(maps: int) -> list[int]:
    """Of each map: 4, 6, 6, 6, 4, 4 for six."""
    return [2 + 2 * len(ratios) for ratios in ratios_of(maps)]


def map_steps(size: int, map_sizes: list[int]) -> list[float]:
    """Pixels between the cells of each map: 8, 16, 32, 64, 100, 300 at 300 pixels.

    If the last map is 3x3, its step is 100: the 300 of the authors' configuration would put most of its cells outside
    the image.
    """
    return [*NOMINAL_STEPS, *(size / side for side in map_sizes[len(NOMINAL_STEPS) :])]


def prior_boxes(name: str, size: int, map_sizes: list[int], scaled_to: int | None = None) -> Tensor:
    """Priors [A, 4], xyxy in pixels of a square input of `size`, ordered by map, row, column, shape; not clipped.

    name: "voc" or "coco". Shapes are in Caffe's order: the small square of side s, the square of side sqrt(s * next s),
    then for each ratio the wide box followed by the tall one. Sides scale with the input size, or with `scaled_to`.
    """
    sides, boxes = [side * (scaled_to or size) / 100 for side in relative_sides(name, len(map_sizes))], []
    ratios_of_maps = ratios_of(len(map_sizes))
    for level, (cells, step) in enumerate(zip(map_sizes, map_steps(size, map_sizes), strict=True)):
        small, large = sides[level : level + 2]
        shapes = [(small, small), (math.sqrt(small * large),) * 2]
        for ratio in ratios_of_maps[level]:
            width, height = small * math.sqrt(ratio), small / math.sqrt(ratio)
            shapes += [(width, height), (height, width)]
        half = torch.tensor(shapes, dtype=torch.float64) / 2
        centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * step
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        corners = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        boxes.append((corners + torch.cat([-half, half], 1)).reshape(-1, 4))
    return torch.cat(boxes).float()
