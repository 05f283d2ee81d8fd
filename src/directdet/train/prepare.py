"""Preparing a model for a phase: network, input size, weights, batch normalisation, frozen stages."""

import itertools
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from directdet.common.errors import UsageProblem, UserError
from directdet.common.terminal import TITLE
from directdet.data.montage.assemble import regions
from directdet.data.records import Dataset
from directdet.models.archive import check_archive, overlapping_tensor
from directdet.models.build import DETECTORS, build_model
from directdet.models.carried import carried, common_classes
from directdet.models.checkpoint import CheckpointError, load_checkpoint
from directdet.models.montage.network import MontageNet
from directdet.models.parts.network import Network
from directdet.models.parts.norm import FixedBatchNorm2d, fix_batch_norm, has_statistics, sync_batch_norm
from directdet.recipes.derived import accumulated, evaluation_size
from directdet.recipes.recipe import PARTS, Part, Phase, Recipe
from directdet.train import distributed

# Below this, a batch normalisation's statistics are too noisy to train with (ScratchDet issue 8, mmdetection 1468).
SMALL_BN_BATCH = 8
IMAGENET = "imagenet"
ONEDNN_BLOCK = 16  # channels that oneDNN computes at once


@dataclass(frozen=True)
class Loaded:
    """What was loaded from the weights that a phase starts from.

    Attributes:
        source: the file, or "imagenet".
        taken: tensors loaded, by part.
        left: (name, reason) of the tensors that kept their values, by part.
        carried: (class, its name in the source) of the classes whose rows of the class layers were loaded, where the
            source is of other classes: the rows of the rest kept their values.
    """

    source: str
    taken: dict[str, int]
    left: dict[str, tuple[tuple[str, str], ...]]
    carried: tuple[tuple[str, str], ...] = ()

    def count(self) -> int:
        """The number of tensors loaded."""
        return sum(self.taken.values())

    def table(self) -> Table:
        """For each part, how many tensors were loaded, how many were not, and why not."""
        table = Table("part", "loaded", "not loaded", "why not", title=Text("weights that it starts from", TITLE))
        for part, taken in self.taken.items():
            reasons = [why for _, why in self.left[part]]
            counts = ", ".join(f"{reasons.count(why)} {why}" for why in dict.fromkeys(reasons))
            table.add_row(part, str(taken), str(len(reasons)), counts)
        return table


def network_of(recipe: Recipe, phase: Phase, classes: int) -> Network:
    """A recipe's network for a number of classes, or, in "montage", its backbone with a classifier.

    Raises:
        UsageProblem: the settings of the network do not go together.
    """
    try:
        detector = build_model({"detector": recipe.detector, "num_classes": classes, **recipe.model})
    except ValueError as error:  # settings that are valid alone, but not together
        raise UsageProblem(f"{recipe.name}: model: {error}") from None
    if phase.name != "montage":
        return detector
    side = phase.size[0]
    return MontageNet(detector.config, detector.backbone, torch.from_numpy(regions(side)), side)


def load_weights(
    model: Network, source: str | Path, classes: tuple[str, ...], parts: tuple[Part, ...] = PARTS
) -> Loaded:
    """Load `parts` of a detector's weights into `model`, by name and shape; what does not fit is kept and reported.

    The backbone must fit completely: half a backbone is a mistake. Other `classes` are not: of the layers that have
    outputs for each class, those of the classes of the same name are loaded then, and the others keep their values,
    even where the number of classes happens to be the same.

    Args:
        source: a checkpoint of ours, a file with the state of a torchvision backbone, or "imagenet" for torchvision's
            ImageNet weights.
        classes: names of the classes that the model is for.

    Raises:
        UserError: the source cannot be read, or it holds another backbone.
    """
    own = model.state_dict()
    state, known = _imagenet(model) if str(source) == IMAGENET else _read(Path(source), model)
    present = [part for part in PARTS if part in {model.part_of(name) for name in own}]
    fitting, taken, left = {}, dict.fromkeys(present, 0), {part: [] for part in present}
    pairs = [] if known is None or known == tuple(classes) else common_classes(classes, known)
    carry = False
    for name, value in own.items():
        part = model.part_of(name)
        if known is not None and pairs and part in parts and name in state and model.is_of_classes(name):
            counts = len(classes), len(known)
            if (rows := carried(value, state[name], pairs, counts, model.class_rows(name))) is not None:
                fitting[name], carry = rows, True
                taken[part] += 1
                continue
        if part not in parts:
            why = "not requested"
        elif name not in state:
            why = "missing"
        elif state[name].shape != value.shape:
            why = "of another shape"
        elif known is not None and known != tuple(classes) and model.is_of_classes(name):
            why = "of other classes"
        else:
            fitting[name] = state[name]
            taken[part] += 1
            continue
        left[part].append((name, why))
    if "backbone" in parts:
        _require_backbone(model, source, state, left["backbone"])
    model.load_state_dict(fitting, strict=False)
    names = tuple((classes[label], known[theirs]) for label, theirs in pairs) if carry and known is not None else ()
    return Loaded(str(source), taken, {part: tuple(found) for part, found in left.items()}, names)


def _require_backbone(
    model: Network, source: str | Path, state: dict[str, Tensor], left: list[tuple[str, str]]
) -> None:
    """UserError unless the backbone in the state is the model's: all of its tensors, and no others."""
    optional = tuple(f"backbone.{prefix}" for prefix in model.backbone.unpublished())
    wrong = [
        f"{name} is {why}"
        for name, why in left
        if not name.endswith("num_batches_tracked") and not (optional and name.startswith(optional))
    ]
    own = model.state_dict()  # the first layers of a deeper network would fit, too
    wrong += [
        f"{name} is not in this recipe's network" for name in state if name.startswith("backbone.") and name not in own
    ]
    if wrong:
        raise UserError(f"{source}: {wrong[0]}; use weights of this recipe's backbone")


def _read(path: Path, model: Network) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The weights in a file, by our names, and their classes; None for a backbone, which has no classes."""
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError:
        backbone = _backbone_file(path, model)
        if backbone is None:
            raise
        return backbone, None
    return checkpoint["model"], tuple(checkpoint["classes"])


def _backbone_file(path: Path, model: Network) -> dict[str, Tensor] | None:
    """A plain state_dict, assumed to be of a torchvision backbone, by our names; None if the file is something else."""
    try:
        if zipfile.is_zipfile(path):  # older files are plain pickles
            check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged or not written by torch: the error of load_checkpoint says so
        return None
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, Tensor) and not overlapping_tensor(value) for value in state.values())
    ):
        return None
    return model.from_torchvision(state)


def _imagenet(model: Network) -> tuple[dict[str, Tensor], None]:
    """torchvision's ImageNet weights of the model's backbone.

    Raises:
        UserError: torchvision has none for this backbone, or they cannot be downloaded.
    """
    published = model.backbone.imagenet
    if model.in_channels != 3:
        raise UserError(
            f"--init {IMAGENET}: its weights are for RGB, and this data has {model.in_channels} channels; use "
            "--init random"
        )
    if published is None:
        name = model.config.backbone
        raise UserError(
            f"--init {IMAGENET}: torchvision has no ImageNet weights of {name}; give a file with --init FILE"
        )
    weights = torchvision.models.get_model_weights(published)["IMAGENET1K_V1"]  # the older ones, as in the papers
    try:
        state = weights.get_state_dict(progress=distributed.is_main())
    except (URLError, OSError) as error:
        raise UserError(
            f"--init {IMAGENET}: {weights.url} could not be fetched ({error}); download it elsewhere and give the file "
            "with --init FILE"
        ) from None
    return model.from_torchvision(state), None


def check_sizes(model: Network, phase: Phase) -> None:
    """Check that the network takes images of the phase's size; "direct" and "edges" pad to multiples of 32.

    Raises:
        UserError: it does not; the message gives the settings that fit.
    """
    own = model.input_size()
    if own is not None and (phase.resize, phase.size, evaluation_size(phase)) != ("warp", own, own):
        side = own[0]
        evaluated = "" if phase.eval_size is None else f" --set {phase.name}.eval_size={side}"
        raise UserError(
            f"{phase.name}: model.size={side}: this network takes images of {side}x{side} only; give "
            f"--set {phase.name}.resize=warp --set {phase.name}.size={side}{evaluated}"
        )
    if own is None and phase.resize == "warp":
        try:
            model.check_size(phase.size)
        except ValueError as error:
            raise UserError(f"{phase.name}.size: {error}") from None


def settled(recipe: Recipe, dataset: Dataset, device: torch.device) -> Recipe:
    """The recipe with what is left to the data and the device: the network's channels, and precision="auto".

    Raises:
        UserError: a number of channels was asked for that the data does not have, or objects have scores and the losses
            of the recipe's detector do not look at them.
    """
    known = DETECTORS.get(recipe.detector)
    if known is not None and not known.weights and dataset.has_weights:
        raise UserError(
            f"{dataset.root}: {dataset.split}: some objects have a score, by which the losses of {recipe.detector} are "
            "not weighed; remove score from the annotations, or give its Architecture weights=True once they are"
        )
    channels, asked = dataset.pixels.channels, recipe.model.get("in_channels")
    if asked not in (None, channels):
        raise UserError(f"model.in_channels: {asked}, but {dataset.root} has {channels}; leave it out")
    if channels != 3:
        recipe = replace(recipe, model={**recipe.model, "in_channels": channels})
    return replace(recipe, phases=tuple(with_precision(phase, device) for phase in recipe.phases))


def with_precision(phase: Phase, device: torch.device) -> Phase:
    """The phase with precision="auto" settled: bf16 on a device that computes in it, fp32 on others."""
    if phase.precision != "auto":
        return phase
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)  # from Ampere on
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not say
        fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return replace(phase, precision="bf16" if fast else "fp32")


def safe_format(model: nn.Module, phase: Phase) -> Phase:
    """The phase, without channels_last where the model is on a CPU and would crash there.

    The backward pass of a channels-last 1x1 convolution of stride 2 with fewer than 16 input channels reads beyond its
    memory (oneDNN in PyTorch 2.14: a segmentation fault for images of some sizes). Other strides, other kernels and
    more channels do not; the numbers are the same in both formats.
    """
    crashes = any(
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < ONEDNN_BLOCK
        for m in model.modules()
    )
    on_cpu = next(model.parameters()).device.type == "cpu"
    return replace(phase, channels_last=False) if crashes and on_cpu and phase.channels_last else phase


def apply_norm(model: Network, phase: Phase, trained: bool, known: bool = True) -> None:
    """Set batch normalisation and freeze stages as the phase says.

    Args:
        trained: the backbone's weights were loaded.
        known: False if the weights are not there yet, in a dry run: freezing random weights is then no error.

    Raises:
        UserError: random weights would be frozen, so that the network could not learn, without any sign of it; or the
            batch is too small for live batch normalisation.
    """
    fixed = phase.norm in ("fixed", "affine")
    norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if (fixed and norms) or phase.frozen_stages >= 0:
        what = f"{phase.norm} batch normalisation" if fixed and norms else f"frozen_stages={phase.frozen_stages}"
        if known and (not trained or (norms and not has_statistics(model))):
            raise UserError(
                f"{phase.name}: {what} would freeze layers that still hold random weights; give trained weights with "
                "--init FILE, or run the pretrain phase first"
            )
    if norms and not fixed and phase.batch_size < model.fewest_live_images:
        raise UserError(
            f"{phase.name}.batch_size: {phase.batch_size} is too small: live batch normalisation needs at least "
            f"{model.fewest_live_images} images in this network, whose last feature map is a single cell"
        )
    if fixed:
        fix_batch_norm(model, affine=phase.norm == "affine")
    elif phase.norm == "sync":
        sync_batch_norm(model)
    if phase.frozen_stages >= 0:
        for module in itertools.chain.from_iterable(model.backbone.stages()[: phase.frozen_stages + 1]):
            fix_batch_norm(module)
            module.requires_grad_(False)


def describe_norm(model: nn.Module, phase: Phase) -> str:
    """A description of the normalisation layers and of what their statistics are computed over, for the banner."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    fixed = [m for m in norms if isinstance(m, FixedBatchNorm2d)]
    affine = sum(m.weight.requires_grad for m in fixed)
    parts = []
    if affine:
        parts.append(f"{affine} batch normalisations with fixed statistics, affine parameters learned")
    if len(fixed) - affine:
        parts.append(f"{len(fixed) - affine} batch normalisations with fixed statistics and affine parameters")
    if live := len(norms) - len(fixed):
        images = phase.batch_size * (distributed.world_size() if phase.norm == "sync" else 1)
        over = "on all devices" if phase.norm == "sync" else "on one device"
        parts.append(f"{live} live batch normalisations over {images} images {over}")
        if images < SMALL_BN_BATCH:
            parts[-1] += f" (fewer than {SMALL_BN_BATCH}: expect noisy statistics; gradient accumulation does not help)"
        elif (times := accumulated(phase, distributed.world_size())) > 1:
            parts[-1] += f" (not over the {times} accumulated batches)"
    for kind in (nn.GroupNorm, nn.LayerNorm):
        if count := sum(isinstance(m, kind) for m in model.modules()):
            parts.append(f"{count} live {'group' if kind is nn.GroupNorm else 'layer'} normalisations")
    return "; ".join(parts)
