"""A small detector that detects, as a checkpoint, canvases to run it on, and single modules as ONNX."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from twin import conditioned_model, smooth_images

from directdet.infer.preprocess import Preprocess
from directdet.models.build import describe_model
from directdet.models.checkpoint import save_checkpoint
from directdet.models.two_stage.config import RCNNConfig

SIZE = (128, 160)


def conditioned_checkpoint(path, masks=True, seed=0):
    config = RCNNConfig(
        4,
        backbone="resnet18",
        width=16,
        fpn_channels=32,
        masks=masks,
        box_convs=1,
        box_features=32,
        mask_convs=1,
        mask_channels=16,
        test_pre_nms=100,
        test_proposals=60,
        candidates=100,
        detections=30,
    )
    model = conditioned_model(config, SIZE, seed)
    content = {
        "model_config": describe_model(config),
        "model": model.state_dict(),
        "classes": ["disk", "square", "triangle", "star"],
        "category_ids": [1, 2, 4, 7],
        "preprocess": Preprocess(size=SIZE).to_dict(),
        "recipe": "test",
        "phase": "finetune",
    }
    save_checkpoint(path, content)
    return model


def canvases(count, size, seed, preprocess):
    """uint8 [count, H, W, 3] BGR of soft blobs, and exactly those normalised: a float32 tensor [count, 3, H, W]."""
    values = smooth_images(count, size, seed).numpy()
    pixels = np.clip(255 * (values * 0.225 + 0.45), 0, 255).astype(np.uint8)
    pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)[..., ::-1])
    return pixels, preprocess.normalise(pixels)


def write(module: torch.nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Path:
    """A module of batches as ONNX, its batch open."""
    batch = {0: torch.export.Dim("batch", min=1, max=16)}
    torch.onnx.export(
        module.eval(), inputs, str(path), dynamo=True, opset_version=18, dynamic_shapes=tuple([batch] * len(inputs))
    )
    return path


def run(path: Path, runtime: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of an ONNX file in a runtime, fp32."""
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return [np.asarray(value) for value in session.run(None, dict(zip(names, arrays, strict=True)))]
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(arrays)
    return [np.array(results[output]) for output in compiled.outputs]
