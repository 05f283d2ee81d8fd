"""The other pictures that an augmented one is mixed with: its neighbours in the order of the epoch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from directdet.data.augment.sample import Sample, load_sample
from directdet.data.augment.steps import Another
from directdet.data.draws.orders import Order
from directdet.data.records import Record

# Positions of an epoch that share their pictures. A batch of 8 or 16 mixes with itself, so that each picture is decoded
# once; which they are depends neither on the batches nor on the workers. (RTMDet's code keeps the last 20 and 40.)
BLOCK = 8
KEPT_BYTES = 2**27  # of decoded pictures, in each worker


class Neighbours:
    """Reads samples, and keeps the latest ones; what is read never depends on what is kept.

    Args:
        records: the images.
        order: in which the epochs draw them.
        masks: read masks as well.
    """

    def __init__(self, records: Sequence[Record], order: Order, masks: bool) -> None:
        self._records, self._orders, self._masks = records, order, masks
        self._kept: OrderedDict[int, Sample] = OrderedDict()
        self._bytes = 0
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def read(self, index: int) -> Sample:
        """The sample of an image; its arrays must not be changed."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        sample = load_sample(self._records[index], self._masks)
        sample.image.setflags(write=False)  # others will be given it, too
        self._kept[index] = sample
        self._bytes += sample.image.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].image.nbytes
        return sample

    def of(self, epoch: int, position: int) -> Another:
        """Reads a random picture of those that share a block of the epoch with the one at this position."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._orders.of(epoch)
        start = max(0, min(position // BLOCK * BLOCK, len(self._order) - BLOCK))
        block = self._order[start : start + BLOCK].tolist()

        def another(rng: np.random.Generator) -> Sample:
            return self.read(block[int(rng.integers(len(block)))])

        return another
