"""Backbone builders by name. Each takes (width, or None for the published width; norm, "bn" or "gn").

The backbones of SSD, and the single-map backbone of two-stage detectors, also take norm="none".
"""

from collections.abc import Callable

from directdet.common.settings import SettingError
from directdet.models.backbones.backbone import Backbone
from directdet.models.backbones.cspnext import CSPNEXTS
from directdet.models.backbones.dsod import dsod
from directdet.models.backbones.names import NAMES, TIMM, Kind, check_backbone
from directdet.models.backbones.resnet import resnet18, resnet50, resnet101
from directdet.models.backbones.root_resnet import SSD_RESNETS
from directdet.models.backbones.swin import swin_t
from directdet.models.backbones.timm_backbone import timm_backbone
from directdet.models.backbones.vgg import vgg16, vgg16_conv5

Build = Callable[[int | None, str], Backbone]

BACKBONES: dict[str, Build] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "swin_t": swin_t,
    **CSPNEXTS,
}
SSD_BACKBONES: dict[str, Build] = {"vgg16": vgg16, "dsod": dsod, **SSD_RESNETS}
TABLES: dict[Kind, dict[str, Build]] = {
    "pyramid": BACKBONES,
    "single_map": {"vgg16": vgg16_conv5},
    "ssd": SSD_BACKBONES,
}
# The maps requested from timm, and their strides.
PYRAMID_LEVELS = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
SSD_LEVELS = {"s8": 8, "s16": 16}


def build_backbone(kinds: tuple[Kind, ...], name: str, width: int | None = None, norm: str = "bn") -> Backbone:
    """Build the backbone called `name` that is of one of these kinds; see names.Kind.

    Raises:
        SettingError: no such backbone, or it does not support this width or normalisation.
    """
    check_backbone("model.backbone", name, *kinds)
    if name.startswith(TIMM):
        levels = PYRAMID_LEVELS if "pyramid" in kinds else SSD_LEVELS
        return timm_backbone(name.removeprefix(TIMM), levels, width, norm)
    build = next(TABLES[kind][name] for kind in kinds if name in TABLES[kind])
    return build(width, norm)


def add_backbone(name: str, build: Build, kind: Kind = "pyramid") -> None:
    """Register a backbone from outside the package under a new name, for `--set model.backbone=NAME`.

    Args:
        build: a function of (width, or None for the default; norm, "bn" or "gn") that returns a Backbone, and raises
            SettingError for values it does not support.
        kind: which maps it returns; see names.Kind.

    Raises:
        SettingError: the name is already taken.
    """
    if name in TABLES[kind] or name.startswith(TIMM):
        raise SettingError(f"backbone {name!r}: this name is already taken; choose another")
    TABLES[kind][name] = build
    NAMES[kind].append(name)
