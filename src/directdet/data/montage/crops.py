"""The samples of Montage pre-training: objects and pieces of background, cut out of a detection set.

Zhou et al., "Cheaper Pre-training Lunch: An Efficient Paradigm for Object Detection", ECCV 2020 (arXiv 2004.12178),
section 3.1; "the paper" here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from directdet.data.records import Record

LARGEST = 2.0  # section 3.1: width and height of an object's sample are up to twice those of its box
PER_NEGATIVE = 10  # section 3.1: positives to negatives are 10 : 1
TRIES = 20  # ours: places tried for each negative that is wanted; a crowded set gets fewer of them
# Section 3.2: "square" samples have a width of 0.5 to 1.5 times the height, "tall" ones less, "wide" ones more.
TALL, WIDE = 0.5, 1.5


@dataclass(frozen=True, eq=False)
class Crops:
    """N samples; one of the background has the label `background`.

    Attributes:
        images: int64 [N], which record each is cut out of.
        boxes: int64 [N, 4], xyxy in whole pixels of the image, each at least a pixel wide and high.
        labels: int64 [N], 0 to C - 1, or C for the background.
        weights: float32 [N], what the losses of each are multiplied by, see Record.
        background: C.
        square, tall, wide: int64, the samples of each group of section 3.2.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    background: int
    square: np.ndarray
    tall: np.ndarray
    wide: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def in_words(self) -> str:
        """How many there are, and of which shapes."""
        pieces = int((self.labels == self.background).sum())
        shapes = f"{len(self.square)} square, {len(self.tall)} tall, {len(self.wide)} wide"
        return f"montages of {len(self) - pieces} objects and {pieces} pieces of background: {shapes}"


def cut_crops(records: Sequence[Record], classes: int, seed: int, skip_difficult: bool = False) -> Crops:
    """The samples of a set, which depend on the set and `seed` alone. No picture is read.

    A positive is the box of an object that is learnt, each side moved outward at random and cut off at the border of
    the image. A negative has the size of a random positive and touches neither a positive of its image nor any other
    annotated box (section 3.1: the IoU of both is 0; the size is ours).

    Args:
        classes: C, the number of classes.
        skip_difficult: leave out objects marked difficult.
    """
    rng = np.random.default_rng([seed])
    images, boxes, labels, weights = [], [], [], []
    taken: list[np.ndarray] = []  # of each image, what no negative may touch
    for index, record in enumerate(records):
        chosen = record.learnt & ~(record.difficult & skip_difficult)
        grown = _grown(record.boxes[chosen], record.width, record.height, rng)
        taken.append(np.concatenate([grown, record.boxes[~chosen]]))
        images.append(np.full(len(grown), index))
        boxes.append(grown)
        labels.append(record.labels[chosen])
        weights.append(record.weights[chosen])
    positives = np.concatenate([np.zeros((0, 4), np.int64), *boxes])
    where, background = _negatives(records, positives, taken, rng)
    boxes_all = np.concatenate([positives, background])
    ratios = (boxes_all[:, 2] - boxes_all[:, 0]) / (boxes_all[:, 3] - boxes_all[:, 1])
    return Crops(
        images=np.concatenate([np.zeros(0, np.int64), *images, where]).astype(np.int64),
        boxes=boxes_all,
        labels=np.concatenate([np.zeros(0, np.int64), *labels, np.full(len(where), classes)]).astype(np.int64),
        weights=np.concatenate([np.zeros(0, np.float32), *weights, np.ones(len(where))]).astype(np.float32),
        background=classes,
        square=np.flatnonzero((ratios >= TALL) & (ratios <= WIDE)),
        tall=np.flatnonzero(ratios < TALL),
        wide=np.flatnonzero(ratios > WIDE),
    )


def _grown(boxes: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes float32 [G, 4], enlarged at random within an image and rounded outward: int64 [G, 4]."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    outward = rng.random(boxes.shape) * sides * (LARGEST - 1) / 2 * (-1, -1, 1, 1)
    moved = boxes.astype(np.float64) + outward
    corner = np.clip(np.floor(moved[:, :2]), 0, (width - 1, height - 1))
    other = np.clip(np.ceil(moved[:, 2:]), corner + 1, (width, height))
    return np.concatenate([corner, other], axis=1).astype(np.int64)


def _negatives(
    records: Sequence[Record], positives: np.ndarray, taken: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Images int64 [M] and boxes int64 [M, 4] of pieces of background, a tenth as many as `positives` or fewer."""
    wanted = round(len(positives) / PER_NEGATIVE)
    images, boxes = [], []
    for _ in range(wanted * TRIES):
        if len(boxes) == wanted:
            break
        index = int(rng.integers(len(records)))
        left, top, right, bottom = positives[int(rng.integers(len(positives)))]
        record = records[index]
        width, height = min(right - left, record.width), min(bottom - top, record.height)
        x, y = int(rng.integers(record.width - width + 1)), int(rng.integers(record.height - height + 1))
        others = taken[index]
        apart = (others[:, 0] >= x + width) | (others[:, 2] <= x) | (others[:, 1] >= y + height) | (others[:, 3] <= y)
        if apart.all():
            images.append(index)
            boxes.append((x, y, x + width, y + height))
    return np.array(images, np.int64), np.array(boxes, np.int64).reshape(-1, 4)
