"""Detectors by name: networks, losses and deployed forms, built from the plain dictionaries stored in checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from directdet.common.settings import SettingError
from directdet.models.backbones.names import Kind
from directdet.models.configs import CONFIGS, make_config
from directdet.models.montage.loss import montage_losses
from directdet.models.montage.network import MontageNet
from directdet.models.parts.fold import Folding, conv_norm_pairs, fold_batch_norm
from directdet.models.parts.network import Network
from directdet.models.parts.postprocess import Looping
from directdet.models.parts.targets import RandomKeys, Targets, random_keys
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.retinanet.deploy import RetinaNetDeploy
from directdet.models.retinanet.loss import retinanet_losses
from directdet.models.retinanet.network import RetinaNet
from directdet.models.rtmdet.config import RTMDetConfig, RTMDetInsConfig
from directdet.models.rtmdet.deploy import RTMDetDeploy
from directdet.models.rtmdet.loss import rtmdet_losses
from directdet.models.rtmdet.network import RTMDet
from directdet.models.rtmdet_ins.deploy import RTMDetInsDeploy
from directdet.models.rtmdet_ins.loss import rtmdet_ins_losses
from directdet.models.rtmdet_ins.network import RTMDetIns
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.deploy import SSDDeploy
from directdet.models.ssd.loss import ssd_losses
from directdet.models.ssd.network import SSD
from directdet.models.two_stage.cascade import Cascade
from directdet.models.two_stage.cascade_deploy import CascadeDeploy
from directdet.models.two_stage.cascade_loss import cascade_losses
from directdet.models.two_stage.config import CascadeConfig, RCNNConfig
from directdet.models.two_stage.deploy import RCNNDeploy
from directdet.models.two_stage.flat_masks import flatten_mask_predictors
from directdet.models.two_stage.loss import rcnn_losses
from directdet.models.two_stage.network import RCNN

# Pixels of a run that only shows what follows what: the coarsest map, of stride 128, must be more than a cell, which
# group normalisation with a channel a group refuses.
SMALL = (256, 256)


class Architecture(NamedTuple):
    """The parts of a detector.

    config: a frozen, self-validating dataclass with num_classes, backbone, masks and the thresholds.
    network(config): a models.parts.network.Network whose forward(images [N, C, H, W]) returns raw maps.
    losses(model, raw, targets, draw) -> (losses by name, counts to monitor, including "positives").
    deploy(model, (height, width), portable): the module that is evaluated and exported; see postprocess.
    backbones: the kinds of backbone it can be built on.
    weights: whether the losses of positives are multiplied by `targets.weights`; else data with scores is refused.
    """

    config: type
    network: Callable[[Any], Network]
    losses: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]
    deploy: Callable[..., nn.Module]
    backbones: tuple[Kind, ...] = ("pyramid",)
    weights: bool = False


DETECTORS = {
    "rcnn": Architecture(RCNNConfig, RCNN, rcnn_losses, RCNNDeploy, ("pyramid", "single_map"), weights=True),
    "cascade": Architecture(
        CascadeConfig, Cascade, cascade_losses, CascadeDeploy, ("pyramid", "single_map"), weights=True
    ),
    "retinanet": Architecture(RetinaNetConfig, RetinaNet, retinanet_losses, RetinaNetDeploy, weights=True),
    "rtmdet": Architecture(RTMDetConfig, RTMDet, rtmdet_losses, RTMDetDeploy, weights=True),
    "rtmdet_ins": Architecture(RTMDetInsConfig, RTMDetIns, rtmdet_ins_losses, RTMDetInsDeploy, weights=True),
    "ssd": Architecture(SSDConfig, SSD, ssd_losses, SSDDeploy, ("ssd",), weights=True),
}


def add_detector(name: str, architecture: Architecture) -> None:
    """Register a detector from outside the package under a new name, for Recipe(detector=NAME).

    Raises:
        SettingError: the name is already taken.
    """
    if name in DETECTORS:
        raise SettingError(f"detector {name!r}: this name is already taken; choose another")
    DETECTORS[name] = architecture
    CONFIGS[name] = architecture.config


def build_model(description: Mapping[str, Any]) -> Network:
    """Build the network described by {"detector": name, "num_classes": number, **settings}.

    Raises:
        SettingError: an unknown detector, backbone or setting, or an invalid value; suggests the nearest valid one.
    """
    settings = dict(description)
    name, classes = settings.pop("detector", None), settings.pop("num_classes", None)
    config = make_config(name, classes, settings)
    return DETECTORS[name].network(config)


def describe_model(config: Any) -> dict:
    """The dictionary that build_model() takes; its plain values can be stored as JSON and loaded with weights_only."""
    name = next(name for name, parts in DETECTORS.items() if parts.config is type(config))
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    return {"detector": name, **settings}


def architecture_of(model: Network) -> Architecture:
    """The architecture of a network returned by build_model()."""
    return next(parts for parts in DETECTORS.values() if parts.config is type(model.config))


def losses_of(
    model: Network, images: Tensor, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run one forward pass over normalised images [N, C, H, W] and compute its losses; see Architecture.losses."""
    if isinstance(model, MontageNet):
        return montage_losses(model, model(images), targets)
    return architecture_of(model).losses(model, model(images), targets, draw)


def deploy_model(model: Network, size: tuple[int, int], portable: bool = False, loops: bool = False) -> nn.Module:
    """The deployed form of a network for inputs of `size` (height, width).

    loops: an exported graph computes masks, and compares SSD's candidates, in a loop, as many as a picture needs; see
        `masks_of_detections` and ssd.deploy.select_in_rounds.

    Raises:
        ValueError: the network cannot take this size: not multiples of 32 or, for an SSD, not its fixed size.
    """
    deployed = architecture_of(model).deploy(model, size, portable)
    if isinstance(deployed, Looping):
        deployed.loops = loops
    return deployed


def fold_model(model: Network) -> Folding:
    """Fold the batch normalisations of a network in evaluation mode into its convolutions, in place.

    The deployed form is run once to see the pairs, since heads that look at boxes are not part of the raw maps. The
    transposed convolutions of mask heads become 1x1 convolutions; see flat_masks.
    """
    size = model.input_size() or SMALL
    device = next(model.parameters()).device
    images = torch.randn(1, model.in_channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    folding = fold_batch_norm(model, conv_norm_pairs(deploy_model(model, size).eval(), images))
    flatten_mask_predictors(model)
    return folding
