"""NMS and the order of ties in exported graphs, on inputs that ordinary pictures do not give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import run, write
from torch import Tensor
from torchvision.ops import batched_nms

from directdet.models.parts.boxes import best_first, nms_mask

COUNT, THRESHOLD = 400, 0.6


class Keep(torch.nn.Module):
    """Boxes [N, COUNT, 4], negative where not valid, and labels -> 1.0 for those that NMS keeps."""

    def forward(self, boxes: Tensor, labels: Tensor) -> Tensor:
        return nms_mask(boxes, boxes[..., 0] >= 0, THRESHOLD, labels).float()


class Best(torch.nn.Module):
    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return best_first(values, 100)


def hard_boxes() -> Tensor:
    """Chains of every link, a grid of ties, identical boxes, clusters, few boxes and none: [6, COUNT, 4]."""
    generator = torch.Generator().manual_seed(0)
    step = torch.arange(COUNT) * 4.0
    links = torch.stack([step, 0 * step, step + 20, 0 * step + 20], 1)
    y, x = torch.meshgrid(torch.arange(20) * 4.0, torch.arange(20) * 4.0, indexing="ij")
    grid = torch.stack([x, y, x + 20, y + 20], -1).reshape(-1, 4)
    same = torch.tensor([3.0, 4, 30, 40]).expand(COUNT, 4)
    cluster = same + torch.rand(COUNT, 4, generator=generator) * 8
    few = torch.where(torch.arange(COUNT)[:, None] < 3, same, -1.0)
    return torch.stack([links, grid, same, cluster, few, torch.full((COUNT, 4), -1.0)])


def expected(boxes: Tensor, labels: Tensor) -> np.ndarray:
    keep = np.zeros(boxes.shape[:2], np.float32)
    for row in range(len(boxes)):
        valid = torch.where(boxes[row, :, 0] >= 0)[0]
        kept = batched_nms(boxes[row, valid], -valid.float(), labels[row, valid], THRESHOLD)
        keep[row, valid[kept].numpy()] = 1
    return keep


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("classes", [1, 3])
def test_exported_nms_is_torchvisions_for_any_chain(tmp_path: Path, runtime: str, classes: int) -> None:
    boxes = hard_boxes()
    labels = torch.arange(COUNT).expand(6, -1) // 7 % classes
    right = expected(boxes, labels)
    assert classes > 1 or right[0].sum() == COUNT / 2  # a chain of 400: every second one stays
    path = write(Keep(), (boxes[:2], labels[:2]), tmp_path / "nms.onnx")
    found = run(path, runtime, [boxes.numpy(), labels.numpy()])[0]
    np.testing.assert_array_equal(found, right)
    for row in range(6):  # the batch goes on until its last row is ready
        alone = run(path, runtime, [boxes[row : row + 1].numpy(), labels[row : row + 1].numpy()])[0]
        np.testing.assert_array_equal(alone, right[row : row + 1])


def test_exported_ties_are_in_order_of_index(tmp_path: Path) -> None:
    """By ONNX's definition of TopK; OpenVINO and TensorRT do not keep to it."""
    values = torch.randint(0, 5, (3, 5000), generator=torch.Generator().manual_seed(1)).float()
    path = write(Best(), (values,), tmp_path / "best.onnx")
    order = np.argsort(-values.numpy(), axis=1, kind="stable")[:, :100]
    np.testing.assert_array_equal(run(path, "onnxruntime", [values.numpy()])[1], order)
    np.testing.assert_array_equal(best_first(values, 100)[1].numpy(), order)
