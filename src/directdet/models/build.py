"""Detectors by name: from a plain dictionary, as a checkpoint keeps it, to a network and what belongs to it."""

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from torch import Tensor, nn

from directdet.models.backbones.builders import BACKBONES, SSD_BACKBONES, TWO_STAGE_BACKBONES
from directdet.models.parts.targets import RandomKeys, Targets, random_keys
from directdet.models.retinanet.deploy import RetinaNetDeploy
from directdet.models.retinanet.loss import retinanet_losses
from directdet.models.retinanet.network import RetinaNet, RetinaNetConfig
from directdet.models.ssd.deploy import SSDDeploy
from directdet.models.ssd.loss import ssd_losses
from directdet.models.ssd.network import SSD, SSDConfig
from directdet.models.two_stage.cascade import Cascade, CascadeConfig
from directdet.models.two_stage.cascade_deploy import CascadeDeploy
from directdet.models.two_stage.cascade_loss import cascade_losses
from directdet.models.two_stage.deploy import RCNNDeploy
from directdet.models.two_stage.loss import rcnn_losses
from directdet.models.two_stage.network import RCNN, RCNNConfig


class Architecture(NamedTuple):
    """The parts of a detector.

    config: a frozen dataclass with num_classes, backbone, masks and the thresholds. network(config): a module whose
    forward(images [N, 3, H, W]) gives raw maps. losses(model, raw, targets, draw) -> (losses by name, counts to watch,
    "positives" among them). deploy(model, (height, width), portable): what is evaluated and exported, see postprocess.
    backbones: what it may be built on, by name.
    """

    config: type
    network: Callable[[Any], nn.Module]
    losses: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]
    deploy: Callable[..., nn.Module]
    backbones: dict[str, Callable[..., nn.Module]] = BACKBONES


DETECTORS = {
    "rcnn": Architecture(RCNNConfig, RCNN, rcnn_losses, RCNNDeploy, TWO_STAGE_BACKBONES),
    "cascade": Architecture(CascadeConfig, Cascade, cascade_losses, CascadeDeploy, TWO_STAGE_BACKBONES),
    "retinanet": Architecture(RetinaNetConfig, RetinaNet, retinanet_losses, RetinaNetDeploy),
    "ssd": Architecture(SSDConfig, SSD, ssd_losses, SSDDeploy, SSD_BACKBONES),
}


def build_model(config: dict) -> nn.Module:
    """The network that `config` describes: {"detector": name, **fields of its configuration}.

    Raises ValueError for an unknown detector, backbone or field.
    """
    settings = dict(config)
    name = settings.pop("detector", None)
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; there are {', '.join(DETECTORS)}")
    config_type, backbones = DETECTORS[name].config, DETECTORS[name].backbones
    unknown = settings.keys() - {f.name for f in fields(config_type)}
    if unknown:
        raise ValueError(f"unknown {name} setting {sorted(unknown)[0]!r}")
    # Checkpoints and JSON know lists only.
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    backbone = settings.get("backbone", config_type.backbone)
    if backbone not in backbones:
        raise ValueError(f"unknown backbone {backbone!r}; there are {', '.join(backbones)}")
    return DETECTORS[name].network(config_type(**settings))


def describe_model(config: Any) -> dict:
    """The dictionary build_model() takes, made of plain values that JSON and weights_only loading accept."""
    name = next(name for name, parts in DETECTORS.items() if parts.config is type(config))
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    return {"detector": name, **settings}


def parts_of(model: nn.Module) -> Architecture:
    """The parts that belong to a network of build_model()."""
    return next(parts for parts in DETECTORS.values() if parts.config is type(model.config))


def losses_of(
    model: nn.Module, images: Tensor, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward pass over normalised images [N, 3, H, W] and its losses; see Architecture.losses."""
    return parts_of(model).losses(model, model(images), targets, draw)


def deploy_model(model: nn.Module, size: tuple[int, int], portable: bool = False) -> nn.Module:
    """The deployed form of a network for inputs of `size` (height, width).

    ValueError unless they are multiples of 32, or for an SSD its own size.
    """
    return parts_of(model).deploy(model, size, portable)
