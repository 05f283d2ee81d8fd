"""Detectors by name: from a plain dictionary, as a checkpoint keeps it, to a network."""

from dataclasses import asdict, fields

from .rcnn import RCNN, RCNNConfig
from .resnet import BACKBONES

DETECTORS = {"rcnn": (RCNNConfig, RCNN)}


def build_model(config: dict) -> RCNN:
    """The network that `config` describes: {"detector": name, **fields of its configuration}.

    Raises ValueError for an unknown detector, backbone or field.
    """
    settings = dict(config)
    name = settings.pop("detector", None)
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; there are {', '.join(DETECTORS)}")
    config_type, network = DETECTORS[name]
    unknown = settings.keys() - {f.name for f in fields(config_type)}
    if unknown:
        raise ValueError(f"unknown {name} setting {sorted(unknown)[0]!r}")
    if "anchor_ratios" in settings:
        settings["anchor_ratios"] = tuple(settings["anchor_ratios"])
    backbone = settings.get("backbone", config_type.backbone)
    if backbone not in BACKBONES:
        raise ValueError(f"unknown backbone {backbone!r}; there are {', '.join(BACKBONES)}")
    return network(config_type(**settings))


def describe_model(config: RCNNConfig) -> dict:
    """The dictionary build_model() takes, made of plain values that JSON and weights_only loading accept."""
    settings = asdict(config)
    settings["anchor_ratios"] = list(config.anchor_ratios)
    return {"detector": "rcnn", **settings}
