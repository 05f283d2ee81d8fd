"""SSD's rounds of NMS in an exported graph that loops: any number of survivors, as with room for all of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_helpers import run, write
from torch import Tensor, nn

from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.deploy import AT_A_TIME, select_in_rounds

CONFIG = SSDConfig(3, candidates=120, detections=100)
COUNT = 400  # three rounds, and some candidates that none of them reaches
# Objects of each image: none, one, a turn full of survivors, one more than that, more than there is room for.
OBJECTS = [[0, 1], [AT_A_TIME, AT_A_TIME + 1], [7, 150], [150, 0]]


class Rounds(nn.Module):
    """boxes [N, COUNT, 4], scores [N, COUNT] and labels [N, COUNT] -> boxes, scores and labels of the detections."""

    def __init__(self, loops: bool):
        super().__init__()
        self.loops = loops

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return select_in_rounds(CONFIG, boxes, scores, labels, self.loops)


def candidates(objects: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Best first, each image's boxes on so many objects that do not overlap, of three classes in turn."""
    draw = torch.Generator().manual_seed(2)
    scores = (torch.rand(len(objects), COUNT, generator=draw) * 0.9 + 0.05).sort(1, descending=True).values
    boxes, labels = torch.zeros(len(objects), COUNT, 4), torch.zeros(len(objects), COUNT, dtype=torch.int64)
    for image, count in enumerate(objects):
        own = torch.randint(max(count, 1), (COUNT,), generator=draw)
        corner = torch.stack([own % 16, own // 16], 1) * 18.0 + torch.rand(COUNT, 2, generator=draw)
        boxes[image], labels[image] = torch.cat([corner, corner + 12], 1), own % 3
        scores[image] *= count > 0
    return boxes, scores, labels


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(Rounds(True), candidates([1, 2]), tmp_path_factory.mktemp("rounds") / "rounds.onnx")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("objects", OBJECTS)
def test_the_loop_finds_what_room_for_all_finds(looping: Path, runtime: str, objects: list[int]) -> None:
    given = candidates(objects)
    found = run(looping, runtime, [value.numpy() for value in given])
    for value, expected in zip(found, Rounds(False)(*given), strict=True):
        np.testing.assert_array_equal(value, expected.numpy())
    assert [int((row > 0).sum()) for row in found[1]] == [min(count, CONFIG.detections) for count in objects]


def test_only_a_graph_that_may_loops(looping: Path, tmp_path: Path) -> None:
    """Beside the loop of NMS, one of each round."""
    loops = lambda path: sum(node.op_type == "Loop" for node in onnx.load(path).graph.node)  # noqa: E731
    assert loops(looping) == loops(write(Rounds(False), candidates([1, 2]), tmp_path / "all.onnx")) + 2
