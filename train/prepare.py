"""A model made ready for a phase: weights loaded, batch normalisation live or fixed, stages frozen."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..errors import UserError
from ..models.checkpoint import load_checkpoint
from ..models.norm import FixedBatchNorm2d, fix_batch_norm, has_statistics
from .recipes import Phase

# Below this, a batch normalisation's statistics are too noisy to train with (ScratchDet issue 8, mmdetection 1468).
SMALL_BN_BATCH = 8
CLASS_LAYERS = ("box_predictor.", "mask_predictor.mask_fcn_logits.")


@dataclass(frozen=True)
class Loaded:
    """What came out of an --init file: parameters and buffers taken, and those of the model it did not have."""

    path: Path
    taken: int
    skipped: tuple[str, ...]


def load_weights(model: nn.Module, path: Path, classes: tuple[str, ...]) -> Loaded:
    """Load a whole detector's weights into `model`, by name and shape; what does not fit is skipped and named.

    The backbone has to fit entirely: half a backbone is a mistake, other `classes` are not. Then the layers that have
    outputs of each class stay as they are, even where their number happens to be the same.
    """
    checkpoint, own = load_checkpoint(path), model.state_dict()
    state = checkpoint["model"]
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if tuple(checkpoint["classes"]) != tuple(classes):
        fitting = {name: value for name, value in fitting.items() if not name.startswith(CLASS_LAYERS)}
    skipped = tuple(name for name in own if name not in fitting)
    if any(name.startswith("backbone.") for name in skipped):
        name = next(name for name in skipped if name.startswith("backbone."))
        raise UserError(f"{path}: {name} does not fit this recipe's backbone; use a checkpoint of the same recipe")
    model.load_state_dict(fitting, strict=False)
    return Loaded(path, len(fitting), skipped)


def apply_norm(model: nn.Module, phase: Phase, trained: bool = False) -> None:
    """Fix batch normalisation and freeze stages as the phase says. `trained`: do not ask whether the weights are.

    Raises UserError where that would freeze weights that are still random: such a network cannot learn, and does not
    say so.
    """
    if phase.norm == "fixed" or phase.frozen_stages >= 0:
        what = "fixed batch normalisation" if phase.norm == "fixed" else f"frozen_stages={phase.frozen_stages}"
        if not (trained or has_statistics(model)):
            raise UserError(
                f"{phase.name}: {what} would freeze layers that still hold random weights; give trained ones with "
                "--init FILE, or run the pretrain phase first"
            )
    if phase.norm == "fixed":
        fix_batch_norm(model)
    for modules in model.backbone.stages()[: phase.frozen_stages + 1]:
        for module in modules:
            fix_batch_norm(module)
            module.requires_grad_(False)


def describe_norm(model: nn.Module, phase: Phase) -> str:
    """BN mode and batch in words, for the start banner."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    fixed = sum(isinstance(m, FixedBatchNorm2d) for m in norms)
    parts = []
    if fixed:
        parts.append(f"{fixed} batch normalisations, statistics and affine parameters fixed")
    if live := len(norms) - fixed:
        parts.append(f"{live} batch normalisations, live, over {phase.batch_size} images per device")
        if phase.batch_size < SMALL_BN_BATCH:
            parts[-1] += f" (fewer than {SMALL_BN_BATCH}: expect noisy statistics; gradient accumulation does not help)"
    return "; ".join(parts)
