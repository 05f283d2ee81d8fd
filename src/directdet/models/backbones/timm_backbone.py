"""Feature backbones of timm (pytorch-image-models), with random weights: `--set model.backbone=timm:NAME`.

An extra: `pip install "directdet[timm]"`. Channels and strides are asked of timm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from directdet.common.errors import MissingLibraryError
from directdet.common.settings import SettingError, nearest
from directdet.models.backbones.backbone import Backbone


class TimmBackbone(Backbone):
    """forward(images [N, 3, H, W]) -> maps by name, finest first.

    levels: the stride of each map, by name.

    Raises:
        SettingError: timm knows no such network, or it has no map of one of these strides.
    """

    def __init__(self, name: str, levels: dict[str, int]):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            remedy = 'pip install "directdet[timm]"'
            raise MissingLibraryError(f"model.backbone: timm:{name} needs timm ({error}); {remedy}") from None
        if not timm.is_model(name):
            hint = nearest(name, timm.list_models(), "; timm.list_models() names them")
            raise SettingError(f"model.backbone: timm has no network {name!r}{hint}")
        try:
            known: Any = timm.create_model(name, features_only=True, pretrained=False).feature_info
            strides, places = known.reduction(), list(known.out_indices)  # timm counts some from 1
        except Exception as error:  # whatever a network without maps of several sizes makes timm raise
            raise SettingError(f"model.backbone: timm:{name} gives no feature maps ({error}); choose another") from None
        missing = [stride for stride in levels.values() if stride not in strides]
        if missing:
            raise SettingError(
                f"model.backbone: timm:{name} has maps of strides {', '.join(map(str, strides))}, none of stride "
                f"{missing[0]}, which this detector needs; choose another"
            )
        # Of several maps of one stride the last has seen most.
        wanted = [places[len(strides) - 1 - strides[::-1].index(stride)] for stride in levels.values()]
        self.body = timm.create_model(name, features_only=True, pretrained=False, out_indices=wanted)
        info: Any = self.body.feature_info
        self.channels = dict(zip(levels, info.channels(), strict=True))
        self.strides = dict(levels)
        split_activations(self.body)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.channels, self.body(images), strict=True))


def split_activations(module: nn.Module) -> None:
    """Turn timm's batch normalisations with an activation inside into one after the other, in place.

    Fixed, synchronised and folded normalisation work on plain ones.
    """
    for name, child in list(module.named_children()):
        activation = getattr(child, "act", None)
        if isinstance(child, nn.BatchNorm2d) and activation is not None:
            norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
            norm.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, nn.Sequential(norm, getattr(child, "drop", nn.Identity()), activation))
        else:
            split_activations(child)


def timm_backbone(name: str, levels: dict[str, int], width: int | None = None, norm: str = "bn") -> TimmBackbone:
    """timm's network `name`; see TimmBackbone. SettingError for a width or another normalisation than its own."""
    if width is not None:
        raise SettingError(f"model.width: timm:{name} comes in its own width only; leave it out")
    if norm != "bn":
        raise SettingError(f"model.norm: timm:{name} keeps the normalisation it is made with; leave norm at bn")
    return TimmBackbone(name, levels)
