"""The data of a run: its splits, and the batches of a phase."""

from pathlib import Path

from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.data.augment.compose import Compose
from directdet.data.augment.mixing import CopyPaste, MixUp, Mosaic
from directdet.data.augment.ssd_transforms import SSDTransform
from directdet.data.augment.steps import Colour, Flip, Resize, Resized, Step, Turn, ZoomAndCrop
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.loader import BatchLoader, Transform, make_loader
from directdet.data.montage.assemble import Montage
from directdet.data.montage.crops import cut_crops
from directdet.data.padding import Padding
from directdet.data.pixels.format import MEAN, RGB, STD, PixelFormat
from directdet.data.records import Dataset
from directdet.data.sampling import Sampling, drawn, usable
from directdet.infer.preprocess import Preprocess
from directdet.recipes.derived import evaluation_size
from directdet.recipes.recipe import Phase
from directdet.train import distributed


def load_splits(data: str | Path, fraction: float = 1.0) -> tuple[Dataset, Dataset | None]:
    """The train split, or a fixed share of its images, and the val split if the dataset has one.

    Raises:
        UserError: the dataset cannot be read, or its splits have different classes.
    """
    dataset = load_dataset(data, "train")
    if dataset.records and not dataset.pixels.mean:
        raise UserError(f"{dataset.root}: [pixels]: mean and std are missing; check-data measures and prints them")
    if fraction < 1:
        dataset = dataset.subset(fraction, seed=0)
    if "val" not in find_splits(data):
        return dataset, None
    val = load_dataset(data, "val")
    check_same_classes(dataset, val)
    return dataset, val


def transform_of(phase: Phase, pixels: PixelFormat = RGB) -> Transform:
    """What a phase does to its pictures: the resize of the papers with a flip, or a composition with more steps.

    Steps that change colours are left out where the pictures are not 8-bit RGB; see without_colour.
    """
    mixes = phase.mosaic or phase.mixup or phase.copy_paste
    colour = phase.colour if pixels.is_rgb else "none"
    if not (mixes or phase.quarter_turns or phase.ssd_crop or colour != "none"):
        return _resize_of(phase, phase.flip, pixels)
    resize = _resize_of(phase, 0.0, pixels)
    first: Step = Resized(resize)
    if phase.mosaic and phase.resize == "direct":
        first = Mosaic(phase.mosaic, phase.size[0], phase.scale, resize, pixels)
    steps: list[Step] = [first]
    if phase.mosaic and phase.resize == "warp":  # SSD's augmentation follows it
        steps.insert(0, Mosaic(phase.mosaic, phase.size[0], phase.scale, pixels=pixels))
    if phase.copy_paste:
        steps.append(CopyPaste(phase.copy_paste, resize))
    if colour != "none":
        steps.append(Colour(colour))
    steps.append(Flip(phase.flip))
    if phase.mixup:
        steps.append(MixUp(phase.mixup, _resize_of(phase, phase.flip, pixels), pixels))
    each: list[Step] = [Turn(phase.quarter_turns)] if phase.quarter_turns else []
    return Compose((*each, ZoomAndCrop(pixels)) if phase.ssd_crop else tuple(each), tuple(steps))


def without_colour(phase: Phase, pixels: PixelFormat) -> str:
    """Which step of a phase's augmentation is left out since the pictures are not 8-bit RGB, in words; "": none."""
    if pixels.is_rgb or (phase.resize != "warp" and phase.colour == "none"):
        return ""
    step = "the colours of resize=warp" if phase.resize == "warp" else f"colour={phase.colour}"
    return f"{step} left out: it is for 8-bit RGB, and these pictures hold {pixels.kind}"


def phase_preprocess(phase: Phase, pixels: PixelFormat) -> Preprocess:
    """How a phase evaluates: at its own size, and normalised as it trains.

    A phase's std is for ImageNet's RGB; a set with statistics of its own is normalised with those.
    """
    warp, std = phase.resize == "warp", phase.std if (pixels.mean, pixels.std) == (MEAN, STD) else pixels.std
    return Preprocess(
        evaluation_size(phase),
        fixed=phase.eval_fixed or warp,
        mean=pixels.mean,
        std=std,
        warp=warp,
        dtype=pixels.dtype,
        show=pixels.show,
        upright=pixels.upright,
    )


def _resize_of(phase: Phase, flip: float, pixels: PixelFormat) -> Resize:
    if phase.resize == "direct":
        return PretrainTransform(phase.size[0], phase.scale, flip, pixels)
    if phase.resize == "warp":
        return SSDTransform(phase.size[0], flip, pixels)
    return EdgesTransform(*phase.size, flip, phase.shrink, phase.short_edges)


def make_phase_loader(phase: Phase, dataset: Dataset, masks: bool, seed: int, pin_memory: bool) -> BatchLoader:
    """This process's share of the training batches of a phase; in "montage", a pass has a montage for every image.

    Raises:
        UserError: the dataset does not fill one batch, or lacks masks that the augmentation needs.
    """
    montage, masks = phase.name == "montage", masks and phase.name != "montage"
    transform = transform_of(phase, dataset.pixels)
    if isinstance(transform, Compose) and transform.needs_masks and not dataset.has_masks:
        raise UserError(
            f"{dataset.root}: {dataset.split}: {phase.name}.copy_paste needs a mask for every object, and not all have "
            f"one; give --set {phase.name}.copy_paste=0"
        )
    dataset, sampling = _trained_on(phase, dataset), _sampling(phase, seed)
    images, batch = len(usable(dataset, sampling)), sampling.global_batch_size
    if 0 < images < batch:
        fitting = images // sampling.world_size
        mend = f"--set {phase.name}.batch_size={fitting}" if fitting else f"at most {images} processes"
        raise UserError(
            f"{dataset.root}: {dataset.split}: {images} images do not fill one batch of {batch}; give {mend}"
        )
    said = ""
    if montage:
        crops = cut_crops(drawn(dataset, sampling)[0], len(dataset.classes), seed, phase.skip_difficult)
        if not len(crops):
            raise UserError(f"{dataset.root}: {dataset.split}: no object to cut out; check-data tells more")
        transform, said = Montage(crops, phase.size[0], phase.scale, phase.flip, dataset.pixels), crops.in_words()
    padding = Padding(divisor=1 if phase.resize == "warp" else 32, masks=masks)
    workers = min(phase.workers, usable_cores())
    loader = make_loader(dataset, transform, sampling, padding, workers=workers, pin_memory=pin_memory)
    loader.drawing = loader.drawing or said
    return loader


def images_per_pass(phase: Phase, dataset: Dataset) -> int:
    """How many images a pass of the phase over the dataset draws; UserError if it has none."""
    return drawn(_trained_on(phase, dataset), _sampling(phase, seed=0))[1].length


def _trained_on(phase: Phase, dataset: Dataset) -> Dataset:
    # In montages, a difficult object that is left out is no background either, so its place is needed.
    leave_out = phase.skip_difficult and phase.name != "montage"
    return dataset.without_difficult() if leave_out else dataset


def _sampling(phase: Phase, seed: int) -> Sampling:
    return Sampling(
        phase.batch_size,
        seed=seed,
        group_aspect=phase.resize == "edges",
        skip_empty=phase.skip_empty,
        draw=phase.sampling,
        repeat_threshold=phase.repeat_threshold,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
