"""Which images an epoch draws, and in which order: each once, or those of rare classes more often.

An order depends on (seed, epoch) alone. A pass over the data always has the same number of images, so that steps can be
counted before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TypeAlias

import numpy as np

from directdet.data.draws.classes import repeat_factors, shown_classes
from directdet.data.records import Record

Draw: TypeAlias = Literal["uniform", "repeat_factor", "class_balanced"]
THRESHOLD = 0.001  # of repeat factors, LVIS's
_ONE = 2**24  # repeat factors are added up as whole multiples of 1 / _ONE: exactly, in any order


class Order(Protocol):
    """The order of the images, epoch by epoch."""

    @property
    def length(self) -> int:
        """Images of an epoch, the same in each."""
        ...

    def of(self, epoch: int) -> np.ndarray:
        """The image at each position of an epoch, int64 [length]."""
        ...


@dataclass(frozen=True, eq=False)
class Uniform:
    """Each image once an epoch."""

    seed: int
    images: int

    @property
    def length(self) -> int:
        """Images of an epoch."""
        return self.images

    def of(self, epoch: int) -> np.ndarray:
        """See :class:`Order`."""
        return epoch_order(self.seed, epoch, self.images)


@dataclass(frozen=True, eq=False)
class Repeated:
    """Image i factors[i] times an epoch on average: its whole part always, and one more as often as the rest says.

    Which images get one more is drawn anew each epoch, by systematic sampling: the sum of the factors, rounded down, is
    the number of images of every epoch.
    """

    seed: int
    factors: np.ndarray  # float64 [I], at least 1

    @cached_property
    def _parts(self) -> np.ndarray:
        return np.round(self.factors * _ONE).astype(np.int64)

    @property
    def length(self) -> int:
        """Images of an epoch."""
        return int(self._parts.sum()) // _ONE

    def of(self, epoch: int) -> np.ndarray:
        """See :class:`Order`."""
        rng = np.random.default_rng([self.seed, epoch])
        images = rng.permutation(len(self.factors))
        ends = (np.cumsum(self._parts[images]) + int(rng.integers(_ONE))) // _ONE
        drawn = np.repeat(images, np.diff(ends, prepend=0))
        return rng.permutation(drawn)[: self.length]  # there may be one too many


@dataclass(frozen=True, eq=False)
class Balanced:
    """Each class equally often: a class in turn, and the next image that shows it (arXiv 1512.05830, section 4).

    An epoch has as many draws as there are images. The images of a class come in random order, all of them before one
    comes again. Images without objects are never drawn.
    """

    seed: int
    length: int
    members: tuple[np.ndarray, ...]  # of each class that has any, its images, int64

    def of(self, epoch: int) -> np.ndarray:
        """See :class:`Order`."""
        rng = np.random.default_rng([self.seed, epoch])
        classes = _rounds(rng, np.arange(len(self.members)), self.length)
        order = np.empty(self.length, np.int64)
        for label, images in enumerate(self.members):
            places = np.flatnonzero(classes == label)
            order[places] = _rounds(rng, images, len(places))
        return order


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """Each image once, in the order of an epoch, int64 [images]."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def make_order(draw: Draw, seed: int, records: Sequence[Record], threshold: float = THRESHOLD) -> Order:
    """The order of these images; ``threshold`` is that of repeat factors.

    Raises:
        ValueError: class_balanced, and no image has an object.
    """
    if draw == "uniform":
        return Uniform(seed, len(records))
    images, labels = shown_classes(records)
    if draw == "repeat_factor":
        return Repeated(seed, repeat_factors(images, labels, len(records), threshold))
    if not len(labels):
        raise ValueError("class_balanced: no image has an object; draw uniformly")
    return Balanced(seed, len(records), tuple(images[labels == label] for label in np.unique(labels)))


def drawing_in_words(order: Order, images: int) -> str:
    """What is drawn other than each image once, with numbers; "" if nothing is."""
    if isinstance(order, Repeated):
        more, most = int((order.factors > 1).sum()), float(order.factors.max())
        if not more:
            return "repeat factors: no class is rare enough, each picture is drawn once"
        return (
            f"repeat factors: rare classes drawn up to {most:.3g} times as often ({more} of {images} pictures more "
            f"than once); a pass draws {order.length} pictures"
        )
    if isinstance(order, Balanced):
        counts = [len(members) for members in order.members]
        share = order.length / len(counts)  # the draws of each class
        never = images - len(np.unique(np.concatenate(order.members)))
        text = (
            f"class-balanced: each of {len(counts)} classes drawn equally often, the pictures of the rarest "
            f"{share / min(counts):.3g} times a pass, of the most frequent {share / max(counts):.3g} times; a pass "
            f"draws {order.length} pictures"
        )
        return text + (f"; {never} without objects are never drawn" if never else "")
    return ""


def _rounds(rng: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the values: all in random order, then all again."""
    rounds = [rng.permutation(values) for _ in range(-(-count // len(values)))]
    return np.concatenate([values[:0], *rounds])[:count]
