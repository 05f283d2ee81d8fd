"""The names of the backbones, usable without importing torch. `builders` builds them."""

from typing import Literal

from directdet.common.plugins import load_plugins
from directdet.common.settings import SettingError, nearest

# The maps a backbone returns: a pyramid c2 to c5; a single map; or s8 and s16, the first two maps of SSD.
Kind = Literal["pyramid", "single_map", "ssd"]
# builders.add_backbone adds to these.
NAMES: dict[Kind, list[str]] = {
    "pyramid": [
        "resnet18",
        "resnet50",
        "resnet101",
        "swin_t",
        "cspnext_tiny",
        "cspnext_s",
        "cspnext_m",
        "cspnext_l",
    ],
    "single_map": ["vgg16"],
    "ssd": [
        "vgg16",
        "dsod",
        "resnet18",
        "resnet34",
        "resnet101",
        "resnet18_a",
        "resnet18_b",
        "root_resnet18",
        "root_resnet34",
        "resnet18_s2_1x3x3",
        "resnet18_s2_2x3x3",
        "resnet18_s2_3x3x3",
        "resnet18_s1_1x3x3",
        "resnet18_s1_2x3x3",
        "resnet18_s1_4x3x3",
        "resnet18_s1_5x3x3",
    ],
}
TIMM = "timm:"  # prefix of names of timm models


def check_backbone(setting: str, backbone: str, *kinds: Kind) -> None:
    """Raise SettingError, suggesting a similar name, unless a backbone of these kinds has this name.

    Plug-ins are loaded if the name is unknown; timm names are accepted here and checked when the model is built.
    """
    if backbone.startswith(TIMM):
        return
    if not any(backbone in NAMES[kind] for kind in kinds):
        load_plugins()
    known = [name for kind in kinds for name in NAMES[kind]]
    if backbone not in known:
        raise SettingError(
            f"{setting}: {backbone!r} is not one of {', '.join(known)}, {TIMM}NAME{nearest(backbone, known)}; load a "
            "file that defines another one with --code FILE"
        )
