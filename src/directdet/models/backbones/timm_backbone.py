"""Feature backbones of timm (pytorch-image-models), with random weights: `--set model.backbone=timm:NAME`.

An optional extra: `pip install "directdet[timm]"`. Channels and strides are those that timm reports.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from directdet.common.errors import MissingLibraryError
from directdet.common.settings import SettingError, nearest
from directdet.models.backbones.backbone import Backbone


class TimmBackbone(Backbone):
    """forward(images [N, 3, H, W]) -> maps by name, finest first.

    Args:
        levels: the stride of each map, by name.

    Raises:
        MissingLibraryError: timm is not installed.
        SettingError: timm has no such network, or the network has no map of one of these strides.
    """

    def __init__(self, name: str, levels: dict[str, int]):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            remedy = 'pip install "directdet[timm]"'
            raise MissingLibraryError(f"model.backbone: timm:{name} needs timm ({error}); {remedy}") from None
        if not timm.is_model(name):
            hint = nearest(name, timm.list_models(), "; timm.list_models() lists them")
            raise SettingError(f"model.backbone: timm has no network {name!r}{hint}")
        try:
            known: Any = timm.create_model(name, features_only=True, pretrained=False).feature_info
            strides, places = known.reduction(), list(known.out_indices)  # out_indices start at 1 in some networks
        except Exception as error:  # depends on the network, if it has no maps of several sizes
            raise SettingError(
                f"model.backbone: timm:{name} does not return feature maps ({error}); choose another"
            ) from None
        missing = [stride for stride in levels.values() if stride not in strides]
        if missing:
            raise SettingError(
                f"model.backbone: timm:{name} has maps of strides {', '.join(map(str, strides))}, none of stride "
                f"{missing[0]}, which this detector needs; choose another"
            )
        # Of several maps with the same stride, the last has passed through the most layers.
        wanted = [places[len(strides) - 1 - strides[::-1].index(stride)] for stride in levels.values()]
        self.body = timm.create_model(name, features_only=True, pretrained=False, out_indices=wanted)
        info: Any = self.body.feature_info
        self.channels = dict(zip(levels, info.channels(), strict=True))
        self.strides = dict(levels)
        split_activations(self.body)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.channels, self.body(images), strict=True))


def split_activations(module: nn.Module) -> None:
    """Replace timm's combined norm-and-activation layers by a plain norm followed by the activation, in place.

    Fixing, synchronising and folding batch normalisation work on plain BatchNorm2d modules.
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
    """timm's network `name`; see TimmBackbone. Raises SettingError for any `width` and for a `norm` other than "bn"."""
    if width is not None:
        raise SettingError(f"model.width: timm:{name} has a fixed width; leave this setting out")
    if norm != "bn":
        raise SettingError(f"model.norm: timm:{name} has its own normalisation; leave norm at bn")
    return TimmBackbone(name, levels)
