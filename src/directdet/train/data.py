"""The data of a run: its splits, and the batches of a phase."""

from pathlib import Path

import numpy as np

from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.data.augment.compose import Compose
from directdet.data.augment.mixing import CopyPaste, MixUp, Mosaic
from directdet.data.augment.ssd_transforms import SSDTransform
from directdet.data.augment.steps import Colour, Flip, Resize, Resized, Step, Turn, ZoomAndCrop
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.loader import BatchLoader, Transform, make_loader, usable
from directdet.data.padding import Padding
from directdet.data.records import Dataset
from directdet.data.sampling import Sampling
from directdet.recipes.fit import DataFacts, fit_to_data
from directdet.recipes.recipe import Phase, Recipe
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


def facts_of_data(dataset: Dataset) -> DataFacts:
    """What a recipe that fits itself to the data looks at."""
    sides = [np.zeros(0)]
    for record in dataset.records:
        boxes = record.boxes[~record.crowd]
        areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), 1)
        sides.append(np.sqrt(areas) / max(record.width, record.height))
    shares = np.concatenate(sides)
    return DataFacts(len(dataset), float(np.quantile(shares, 0.1)) if len(shares) else None)


def fitted(recipe: Recipe, dataset: Dataset) -> tuple[Recipe, str]:
    """The recipe as it trains on this data, and in words what was chosen for it; see `fit_to_data`."""
    if not recipe.fit:  # every object of a large set would be looked at for nothing
        return recipe, ""
    return fit_to_data(recipe, facts_of_data(dataset))


def transform_of(phase: Phase) -> Transform:
    """What a phase does to its pictures: the resize of the papers with a flip, or a composition with more steps."""
    mixes = phase.mosaic or phase.mixup or phase.copy_paste
    if not (mixes or phase.quarter_turns or phase.ssd_crop or phase.colour != "none"):
        return _resize_of(phase, phase.flip)
    resize = _resize_of(phase, 0.0)
    first: Step = Resized(resize)
    if phase.mosaic and phase.resize == "direct":
        first = Mosaic(phase.mosaic, phase.size[0], phase.scale, resize)
    steps: list[Step] = [first]
    if phase.mosaic and phase.resize == "warp":  # SSD's augmentation follows it
        steps.insert(0, Mosaic(phase.mosaic, phase.size[0], phase.scale))
    if phase.copy_paste:
        steps.append(CopyPaste(phase.copy_paste, resize))
    if phase.colour != "none":
        steps.append(Colour(phase.colour))
    steps.append(Flip(phase.flip))
    if phase.mixup:
        steps.append(MixUp(phase.mixup, _resize_of(phase, phase.flip)))
    each: list[Step] = [Turn(phase.quarter_turns)] if phase.quarter_turns else []
    return Compose((*each, ZoomAndCrop()) if phase.ssd_crop else tuple(each), tuple(steps))


def _resize_of(phase: Phase, flip: float) -> Resize:
    if phase.resize == "direct":
        return PretrainTransform(phase.size[0], phase.scale, flip)
    if phase.resize == "warp":
        return SSDTransform(phase.size[0], flip)
    return EdgesTransform(*phase.size, flip, phase.shrink, phase.short_edges)


def make_phase_loader(phase: Phase, dataset: Dataset, masks: bool, seed: int, pin_memory: bool) -> BatchLoader:
    """This process's share of the training batches of a phase.

    Raises:
        UserError: the dataset does not fill one batch, or lacks masks that the augmentation needs.
    """
    transform = transform_of(phase)
    if isinstance(transform, Compose) and transform.needs_masks and not dataset.has_masks:
        raise UserError(
            f"{dataset.root}: {dataset.split}: {phase.name}.copy_paste needs a mask for every object, and not all have "
            f"one; give --set {phase.name}.copy_paste=0"
        )
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
    images, batch = len(usable(dataset, sampling)), sampling.global_batch_size
    if 0 < images < batch:
        fitting = images // sampling.world_size
        mend = f"--set {phase.name}.batch_size={fitting}" if fitting else f"at most {images} processes"
        raise UserError(
            f"{dataset.root}: {dataset.split}: {images} images do not fill one batch of {batch}; give {mend}"
        )
    padding = Padding(divisor=1 if phase.resize == "warp" else 32, masks=masks)
    workers = min(phase.workers, usable_cores())
    return make_loader(dataset, transform, sampling, padding, workers=workers, pin_memory=pin_memory)
