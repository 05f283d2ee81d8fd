"""Detector configurations by name: the settings allowed in a recipe's `model`. Does not import torch."""

from dataclasses import fields
from typing import Any

from directdet.common.plugins import load_plugins
from directdet.common.settings import SettingError, check_key, nearest
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.rtmdet.config import RTMDetConfig, RTMDetInsConfig
from directdet.models.ssd.config import SSDConfig
from directdet.models.two_stage.config import CascadeConfig, RCNNConfig

# build.add_detector adds to these.
CONFIGS: dict[str, type] = {
    "rcnn": RCNNConfig,
    "cascade": CascadeConfig,
    "retinanet": RetinaNetConfig,
    "rtmdet": RTMDetConfig,
    "rtmdet_ins": RTMDetInsConfig,
    "ssd": SSDConfig,
}


def config_of(detector: str) -> type:
    """The configuration dataclass of a detector, including detectors defined by plug-ins.

    Raises:
        SettingError: no detector has that name; suggests the most similar one.
    """
    if detector not in CONFIGS:
        load_plugins()
    if detector not in CONFIGS:
        raise SettingError(
            f"detector: {detector!r} is not one of {', '.join(CONFIGS)}{nearest(detector, CONFIGS)}; load a file "
            "that defines another one with --code FILE"
        )
    return CONFIGS[detector]


def make_config(detector: str, num_classes: int, settings: dict[str, Any]) -> Any:
    """The configuration of a detector for `num_classes` classes; `settings` override its defaults.

    Raises:
        SettingError: an unknown detector or setting, or an invalid value; suggests the nearest valid one.
    """
    config = config_of(detector)
    known = [field.name for field in fields(config) if field.name != "num_classes"]
    for name in settings:
        check_key(f"model.{name}", name, known)
    return config(num_classes=num_classes, **settings)
