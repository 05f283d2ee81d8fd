"""The detectors that speed.py times: random networks that detect, torchvision's twins of them, their layers alone."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import ROOT
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from directdet.infer.preprocess import Preprocess
from directdet.models.build import describe_model
from directdet.models.checkpoint import load_checkpoint, save_checkpoint
from directdet.models.parts.network import Network
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.retinanet.network import RetinaNet
from directdet.models.rtmdet.config import RTMDetConfig
from directdet.models.rtmdet.network import PointNetwork, RTMDet
from directdet.models.rtmdet_ins.network import RTMDetIns
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.network import SSD
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.network import BOX_BINS, MASK_BINS, RCNN

sys.path.insert(0, str(ROOT / "tests"))  # the twins, which prove the networks equal

ORIGINAL_SSD = SSDConfig(80, norm="none", head_norm=False, l2_norm=True)  # the one that torchvision has


@dataclass(frozen=True)
class Subject:
    """A detector: its configuration, a tiny one for tests, and its input's (height, width)."""

    config: SSDConfig | RetinaNetConfig | RCNNConfig | RTMDetConfig
    tiny: SSDConfig | RetinaNetConfig | RCNNConfig | RTMDetConfig | None
    size: tuple[int, int]


SUBJECTS = {
    "ssd300": Subject(ORIGINAL_SSD, replace(ORIGINAL_SSD, num_classes=5, width=8), (300, 300)),
    "retinanet": Subject(RetinaNetConfig(80), None, (448, 448)),
    "mask_rcnn": Subject(RCNNConfig(80), None, (448, 448)),
    "rtmdet_s": Subject(RTMDetConfig(80), None, (640, 640)),
}


def random_model(name: str, tiny: bool = False) -> SSD | RetinaNet | RCNN | RTMDet:
    """A network with random weights that really detects; see twin.conditioned_model."""
    subject = SUBJECTS[name]
    config = subject.tiny if tiny and subject.tiny is not None else subject.config
    if isinstance(config, SSDConfig):
        import ssd_twin

        return ssd_twin.conditioned_model(config)
    if isinstance(config, RetinaNetConfig):
        import retina_twin

        return retina_twin.conditioned_model(config, subject.size)
    if isinstance(config, RTMDetConfig):
        import mmdet_twin

        return mmdet_twin.ours(name.removeprefix("rtmdet_"), config.num_classes)
    import twin

    return twin.conditioned_model(config, subject.size)


def save_random(name: str, path: Path, tiny: bool = False) -> None:
    """`random_model` as a checkpoint."""
    save_untrained(random_model(name, tiny), path, "speed", Preprocess(SUBJECTS[name].size, warp=name == "ssd300"))


def save_untrained(model: Network, path: Path, recipe: str, preprocess: Preprocess) -> None:
    """A network as a checkpoint of a run of `recipe`, with made names of classes."""
    classes = model.config.num_classes
    content = {"model_config": describe_model(model.config), "model": model.state_dict(), "recipe": recipe}
    content |= {"classes": [f"class {i}" for i in range(classes)], "category_ids": list(range(1, classes + 1))}
    save_checkpoint(path, {**content, "preprocess": preprocess.to_dict()})


def save_with(path: Path, target: Path, **changes: int) -> None:
    """The checkpoint `path` with other settings of its network, such as test_proposals."""
    content = load_checkpoint(path)
    content["model_config"] = {**content["model_config"], **changes}
    save_checkpoint(target, content)


def torchvision_run(model: nn.Module, device: str = "cpu") -> Callable[[np.ndarray], object]:
    """torchvision's eager detector with the weights of `model`: from a normalised batch to its detections.

    `model` is moved to the CPU, where the twin is built, before that goes to `device`.
    """
    model = model.cpu()
    if isinstance(model, SSD):
        import ssd_twin

        ssd, size = ssd_twin.build_twin(model).to(device), ssd_twin.SIZE
        ssd.detections_per_img = model.config.detections

        def detect(images: Tensor) -> object:
            features = list(ssd.backbone(images).values())
            priors = ssd.anchor_generator(ImageList(images, [size] * len(images)), features)
            return ssd.postprocess_detections(ssd.head(features), priors, [size] * len(images))

        return partial(_run, detect, device)
    if isinstance(model, RetinaNet):
        import retina_twin

        retinanet, count = retina_twin.build_twin(model).to(device), model.config.detections
        retinanet.detections_per_img = count
        return partial(_run, lambda images: retina_twin.twin_detections(retinanet, images, count), device)
    if not isinstance(model, RCNN):
        raise TypeError(f"torchvision has no {type(model).__name__}")
    import twin as rcnn_twin

    rcnn = rcnn_twin.build_twin(model).to(device)
    return partial(_run, lambda images: rcnn_twin.twin_detections(rcnn, images), device)


def _run(detect: Callable[[Tensor], object], device: str, batch: np.ndarray) -> object:
    with torch.inference_mode():
        return detect(torch.from_numpy(batch).to(device))


class Layers(nn.Module):
    """The network without post-processing: a graph cut at the raw maps.

    The heads of a two-stage detector get pooled RoIs as an input, so that proposals, RoI pooling, NMS and the choice of
    masks are left out as well.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, *pooled: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images)
        is_point = isinstance(self.model, PointNetwork)
        found: tuple[Tensor, ...] = (raw.logits, raw.distances if is_point else raw.deltas)
        if isinstance(self.model, RTMDetIns):
            found += (raw.kernels, raw.prototypes)
        if isinstance(self.model, RCNN):
            found += self.model.predict_boxes(pooled[0])
            if len(pooled) > 1:
                found += (self.model.mask_predictor(self.model.mask_head(pooled[1])),)
        return found


def layer_inputs(model: nn.Module, size: tuple[int, int], slots: int | None = None) -> tuple[Tensor, ...]:
    """Random inputs of `Layers` for one image; slots: pooled boxes of the mask head, None: as many as can be found."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    inputs: tuple[Tensor, ...] = (draw(1, 3, *size),)
    if isinstance(model, RCNN):
        config = model.config
        inputs += (draw(config.test_proposals, model.channels, BOX_BINS, BOX_BINS),)
        inputs += (draw(slots or config.detections, model.channels, MASK_BINS, MASK_BINS),) if config.masks else ()
    return inputs


def count_macs(layers: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulate operations of convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layers(*inputs)
    return counter.get_total_flops() // 2


def write_layers(model: Network, size: tuple[int, int], path: Path, slots: int | None = None) -> int:
    """`Layers` with batch normalisation folded as ONNX; returns its multiply-accumulate operations for one image.

    slots: see `layer_inputs`.
    """
    from directdet.export.onnx_graph import OPSET, fold

    layers, inputs = Layers(fold(model, size)[0]).eval(), layer_inputs(model, size, slots)
    names = ["images", "boxes", "masks"][: len(inputs)]
    with torch.no_grad():
        torch.onnx.export(
            layers,
            inputs,
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            external_data=False,
            verbose=False,
        )
    return count_macs(layers, inputs)
