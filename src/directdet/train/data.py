"""The data of a run: its splits, and the batches of a phase."""

import os
from pathlib import Path

from directdet.data.augment.ssd_transforms import SSDTransform
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.loader import BatchLoader, Padding, make_loader
from directdet.data.records import Dataset
from directdet.data.sampling import Sampling
from directdet.recipes.recipe import Phase
from directdet.train import distributed


def load_splits(data: str | Path, fraction: float = 1.0) -> tuple[Dataset, Dataset | None]:
    """The train split, or a fixed share of its images, and the val split if the dataset has one.

    Raises:
        UserError: the dataset cannot be read, or its splits have different classes.
    """
    dataset = load_dataset(data, "train")
    if fraction < 1:
        dataset = dataset.subset(fraction, seed=0)
    if "val" not in find_splits(data):
        return dataset, None
    val = load_dataset(data, "val")
    check_same_classes(dataset, val)
    return dataset, val


def make_phase_loader(phase: Phase, dataset: Dataset, masks: bool, seed: int, pin_memory: bool) -> BatchLoader:
    """This process's share of the training batches of a phase.

    Raises:
        UserError: the dataset does not fill one batch.
    """
    if phase.resize == "direct":
        transform = PretrainTransform(phase.size[0], phase.scale)
    elif phase.resize == "warp":
        transform = SSDTransform(phase.size[0])
    else:
        transform = EdgesTransform(*phase.size, shrink=phase.shrink, short_edges=phase.short_edges)
    sampling = Sampling(
        phase.batch_size,
        seed=seed,
        group_aspect=phase.resize == "edges",
        skip_empty=phase.skip_empty,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    if phase.skip_difficult:
        dataset = dataset.without_difficult()
    padding = Padding(divisor=1 if phase.resize == "warp" else 32, masks=masks)
    workers = min(phase.workers, os.cpu_count() or 1)
    return make_loader(dataset, transform, sampling, padding, workers=workers, pin_memory=pin_memory)
