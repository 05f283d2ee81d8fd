"""The configurations of the detectors by name: what a recipe's `model` may hold. Imports no torch."""

from dataclasses import fields
from typing import Any

from directdet.common.plugins import load_plugins
from directdet.common.settings import SettingError, check_key, nearest
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.ssd.config import SSDConfig
from directdet.models.two_stage.config import CascadeConfig, RCNNConfig

# build.add_detector adds to these.
CONFIGS: dict[str, type] = {
    "rcnn": RCNNConfig,
    "cascade": CascadeConfig,
    "retinanet": RetinaNetConfig,
    "ssd": SSDConfig,
}


def config_of(detector: str) -> type:
    """The dataclass that configures a detector, a plug-in's too.

    Raises:
        SettingError: there is no detector of that name; with the nearest.
    """
    if detector not in CONFIGS:
        load_plugins()
    if detector not in CONFIGS:
        raise SettingError(
            f"detector: {detector!r} is not one of {', '.join(CONFIGS)}{nearest(detector, CONFIGS)}; a file that "
            "defines another is given with --code FILE"
        )
    return CONFIGS[detector]


def make_config(detector: str, num_classes: int, settings: dict[str, Any]) -> Any:
    """The configuration of a detector for so many classes; `settings` are those that differ from its defaults.

    Raises:
        SettingError: an unknown detector or setting, or a value that cannot be; with the nearest that would do.
    """
    config = config_of(detector)
    known = [field.name for field in fields(config) if field.name != "num_classes"]
    for name in settings:
        check_key(f"model.{name}", name, known)
    return config(num_classes=num_classes, **settings)
