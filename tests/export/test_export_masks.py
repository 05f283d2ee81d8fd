"""Masks of as many detections as there are: the loop of an exported graph, eager PyTorch, and all of them at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_helpers import run, write
from torch import Tensor, nn
from torch.export import export as trace

from directdet.export.layers import onnx_layers, openvino_layers
from directdet.models.parts.masks import AT_A_TIME, MASK_SIZE, masks_of_detections

ROOM = 23  # not a multiple of AT_A_TIME, so that the last turn goes over columns again
COUNTS = [[0, 0], [1, 0], [0, AT_A_TIME], [AT_A_TIME + 1, 3], [ROOM, ROOM], [ROOM - 1, 0]]


class Masks(nn.Module):
    """scores [N, ROOM] and boxes [N, ROOM, 4] -> masks by layers with weights, of each box alone."""

    def __init__(self, loops: bool):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.line, self.loops = nn.Conv2d(4, 1, 3, padding=1), nn.Linear(4, 4), loops

    def compute(self, boxes: Tensor) -> Tensor:
        maps = self.line(boxes).flatten(0, 1)[:, :, None, None].expand(-1, -1, MASK_SIZE, MASK_SIZE)
        return torch.sigmoid(self.conv(maps)).reshape(*boxes.shape[:2], MASK_SIZE, MASK_SIZE)

    def forward(self, scores: Tensor, boxes: Tensor) -> Tensor:
        return masks_of_detections(self.compute, scores, (boxes,), self.loops)


def detections(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Scores [N, ROOM], best first, of which each row has as many as told, and boxes."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(len(counts), ROOM, 4, generator=generator)
    scores = torch.rand(len(counts), ROOM, generator=generator).sort(1, descending=True).values + 0.01
    return torch.where(torch.arange(ROOM) < torch.tensor(counts)[:, None], scores, 0.0), boxes


def right(module: Masks, scores: Tensor, boxes: Tensor) -> np.ndarray:
    """All masks, then those without a score put to zero."""
    with torch.no_grad():
        return (module.compute(boxes) * (scores > 0)[..., None, None]).numpy()


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(Masks(True), detections([1, 2]), tmp_path_factory.mktemp("masks") / "masks.onnx")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_loop_makes_the_masks_of_any_number_of_detections(looping: Path, runtime: str) -> None:
    for counts in [*COUNTS, [7], [0]]:
        scores, boxes = detections(counts)
        found = run(looping, runtime, [scores.numpy(), boxes.numpy()])[0]
        np.testing.assert_allclose(found, right(Masks(True), scores, boxes), rtol=0, atol=1e-6)


def test_the_loops_turns_follow_the_detections(looping: Path) -> None:
    """A loop whose condition did not end it would be slow, and right."""
    graph = onnx.load(looping).graph
    loop = next(node for node in graph.node if node.op_type == "Loop")
    carried = onnx.helper.make_tensor_value_info(loop.output[0], onnx.TensorProto.INT64, [])
    graph.output.append(carried)
    model = onnx.load(looping)
    model.graph.CopyFrom(graph)
    path = looping.with_name("turns.onnx")
    onnx.save(model, path)
    for counts, turns in (([0, 0], 0), ([1, 0], 1), ([0, AT_A_TIME], 1), ([AT_A_TIME + 1, 3], 2), ([ROOM, 0], 3)):
        scores, boxes = detections(counts)
        assert int(run(path, "onnxruntime", [scores.numpy(), boxes.numpy()])[1]) == turns


def test_layers_in_the_loop_are_told_from_those_that_are_quantised(looping: Path) -> None:
    openvino = pytest.importorskip("openvino")
    for layers in (onnx_layers(onnx.load(looping)), openvino_layers(openvino.Core().read_model(looping))):
        assert "conv" in layers.inside and not layers.labels


@pytest.mark.parametrize("counts", COUNTS)
def test_eager_pytorch_computes_only_those_of_detections(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = Masks(False), []
    scores, boxes = detections(counts)
    expected, compute = right(module, scores, boxes), module.compute
    noted: Callable[[Tensor], Tensor] = lambda boxes: (seen.append(boxes.shape[1]), compute(boxes))[1]  # noqa: E731
    monkeypatch.setattr(module, "compute", noted)
    with torch.no_grad():
        found = module(scores, boxes)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    assert seen == [max(counts)]


@pytest.mark.parametrize("loops", [False, True])
def test_only_a_graph_that_may_loops(loops: bool) -> None:
    found = [str(node.target) for node in trace(Masks(loops), detections([1, 2])).graph.nodes]
    assert ("while_loop" in found) == loops, found
