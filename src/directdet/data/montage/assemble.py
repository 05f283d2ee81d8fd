"""A montage: four samples of a detection set in one picture, each in a region of its own shape.

Zhou et al., ECCV 2020 (arXiv 2004.12178), section 3.2; see crops.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from directdet.data.augment.sample import Sample
from directdet.data.image import resize
from directdet.data.montage.crops import Crops
from directdet.data.pixels.format import RGB, PixelFormat, planewise

CELL = 32  # pixels: the borders of regions lie between the cells of a map of stride 32, and of finer ones


def regions(side: int) -> np.ndarray:
    """The four regions of a montage of `side` x `side` pixels: int64 [4, 4] xyxy.

    The smaller square sample is at the top left, the wide one at the top right, the tall one at the bottom left and the
    larger square one at the bottom right (Figure 4). How large they are the paper shows in a figure alone; ours: the
    smaller square has a little less than half of the side, 96 of 224 pixels.
    """
    cut = max(1, (side // CELL - 1) // 2) * CELL
    return np.array([(0, 0, cut, cut), (cut, 0, side, cut), (0, cut, cut, side), (cut, cut, side, side)])


@dataclass(frozen=True)
class Montage:
    """Assembles montages of `side` x `side` pixels.

    Each sample is resized by a factor drawn from `scale` (section 4.1), mirrored with probability `flip`, then along
    each side cropped at random where it is larger than its region, and centred and padded where it is smaller. It is
    never stretched (Table 1).

    Attributes:
        crops: the samples.
        side: in pixels.
        scale: the range of the factor, (low, high).
        flip: probability of mirroring left and right.
        pixels: the format of the pictures.
    """

    crops: Crops
    side: int
    scale: tuple[float, float]
    flip: float
    pixels: PixelFormat = RGB

    def __call__(self, read: Callable[[int], Sample], rng: np.random.Generator) -> Sample:
        """A montage of samples drawn with `rng`; `read(index)` gives the picture of a record, without padding.

        Returns:
            A sample with the four regions as its boxes, in their order, and the labels and weights of what is in them.
        """
        chosen = self._draw(rng)
        image = np.zeros((self.side, self.side, self.pixels.channels), self.pixels.dtype)  # section 4.1: zero padding
        boxes = regions(self.side)
        for number, (x1, y1, x2, y2) in zip(chosen, boxes, strict=True):
            _put(self._sample(read, int(number), rng), image[y1:y2, x1:x2], rng)
        crops, size = self.crops, (self.side, self.side)
        return Sample(image, boxes.astype(np.float32), crops.labels[chosen], None, size, crops.weights[chosen])

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Two square samples, a wide and a tall one, in the order of the regions; of a group without samples, any."""
        crops, every = self.crops, np.arange(len(self.crops))
        square, tall, wide = (group if len(group) else every for group in (crops.square, crops.tall, crops.wide))
        pair = square[rng.integers(len(square), size=2)]
        sides = crops.boxes[pair, 2:] - crops.boxes[pair, :2]
        small, large = pair[np.argsort(sides.prod(axis=1), kind="stable")]
        return np.array([small, wide[rng.integers(len(wide))], tall[rng.integers(len(tall))], large])

    def _sample(self, read: Callable[[int], Sample], number: int, rng: np.random.Generator) -> np.ndarray:
        """The pixels of a sample, resized and mirrored."""
        x1, y1, x2, y2 = self.crops.boxes[number]
        cut = np.ascontiguousarray(read(int(self.crops.images[number])).image[y1:y2, x1:x2])
        factor = rng.uniform(*self.scale)
        cut = resize(cut, *(max(1, round(length * factor)) for length in cut.shape[:2]))
        return planewise(cut, lambda one: one[:, ::-1]) if rng.random() < self.flip else cut


def _put(sample: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> None:
    """Put the pixels [h, w, C] of a sample into those of a region [H, W, C], which are padding."""
    spans = []
    for length, room in zip(sample.shape[:2], region.shape[:2], strict=True):
        taken = min(length, room)
        start = int(rng.integers(length - taken + 1))
        place = (room - taken) // 2
        spans.append((slice(start, start + taken), slice(place, place + taken)))
    (rows, to_rows), (columns, to_columns) = spans
    region[to_rows, to_columns] = sample[rows, columns]
