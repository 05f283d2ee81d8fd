"""Batches for training, padded to static shapes.

What a batch holds hangs only on (seed, epoch, position in the epoch): not on the number of workers, nor on where an
interrupted run was resumed, nor on how many processes share the epoch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from directdet.common.errors import UserError
from directdet.data.augment.transforms import Sample, load_sample, rasterise
from directdet.data.image import PAD_COLOUR
from directdet.data.records import Dataset, Record

Transform = Callable[[Sample, np.random.Generator], Sample]
Batch = tuple[torch.Tensor, dict[str, torch.Tensor]]


def make_loader(
    dataset: Dataset,
    transform: Transform,
    batch_size: int,
    *,
    workers: int = 0,
    seed: int = 0,
    divisor: int = 32,
    epoch: int = 0,
    start_iteration: int = 0,
    max_objects: int | None = None,
    masks: bool | None = None,
    mask_size: int = 56,
    group_aspect: bool = False,
    skip_empty: bool = False,
    drop_last: bool = True,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader:
    """Batches of one epoch, from ``start_iteration`` on.

    Args:
        transform: ``transform(sample, rng) -> Sample``, e.g. :class:`directdet.data.transforms.PretrainTransform`.
        batch_size: pictures per batch of this process.
        workers: worker processes; 0 reads in this process.
        divisor: the canvas, common to a batch, is rounded up to a multiple of it.
        max_objects: rows of the padded targets; None takes the most objects of any picture, rounded up to 8. A smaller
            number is raised to that: objects are never cut off.
        masks: with masks; None takes them if every object has one.
        group_aspect: a batch holds either landscape or portrait pictures, which saves padding; what is left of both at
            the end of an epoch shares batches.
        skip_empty: leave out pictures without objects (crowd regions do not count).
        drop_last: leave out the last pictures that do not fill a batch.
        rank, world_size: this process takes its share of each batch of batch_size * world_size pictures.

    Yields:
        (images uint8 [N, 3, H, W] RGB, targets), targets being a dict: boxes float32 [N, G, 4] xyxy in canvas pixels,
        labels int64 [N, G], valid bool [N, G], sizes float32 [N, 2] (height, width of the picture in the canvas), and
        masks uint8 [N, G, mask_size, mask_size] inside each box if wanted. Rows that are not valid are zero; padding of
        pictures has ``PAD_COLOUR``, the normalising mean rounded.

    Raises:
        UserError: too few pictures for a batch, masks wanted but absent; while iterating, a missing or broken picture.
    """
    if world_size > 1 and not drop_last:
        raise ValueError("several processes need batches of one size: drop_last")
    records = [record for record in dataset.records if not skip_empty or not record.crowd.all()]
    if not records:
        raise UserError(f"{dataset.root}: {dataset.split}: no images to train on")
    if masks is None:
        masks = dataset.has_masks
    elif masks and not dataset.has_masks:
        have, objects = dataset.mask_counts()
        raise UserError(
            f"{dataset.root}: {dataset.split}: {have} of {objects} objects have a mask; masks need all of them: "
            "train a detector without masks, or complete the annotations"
        )
    if drop_last and len(records) < batch_size * world_size:
        raise UserError(
            f"{dataset.root}: {dataset.split}: {len(records)} images do not fill one batch of "
            f"{batch_size * world_size}; choose a smaller batch"
        )
    rows = max(int((~record.crowd).sum()) for record in records)
    rows = max(8, -(-max(rows, max_objects or 0) // 8) * 8)
    plan = _BatchPlan(_portrait(records) if group_aspect else None, len(records), batch_size, seed, drop_last)
    plan.rank, plan.world_size = rank, world_size
    samples = _Samples(records, transform, seed, masks, mask_size)
    loader = BatchLoader(samples, plan, _Collate(divisor, rows, mask_size, masks), workers, pin_memory)
    loader.set_epoch(epoch, start_iteration)
    return loader


class BatchLoader:
    """Iterable over the batches of one epoch; ``len()`` counts those that are left from its start iteration.

    A loader serves one epoch. :meth:`set_epoch` moves it to another and keeps its worker processes, which for small
    datasets saves most of the time between epochs.
    """

    def __init__(self, samples: _Samples, plan: _BatchPlan, collate: _Collate, workers: int, pin_memory: bool) -> None:
        self._plan = plan
        self.max_objects = collate.rows
        self.images = len(samples.records)
        self._open = partial(
            DataLoader,
            samples,
            batch_sampler=plan,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
        )
        self._loader: DataLoader | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch, wherever this loader starts."""
        return self._plan.count

    def set_epoch(self, epoch: int, start_iteration: int = 0) -> None:
        """Move to ``epoch``; ValueError if ``start_iteration`` lies beyond its end."""
        if not 0 <= start_iteration <= self._plan.count or epoch < 0:
            raise ValueError(f"iteration {start_iteration} of epoch {epoch}: there are {self._plan.count} iterations")
        self._plan.epoch, self._plan.start = epoch, start_iteration

    def __len__(self) -> int:
        return len(self._plan)

    def close(self) -> None:
        """End the worker processes; iterating again starts new ones."""
        self._loader = None

    def __iter__(self) -> Iterator[Batch]:
        self._loader = self._loader or self._open()
        for batch in self._loader:
            if isinstance(batch, _Failure):
                # Left to the garbage collector, together with the traceback, workers would take seconds to end.
                self.close()
                raise UserError(batch.message)
            yield batch


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way out of a worker: torch would wrap its traceback into the message."""

    message: str


class _BatchPlan:
    """Batch sampler: which picture, at which position of which epoch, belongs to which batch."""

    def __init__(self, portrait: np.ndarray | None, images: int, batch_size: int, seed: int, drop_last: bool) -> None:
        self.portrait = portrait
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = self.start = self.rank = 0
        self.world_size = 1

    @property
    def count(self) -> int:
        """Batches of an epoch. Grouping changes what they hold, never how many there are."""
        whole = self.batch_size * self.world_size
        return self.images // whole if self.drop_last else -(-self.images // whole)

    def __len__(self) -> int:
        return self.count - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        """Lists of (epoch, position, picture)."""
        batches = self._batches()[self.start :]
        first = self.rank * self.batch_size
        for batch in batches:
            yield [(self.epoch, position, index) for position, index in batch[first : first + self.batch_size]]

    def _batches(self) -> list[list[tuple[int, int]]]:
        """All batches of the epoch, for all processes together, as lists of (position, picture)."""
        whole = self.batch_size * self.world_size
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images).tolist()
        # What fills no batch is dropped before grouping: afterwards it would be the rarer orientation every time.
        entries = list(enumerate(order))[: self.count * whole]
        full: list[list[tuple[int, int]]] = []
        open_batches: dict[bool, list[tuple[int, int]]] = {}
        for position, index in entries:
            group = self.portrait is not None and bool(self.portrait[index])
            batch = open_batches.setdefault(group, [])
            batch.append((position, index))
            if len(batch) == whole:
                full.append(open_batches.pop(group))
        rest = sorted(entry for batch in open_batches.values() for entry in batch)
        return full + [rest[start : start + whole] for start in range(0, len(rest), whole)]


class _Samples:
    """The dataset that workers see: reads, augments and rasterises one picture."""

    def __init__(self, records: list[Record], transform: Transform, seed: int, masks: bool, mask_size: int) -> None:
        self.records = records
        self.transform = transform
        self.seed = seed
        self.masks = masks
        self.mask_size = mask_size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Sample, np.ndarray] | _Failure:
        epoch, position, index = key
        try:
            sample = load_sample(self.records[index], self.masks)
        except UserError as error:
            return _Failure(str(error))
        sample = self.transform(sample, np.random.default_rng([self.seed, epoch, position]))
        masks = np.zeros((0, self.mask_size, self.mask_size), np.uint8)
        if sample.segmentations:
            pairs = zip(sample.segmentations, sample.boxes, strict=True)
            masks = np.stack([rasterise(shape, box, self.mask_size) for shape, box in pairs])
        return sample, masks


@dataclass(frozen=True)
class _Collate:
    """Pads samples to one canvas and one number of objects."""

    divisor: int
    rows: int
    mask_size: int
    masks: bool

    def __call__(self, items: list[Any]) -> Batch | _Failure:
        failure = next((item for item in items if isinstance(item, _Failure)), None)
        if failure is not None:
            return failure
        count, rows = len(items), self.rows
        height, width = (
            -(-max(sample.image.shape[axis] for sample, _ in items) // self.divisor) * self.divisor for axis in (0, 1)
        )
        images = np.empty((count, 3, height, width), np.uint8)
        images[:] = np.array(PAD_COLOUR, np.uint8)[:, None, None]
        boxes = np.zeros((count, rows, 4), np.float32)
        labels = np.zeros((count, rows), np.int64)
        valid = np.zeros((count, rows), bool)
        masks = np.zeros((count, rows, self.mask_size, self.mask_size) if self.masks else 0, np.uint8)
        for index, (sample, sample_masks) in enumerate(items):
            image_height, image_width = sample.image.shape[:2]
            images[index, :, :image_height, :image_width] = sample.image.transpose(2, 0, 1)
            objects = len(sample.boxes)
            boxes[index, :objects] = sample.boxes
            labels[index, :objects] = sample.labels
            valid[index, :objects] = True
            if self.masks:
                masks[index, :objects] = sample_masks
        sizes = np.array([sample.size for sample, _ in items], np.float32)
        targets = {"boxes": boxes, "labels": labels, "valid": valid, "sizes": sizes}
        if self.masks:
            targets["masks"] = masks
        return torch.from_numpy(images), {name: torch.from_numpy(value) for name, value in targets.items()}


def _portrait(records: list[Record]) -> np.ndarray:
    return np.array([record.height > record.width for record in records])


def _start_worker(_: int) -> None:
    # The workers are the parallelism; OpenCV's own threads in each would only compete.
    cv2.setNumThreads(0)
    os.environ["OMP_NUM_THREADS"] = "1"
    # Ctrl-C reaches every process of the terminal; only the one that trains is to act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
