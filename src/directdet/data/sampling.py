"""Which images make up which batch of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from directdet.common.errors import UserError
from directdet.data.draws.orders import THRESHOLD, Draw, Order, make_order
from directdet.data.flat.arrays import learnt_counts
from directdet.data.records import Dataset, Record, take


@dataclass(frozen=True)
class Sampling:
    """How the images of an epoch are divided into batches.

    Attributes:
        batch_size: images per batch of this process.
        seed: together with the epoch it decides the order of the images and, with the position, their augmentation.
        group_aspect: a batch holds either landscape or portrait images, which saves padding; the images of both kinds
            that are left over at the end of an epoch share batches.
        skip_empty: leave out images without objects; crowd regions and objects of weight 0 do not count.
        drop_last: leave out the last images if they do not fill a batch.
        draw: each image once an epoch, or those of rare classes more often; see draws/orders.py.
        repeat_threshold: with draw="repeat_factor", the share of the images below which a class is rare.
        rank, world_size: this process takes its share of each batch of batch_size * world_size images.

    Raises:
        ValueError: a value is out of range, or there are several processes without ``drop_last``.
    """

    batch_size: int
    seed: int = 0
    group_aspect: bool = False
    skip_empty: bool = False
    drop_last: bool = True
    draw: Draw = "uniform"
    repeat_threshold: float = THRESHOLD
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}: must not be negative")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank = {self.rank}: must be between 0 and world_size - 1 = {self.world_size - 1}")
        if self.world_size > 1 and not self.drop_last:
            raise ValueError("drop_last = False: several processes need batches of equal size; use drop_last=True")

    @property
    def global_batch_size(self) -> int:
        """Images per batch over all processes."""
        return self.batch_size * self.world_size


def usable(dataset: Dataset, sampling: Sampling) -> Sequence[Record]:
    """The images that are read: all, or those with objects that are learnt."""
    if not sampling.skip_empty:
        return dataset.records
    return take(dataset.records, np.flatnonzero(learnt_counts(dataset.records)))


def drawn(dataset: Dataset, sampling: Sampling) -> tuple[Sequence[Record], Order]:
    """The images that are read, and the order that they are drawn in.

    Raises:
        UserError: there are no images, or none with an object where classes are to be balanced.
    """
    records = usable(dataset, sampling)
    try:
        if not records:
            raise ValueError("no images to train on")
        return records, make_order(sampling.draw, sampling.seed, records, sampling.repeat_threshold)
    except ValueError as error:
        raise UserError(f"{dataset.root}: {dataset.split}: {error}") from None


class BatchSampler:
    """Yields the batches of one epoch, from ``start`` on, as lists of (epoch, position in the epoch, image index).

    Args:
        sampling: the settings.
        order: of the images, epoch by epoch.
        portrait: bool [images], True where an image is higher than wide; only used with ``group_aspect``.
    """

    def __init__(self, sampling: Sampling, order: Order, portrait: np.ndarray) -> None:
        self.sampling = sampling
        self.order = order
        self.portrait = portrait if sampling.group_aspect else np.zeros(len(portrait), bool)
        self.epoch = self.start = 0

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch. Grouping changes what is in them, never how many there are."""
        size = self.sampling.global_batch_size
        return self.order.length // size if self.sampling.drop_last else -(-self.order.length // size)

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        return (batch for batch, _ in self.with_images())

    def with_images(self) -> Iterator[tuple[list[tuple[int, int, int]], list[int]]]:
        """Each batch of this process, and the indices of the images that all processes together have in it."""
        size = self.sampling.batch_size
        first = self.sampling.rank * size
        for batch in self._batches()[self.start :]:
            own = [(self.epoch, position, index) for position, index in batch[first : first + size]]
            yield own, [index for _, index in batch]

    def _batches(self) -> list[list[tuple[int, int]]]:
        """All batches of the epoch, for all processes together, as lists of (position, image index)."""
        size = self.sampling.global_batch_size
        order = self.order.of(self.epoch).tolist()
        # Images that fill no batch are dropped before grouping: afterwards it would always be the rarer orientation.
        entries = list(enumerate(order))[: self.batches_per_epoch * size]
        full: list[list[tuple[int, int]]] = []
        open_batches: dict[bool, list[tuple[int, int]]] = {}
        for position, index in entries:
            group = bool(self.portrait[index])
            batch = open_batches.setdefault(group, [])
            batch.append((position, index))
            if len(batch) == size:
                full.append(open_batches.pop(group))
        rest = sorted(entry for batch in open_batches.values() for entry in batch)
        return full + [rest[start : start + size] for start in range(0, len(rest), size)]
