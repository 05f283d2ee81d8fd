"""Backbone builders by name. Each takes (width, or None for the published width; norm, "bn" or "gn").

The backbones of SSD, and the single-map backbone of two-stage detectors, also take norm="none".
"""

from collections.abc import Callable

import torch
from torch import nn

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


def build_backbone(
    kinds: tuple[Kind, ...], name: str, width: int | None = None, norm: str = "bn", in_channels: int = 3
) -> Backbone:
    """Build the backbone called `name` that is of one of these kinds, for pictures of `in_channels`; see names.Kind.

    Raises:
        SettingError: no such backbone, or it does not support this width or normalisation.
    """
    check_backbone("model.backbone", name, *kinds)
    if name.startswith(TIMM):
        levels = PYRAMID_LEVELS if "pyramid" in kinds else SSD_LEVELS
        backbone = timm_backbone(name.removeprefix(TIMM), levels, width, norm)
    else:
        backbone = next(TABLES[kind][name] for kind in kinds if name in TABLES[kind])(width, norm)
    return backbone if in_channels == 3 else widen_stem(backbone, in_channels)


def widen_stem(backbone: Backbone, in_channels: int) -> Backbone:
    """Give the first convolution, which takes RGB, `in_channels` channels, in place.

    Its weights are drawn anew, from a normal distribution with the deviation that the backbone chose for three
    channels, scaled so that the sum over all channels has the same deviation.

    Raises:
        SettingError: no convolution of this backbone takes three channels.
    """
    stems = [module for module in backbone.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    if not stems or stems[0].groups != 1:
        raise SettingError(f"model.in_channels: {in_channels}: this backbone takes RGB alone; choose another")
    stem = stems[0]
    deviation = stem.weight.detach().std() * (3 / in_channels) ** 0.5
    shape = (stem.out_channels, in_channels, *stem.kernel_size)
    stem.in_channels = in_channels
    stem.weight = nn.Parameter(torch.randn(shape, device=stem.weight.device) * deviation)
    backbone.imagenet = None
    return backbone


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
