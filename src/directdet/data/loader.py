"""Batches for training, padded to static shapes.

The content of a batch depends only on (seed, epoch, position in the epoch): not on the number of workers, nor on where
an interrupted run was resumed, nor on how many processes share the epoch.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from directdet.common.errors import UserError
from directdet.common.worker_signals import leave_signals_to_parent
from directdet.data.augment.compose import Compose
from directdet.data.augment.sample import Sample, load_sample
from directdet.data.draws.orders import Order, drawing_in_words
from directdet.data.flat.arrays import image_sizes
from directdet.data.image import put_planes
from directdet.data.masks import rasterise
from directdet.data.montage.assemble import Montage
from directdet.data.neighbours import Neighbours
from directdet.data.padding import Padding, target_rows
from directdet.data.pixels.format import PixelFormat
from directdet.data.records import Dataset, Record, object_counts
from directdet.data.sampling import BatchSampler, Sampling, drawn

Transform = Callable[[Sample, np.random.Generator], Sample] | Compose | Montage
Batch = tuple[torch.Tensor, dict[str, torch.Tensor]]


class WorkerError(UserError):
    """A worker process failed or was killed; the images may be fine. Fewer workers, or none, may be the mend."""


def make_loader(
    dataset: Dataset,
    transform: Transform,
    sampling: Sampling,
    padding: Padding | None = None,
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> BatchLoader:
    """Batches of an epoch, the first one until :meth:`BatchLoader.set_epoch` is called.

    Args:
        transform: ``transform(sample, rng) -> Sample``, e.g.
            :class:`directdet.data.augment.transforms.PretrainTransform`; a :class:`Compose` is also given other
            images, and a :class:`Montage` chooses its own.
        sampling: which images make up a batch.
        padding: the shapes of a batch; None takes the defaults.
        workers: worker processes; 0 reads in this process.
        pin_memory: put batches into page-locked memory, for faster copies to a GPU.

    Yields:
        (images [N, C, H, W], uint8, or float32 of other formats, targets), targets being a dict: boxes float32
        [N, G, 4] xyxy in canvas pixels, labels int64 [N, G], valid bool [N, G], sizes float32 [N, 2] (height, width of
        the image in the canvas), padded float32 [N, 2] (the same of what the image is padded to in a batch of its own),
        with masks, masks uint8 [N, G, mask_size, mask_size] inside each box, and, where some objects count less than
        others, weights float32 [N, G], 0 to 1. Rows that are not valid are zero; images are padded with the rounded
        mean used for normalisation.

    Raises:
        UserError: too few images for a batch, masks required but absent; while iterating, a missing or broken image.
        WorkerError: while iterating, a worker was killed, ran out of shared memory or met an error of the code. With
            no workers, errors of the code are raised as they are.
    """
    padding = padding or Padding()
    where = f"{dataset.root}: {dataset.split}"
    records, order = drawn(dataset, sampling)
    masks = dataset.has_masks if padding.masks is None else padding.masks
    if masks and not dataset.has_masks:
        have, objects = dataset.mask_counts()
        raise UserError(
            f"{where}: {have} of {objects} objects have a mask (the first without: {dataset.first_without_mask()}); "
            "training with masks needs one for each: train a detector without masks, or complete the annotations"
        )
    if sampling.drop_last and len(records) < sampling.global_batch_size:
        raise UserError(
            f"{where}: {len(records)} images do not fill one batch of {sampling.global_batch_size}; "
            "choose a smaller batch"
        )
    width, height = image_sizes(records).T
    return BatchLoader(
        _Samples(records, transform, sampling.seed, order, masks, padding.mask_size),
        BatchSampler(sampling, order, height > width),
        _Collate(padding.divisor, padding.min_objects, padding.mask_size, masks, dataset.pixels, dataset.has_weights),
        workers,
        pin_memory,
    )


class BatchLoader:
    """Iterable over the batches of one epoch; ``len()`` counts those left from the start iteration on.

    :meth:`set_epoch` moves it to another epoch and keeps the worker processes, which saves most of the time between
    epochs on small datasets.
    """

    def __init__(
        self, samples: _Samples, sampler: BatchSampler, collate: _Collate, workers: int, pin_memory: bool
    ) -> None:
        self._sampler = sampler
        self.images = len(samples.records)
        # What is drawn, in words; "" if it is each image once.
        self.drawing = drawing_in_words(sampler.order, self.images)
        self._open = partial(
            DataLoader,
            samples,
            batch_sampler=_Fetches(sampler, object_counts(samples.records).tolist()),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
        )
        self._loader: DataLoader | None = None
        self._processes: list[BaseProcess] = []

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch, wherever this loader starts."""
        return self._sampler.batches_per_epoch

    def set_epoch(self, epoch: int, start_iteration: int = 0) -> None:
        """Move to ``epoch``; ValueError if ``start_iteration`` lies beyond its end."""
        if not 0 <= start_iteration <= self.batches_per_epoch or epoch < 0:
            raise ValueError(
                f"iteration {start_iteration} of epoch {epoch}: there are {self.batches_per_epoch} iterations"
            )
        self._sampler.epoch, self._sampler.start = epoch, start_iteration

    def __len__(self) -> int:
        return len(self._sampler)

    def close(self) -> None:
        """End the worker processes; iterating again starts new ones."""
        self._loader = None

    def __iter__(self) -> Iterator[Batch]:
        batches: Iterator[Batch | _Packed | _Failure] | None = None
        while True:
            try:
                if batches is None:  # here too a worker of the epoch before may be found dead
                    batches = self._start()
                batch = next(batches, None)
                if isinstance(batch, _Packed):
                    batch = batch.unpack()
            except Exception as error:
                message = self._death()
                if message is None:
                    raise
                self.close()
                raise WorkerError(message) from error
            if batch is None:
                return
            if isinstance(batch, _Failure):
                # Left to the garbage collector, together with the traceback, workers would take seconds to end.
                self.close()
                raise (WorkerError if batch.worker else UserError)(batch.message)
            yield batch

    def _start(self) -> Iterator[Batch | _Packed | _Failure]:
        """The iterator over an epoch; starts the worker processes where there are none yet."""
        if self._loader is not None:
            return iter(self._loader)
        before, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
        self._loader = self._open()
        batches = iter(self._loader)
        self._processes = [child for child in multiprocessing.active_children() if child not in before]
        # torch's handler raises wherever the main process happens to be, in the middle of a step or of saving, too.
        # Without it, the next batch finds out, within seconds.
        if signal.getsignal(signal.SIGCHLD) is not handler:
            signal.signal(signal.SIGCHLD, handler)
        return batches

    def _death(self) -> str | None:
        """How the first dead worker ended, None if all are alive."""
        ended = wait([process.sentinel for process in self._processes], timeout=1.0) if self._processes else []
        for process in self._processes:
            if process.sentinel in ended:
                process.join()
                return _how_it_ended(process.exitcode or 0)
        return None


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "a data worker was killed, probably because memory ran out"
    if code == -signal.SIGBUS:
        return f"a data worker ended with a bus error, probably because {_shared_memory()}"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"a data worker {how}"


def _shared_memory() -> str:
    """How full the shared memory is that workers send batches through."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "shared memory is full"
    return f"/dev/shm has too little room ({usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB free)"


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker: torch would wrap its traceback into the message.

    Attributes:
        worker: the worker failed rather than an image.
    """

    message: str
    worker: bool = False


@dataclass(frozen=True)
class _Packed:
    """A batch on its way out of a worker, pickled; the tensors lie in shared memory.

    Left to torch, pickling takes place on a side thread, whose errors reach nobody: the main process waits for ever.
    """

    content: bytes

    def unpack(self) -> Batch:
        return pickle.loads(self.content)

    def pin_memory(self) -> Batch:
        """Called by torch's thread that copies batches into page-locked memory."""
        images, targets = self.unpack()
        return images.pin_memory(), {name: value.pin_memory() for name, value in targets.items()}


def _failed(error: Exception, doing: str) -> _Failure:
    """The failure of a worker; in the main process, `error` itself."""
    if get_worker_info() is None:
        raise error
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return _Failure(f"{doing}: a data worker ran out of memory", worker=True)
    if "shared memory" in str(error) or "/dev/shm" in str(error):
        why = f"{_shared_memory()}, and data workers send batches through it"
        return _Failure(f"{doing}: {why}; make it larger (docker run --shm-size=4g)", worker=True)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return _Failure(f"{doing}: a data worker failed: {reason}", worker=True)


class _Fetches:
    """What the batches of a sampler read: each image's entry, and the objects of the fullest image of the batch.

    Processes that share a batch pad to the same number of rows: random sampling draws by it.
    """

    def __init__(self, sampler: BatchSampler, objects: list[int]) -> None:
        self.sampler = sampler
        self.objects = objects

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int, int, int]]]:
        for own, images in self.sampler.with_images():
            most = max(self.objects[image] for image in images)
            yield [(*entry, most) for entry in own]


class _Samples(TorchDataset):
    """The dataset that workers see: reads, augments and rasterises one image."""

    def __init__(
        self, records: Sequence[Record], transform: Transform, seed: int, order: Order, masks: bool, mask_size: int
    ) -> None:
        self.records = records
        mixed_masks = masks or (isinstance(transform, Compose) and transform.needs_masks)
        self.neighbours = Neighbours(records, order, mixed_masks)
        self.transform = transform
        self.seed = seed
        self.masks = masks
        self.mask_size = mask_size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: tuple[int, int, int, int]) -> tuple[Sample, np.ndarray, int] | _Failure:
        epoch, position, image, most = index
        try:
            return *self._read(epoch, position, image), most
        except UserError as error:
            return _Failure(str(error))
        except Exception as error:
            return _failed(error, str(self.records[image].path))

    def _read(self, epoch: int, position: int, image: int) -> tuple[Sample, np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, position])
        if isinstance(self.transform, Compose):
            sample = self.transform(self.neighbours.read(image), rng, self.neighbours.of(epoch, position))
        elif isinstance(self.transform, Montage):
            sample = self.transform(self.neighbours.read, rng)
        else:
            sample = self.transform(load_sample(self.records[image], self.masks), rng)
        masks = np.zeros((0, self.mask_size, self.mask_size), np.uint8)
        if self.masks and sample.segmentations:
            pairs = zip(sample.segmentations, sample.boxes, strict=True)
            masks = np.stack([rasterise(shape, box, self.mask_size) for shape, box in pairs])
        return sample, masks


@dataclass(frozen=True)
class _Collate:
    """Pads samples to one canvas and one number of objects."""

    divisor: int
    min_objects: int
    mask_size: int
    masks: bool
    pixels: PixelFormat
    weights: bool

    def __call__(self, items: list[tuple[Sample, np.ndarray, int] | _Failure]) -> Batch | _Packed | _Failure:
        pairs: list[tuple[Sample, np.ndarray]] = []
        most = self.min_objects
        for item in items:
            if isinstance(item, _Failure):
                return item
            sample, masks, fullest = item
            pairs.append((sample, masks))
            most = max(most, fullest, len(sample.boxes))  # an augmentation may put images together
        try:
            batch = self._pad(pairs, target_rows(most))
            return batch if get_worker_info() is None else _Packed(bytes(ForkingPickler.dumps(batch)))
        except Exception as error:
            return _failed(error, f"a batch of {len(pairs)} images")

    def _pad(self, pairs: list[tuple[Sample, np.ndarray]], rows: int) -> Batch:
        count = len(pairs)
        height, width = (
            -(-max(sample.image.shape[axis] for sample, _ in pairs) // self.divisor) * self.divisor for axis in (0, 1)
        )
        # Torch computes with uint8 and float32, but hardly with uint16.
        kind = np.uint8 if self.pixels.dtype == "uint8" else np.float32
        images = np.empty((count, self.pixels.channels, height, width), kind)
        padding = np.array(self.pixels.padding, kind)[:, None, None]
        boxes = np.zeros((count, rows, 4), np.float32)
        labels = np.zeros((count, rows), np.int64)
        valid = np.zeros((count, rows), bool)
        weights = np.zeros((count, rows), np.float32)
        masks = np.zeros((count, rows, self.mask_size, self.mask_size) if self.masks else 0, np.uint8)
        for index, (sample, sample_masks) in enumerate(pairs):
            image_height, image_width = sample.image.shape[:2]
            if (image_height, image_width) != (height, width):
                images[index] = padding
            put_planes(sample.image, images[index, :, :image_height, :image_width])
            objects = len(sample.boxes)
            boxes[index, :objects] = sample.boxes
            labels[index, :objects] = sample.labels
            valid[index, :objects] = True
            weights[index, :objects] = sample.weights
            if self.masks:
                masks[index, :objects] = sample_masks
        sizes = np.array([sample.size for sample, _ in pairs], np.float32)
        own = np.array([sample.image.shape[:2] for sample, _ in pairs])
        padded = (-(-own // self.divisor) * self.divisor).astype(np.float32)
        targets = {"boxes": boxes, "labels": labels, "valid": valid, "sizes": sizes, "padded": padded}
        if self.masks:
            targets["masks"] = masks
        if self.weights:
            targets["weights"] = weights
        return torch.from_numpy(images), {name: torch.from_numpy(value) for name, value in targets.items()}


def _start_worker(_: int) -> None:
    # The workers are the parallelism; OpenCV's own threads in each would only compete.
    cv2.setNumThreads(0)
    os.environ["OMP_NUM_THREADS"] = "1"
    leave_signals_to_parent()
