"""A slim network of every family that detects, and its graph in any precision."""

import numpy as np
import onnxruntime
import ssd_twin
import torch
from retina_twin import conditioned_model as conditioned_retinanet
from torch import Tensor, nn
from twin import conditioned_model as conditioned_rcnn
from twin import smooth_images
from twin_cascade import conditioned_cascade

from directdet.export.onnx_graph import OPSET, _quiet, fold
from directdet.export.precision import BF16_OPSET, reduce_precision
from directdet.models.build import deploy_model
from directdet.models.parts.postprocess import output_names
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.ssd.config import SSDConfig
from directdet.models.two_stage.config import RCNNConfig

SIZE = (128, 160)
FEW = {"test_pre_nms": 100, "test_proposals": 60, "candidates": 100, "detections": 30, "box_features": 64}
MASK_RCNN = RCNNConfig(4, "resnet18", width=16, fpn_channels=32, box_convs=1, mask_convs=1, mask_channels=16, **FEW)


def _rcnn(**changes):
    config = RCNNConfig(**{**MASK_RCNN.__dict__, **changes})
    return lambda: conditioned_rcnn(config, SIZE)


def _ssd(backbone, **settings):
    return lambda: ssd_twin.conditioned_model(SSDConfig(4, backbone, 16, **settings))


NETWORKS = {
    "mask_rcnn": _rcnn(),
    "mask_rcnn_gn": _rcnn(norm="gn"),
    "mask_rcnn_swin": _rcnn(backbone="swin_t", width=32),
    "cascade_mask_rcnn": lambda: conditioned_cascade(conditioned_rcnn(MASK_RCNN, SIZE), SIZE),
    "faster_rcnn_vgg16": _rcnn(
        backbone="vgg16", masks=False, pyramid=False, box_convs=0, anchor_scales=(1.5, 3.0, 6.0)
    ),
    "retinanet": lambda: conditioned_retinanet(
        RetinaNetConfig(4, "resnet18", 16, fpn_channels=32, head_convs=1, test_pre_nms=100, candidates=200), SIZE
    ),
    "ssd_vgg16_plain": _ssd("vgg16", norm="none", head_norm=False, l2_norm=True),
    "ssd_resnet": _ssd("resnet18"),
    "ssd_root_resnet": _ssd("root_resnet18", extras="residual"),
    "dsod": _ssd("dsod", extras="dsod"),
}


def size_of(model: nn.Module) -> tuple[int, int]:
    return (model.config.size,) * 2 if isinstance(model.config, SSDConfig) else SIZE


def write(model: nn.Module, precision: str, path, images: Tensor | None = None, batch: int = 1) -> list[str]:
    """The graph of `model`; returns what reduce_precision kept in float32."""
    size = size_of(model)
    deployed = deploy_model(fold(model, size)[0], size, portable=True).eval()
    kept = reduce_precision(deployed, precision, images) if precision != "fp32" else []
    example = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            deployed,
            (example,),
            str(path),
            dynamo=True,
            opset_version=BF16_OPSET if precision == "bf16" else OPSET,
            input_names=["images"],
            output_names=list(output_names(model.config)),
            external_data=False,
            verbose=False,
        )
    return kept


def run_onnxruntime(path, images: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def run_openvino(path, images: np.ndarray, hint: str = "f32") -> list[np.ndarray]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1} if hint else {}
    results = openvino.compile_model(str(path), "CPU", settings)({0: images})
    return [np.array(results[output]) for output in results]


def matched(expected, found, box=2.0, score=0.02) -> tuple[float, float, float, float, int]:
    """Share of detections with a partner, over all images; largest differences among those: box, score, mask."""
    pairs, counted, boxes, scores, masks = 0, 0, [0.0], [0.0], [0.0]
    for i in range(len(expected[0])):
        n, m = int(expected[0][i, 0]), int(found[0][i, 0])
        distance = np.abs(expected[1][i, :n, None] - found[1][i, None, :m]).max(-1)
        gap = np.abs(expected[2][i, :n, None] - found[2][i, None, :m])
        near = (distance <= box) & (gap <= score) & (expected[3][i, :n, None] == found[3][i, None, :m])
        cost = np.where(near, distance / box + gap / score, np.inf)
        counted += max(n, m)
        while cost.size and np.isfinite(cost.min()):
            a, b = np.unravel_index(cost.argmin(), cost.shape)
            pairs += 1
            boxes.append(distance[a, b])
            scores.append(gap[a, b])
            if len(expected) > 4:
                masks.append(np.abs(expected[4][i, a] - found[4][i, b]).max())
            cost[a], cost[:, b] = np.inf, np.inf
    return pairs / max(counted, 1), float(max(boxes)), float(max(scores)), float(max(masks)), counted


def images_for(model: nn.Module, count: int, seed: int) -> Tensor:
    return smooth_images(count, size_of(model), seed)
