"""A model made ready for a phase: weights loaded, batch normalisation set, stages frozen."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from rich.table import Table
from torch import Tensor, nn

from directdet.common.errors import UserError
from directdet.models.checkpoint import CheckpointError, load_checkpoint
from directdet.models.parts.network import Network
from directdet.models.parts.norm import FixedBatchNorm2d, fix_batch_norm, has_statistics, sync_batch_norm
from directdet.recipes.recipe import PARTS, Part, Phase
from directdet.train import distributed

# Below this, a batch normalisation's statistics are too noisy to train with (ScratchDet issue 8, mmdetection 1468).
SMALL_BN_BATCH = 8
IMAGENET = "imagenet"


@dataclass(frozen=True)
class Loaded:
    """What came out of the weights a phase starts from: by part, tensors taken and (name, why) of those left."""

    source: str
    taken: dict[str, int]
    left: dict[str, tuple[tuple[str, str], ...]]

    def count(self) -> int:
        """Tensors taken."""
        return sum(self.taken.values())

    def table(self) -> Table:
        """Part by part: how many were loaded, how many were left as they were, and why."""
        table = Table("part", "loaded", "left", "why", title=f"weights from {self.source}")
        for part, taken in self.taken.items():
            reasons = [why for _, why in self.left[part]]
            counts = ", ".join(f"{reasons.count(why)} {why}" for why in dict.fromkeys(reasons))
            table.add_row(part, str(taken), str(len(reasons)), counts)
        return table


def load_weights(
    model: Network, source: str | Path, classes: tuple[str, ...], parts: tuple[Part, ...] = PARTS
) -> Loaded:
    """Load `parts` of a detector's weights into `model`, by name and shape; what does not fit is left and reported.

    `source` is a checkpoint of ours, a file with the state of a torchvision backbone, or "imagenet" for torchvision's
    ImageNet weights. The backbone has to fit entirely: half a backbone is a mistake, other `classes` are not. Then the
    layers that have outputs of each class stay as they are, even where their number happens to be the same.

    Raises:
        UserError: the source cannot be read, or it holds another backbone.
    """
    own = model.state_dict()
    state, known = _imagenet(model) if str(source) == IMAGENET else _read(Path(source), model)
    present = [part for part in PARTS if part in {model.part_of(name) for name in own}]
    fitting, taken, left = {}, dict.fromkeys(present, 0), {part: [] for part in present}
    for name, value in own.items():
        part = model.part_of(name)
        if part not in parts:
            why = "not asked for"
        elif name not in state:
            why = "not in it"
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
    return Loaded(str(source), taken, {part: tuple(names) for part, names in left.items()})


def _require_backbone(
    model: Network, source: str | Path, state: dict[str, Tensor], left: list[tuple[str, str]]
) -> None:
    """UserError unless the state holds the model's backbone, the whole of it and nothing else of a backbone."""
    optional = tuple(f"backbone.{prefix}" for prefix in model.backbone.unpublished())
    wrong = [
        f"{name} is {why}"
        for name, why in left
        if not name.endswith("num_batches_tracked") and not (optional and name.startswith(optional))
    ]
    own = model.state_dict()  # a deeper network's layers fit, too, as far as there are any here
    wrong += [
        f"{name} is not in this recipe's network" for name in state if name.startswith("backbone.") and name not in own
    ]
    if wrong:
        raise UserError(f"{source}: {wrong[0]}; use weights of this recipe's backbone")


def _read(path: Path, model: Network) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The weights in a file, by our names, and the classes they are of (None: a backbone's, of no classes)."""
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError:
        backbone = _backbone_file(path, model)
        if backbone is None:
            raise
        return backbone, None
    return checkpoint["model"], tuple(checkpoint["classes"])


def _backbone_file(path: Path, model: Network) -> dict[str, Tensor] | None:
    """A plain state_dict, taken for one of torchvision's backbone, by our names; None if the file is something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged or not torch's: load_checkpoint's own error says so
        return None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        return None
    return _by_our_names(model, state)


def _imagenet(model: Network) -> tuple[dict[str, Tensor], None]:
    """torchvision's ImageNet weights of the model's backbone; UserError where there are none or no network."""
    published = model.backbone.imagenet
    if published is None:
        name = model.config.backbone
        raise UserError(f"--init {IMAGENET}: there are no ImageNet weights of {name}; give a file with --init FILE")
    weights = torchvision.models.get_model_weights(published).IMAGENET1K_V1  # as the paper: torchvision's first ones
    try:
        state = weights.get_state_dict(progress=distributed.is_main())
    except (URLError, OSError) as error:
        raise UserError(
            f"--init {IMAGENET}: {weights.url} could not be fetched ({error}); fetch it elsewhere and give the file "
            "with --init FILE"
        ) from None
    return _by_our_names(model, state), None


def _by_our_names(model: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's state of a backbone by the names used here; most have the same."""
    return {f"backbone.{name}": value for name, value in (model.backbone.from_torchvision(state) or state).items()}


def apply_norm(model: Network, phase: Phase, trained: bool, known: bool = True) -> None:
    """Set batch normalisation and freeze stages as the phase says.

    trained: the backbone's weights were loaded. Not `known`: a plan of a run, whose weights are yet to come.

    Raises UserError where that would freeze weights that are still random: such a network cannot learn, and does not
    say so.
    """
    fixed = phase.norm in ("fixed", "affine")
    norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if (fixed and norms) or phase.frozen_stages >= 0:
        what = f"{phase.norm} batch normalisation" if fixed and norms else f"frozen_stages={phase.frozen_stages}"
        if known and (not trained or (norms and not has_statistics(model))):
            raise UserError(
                f"{phase.name}: {what} would freeze layers that still hold random weights; give trained ones with "
                "--init FILE, or run the pretrain phase first"
            )
    if norms and not fixed and phase.batch_size < model.fewest_live_images:
        raise UserError(
            f"{phase.name}.batch_size: {phase.batch_size} is too few: live batch normalisation of this network needs "
            f"{model.fewest_live_images} images at least, as its last map is a single cell"
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
    """Normalisation and its batch in words, for the start banner."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    fixed = [m for m in norms if isinstance(m, FixedBatchNorm2d)]
    affine = sum(m.weight.requires_grad for m in fixed)
    parts = []
    if affine:
        parts.append(f"{affine} batch normalisations, statistics fixed, affine parameters learn")
    if len(fixed) - affine:
        parts.append(f"{len(fixed) - affine} batch normalisations, statistics and affine parameters fixed")
    if live := len(norms) - len(fixed):
        images = phase.batch_size * (distributed.world_size() if phase.norm == "sync" else 1)
        over = "all devices" if phase.norm == "sync" else "one device"
        parts.append(f"{live} batch normalisations, live, over {images} images of {over}")
        if images < SMALL_BN_BATCH:
            parts[-1] += f" (fewer than {SMALL_BN_BATCH}: expect noisy statistics; gradient accumulation does not help)"
        elif phase.accumulate > 1:
            parts[-1] += f" (not over the {phase.accumulate} batches that are accumulated)"
    for kind in (nn.GroupNorm, nn.LayerNorm):
        if count := sum(isinstance(m, kind) for m in model.modules()):
            parts.append(f"{count} {'group' if kind is nn.GroupNorm else 'layer'} normalisations, live")
    return "; ".join(parts)
