"""Every layer starts from the weights of the papers' code, by the statistics of its values.

The direct pre-training paper's code is mmdet's; ScratchDet initialises everything by Xavier (section 4.1).
"""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from directdet.models.build import build_model

# By detector: patterns of the names of layers with weights, and what they start from. The first that fits counts.
XAVIER, KAIMING, SMALL, SMALLER, SWIN = "xavier", "kaiming", 0.01, 0.001, "truncated"
TWO_STAGE = [
    (r"fpn\.", XAVIER),
    (r"rpn_head\.", SMALL),
    (r"box_predictors?(\.\d)?\.cls_score", SMALL),
    (r"box_predictors?(\.\d)?\.bbox_pred", SMALLER),
    (r"mask_(head|predictor)s?\.", KAIMING),
    (r"box_heads?(\.\d)?\.fc[67]", XAVIER),  # two fully connected layers, as in mmdet
    (r"box_head\.\d\.0", KAIMING),  # the four convolutions of 4conv1fc
    (r"box_head\.\d+$", XAVIER),
]
RESNET = [(r"backbone\.", KAIMING)]
CASES = {
    "rcnn": ({"detector": "rcnn", "backbone": "resnet18"}, RESNET + TWO_STAGE),
    "rcnn gn": ({"detector": "rcnn", "backbone": "resnet18", "norm": "gn"}, RESNET + TWO_STAGE),
    "rcnn 2fc": ({"detector": "rcnn", "backbone": "resnet18", "box_convs": 0}, RESNET + TWO_STAGE),
    "cascade": ({"detector": "cascade", "backbone": "resnet18"}, RESNET + TWO_STAGE),
    "vgg": (
        {"detector": "rcnn", "backbone": "vgg16", "width": 16, "pyramid": False, "masks": False, "box_convs": 0},
        [(r"backbone\.", XAVIER), *TWO_STAGE],
    ),
    "retinanet": (
        {"detector": "retinanet", "backbone": "resnet18"},
        [*RESNET, (r"fpn\.", XAVIER), (r"head\.", SMALL)],
    ),
    "ssd": (
        {"detector": "ssd", "backbone": "vgg16", "norm": "none", "head_norm": False, "l2_norm": True},
        [("", XAVIER)],
    ),
    "ssd residual": ({"detector": "ssd", "backbone": "root_resnet18", "extras": "residual"}, [("", XAVIER)]),
    "dsod": ({"detector": "ssd", "backbone": "dsod", "extras": "dsod", "l2_norm": True}, [("", XAVIER)]),
    "swin": (
        {"detector": "rcnn", "backbone": "swin_t", "width": 32},
        [(r"backbone\.features\.0\.0", None), (r"backbone\.", SWIN), *TWO_STAGE],  # patches: torch's, as in Swin's code
    ),
}


def wanted(layer: nn.Module, kind: str | float) -> tuple[float, float]:
    """Standard deviation, and the largest value that there may be (infinite for a normal distribution)."""
    if isinstance(kind, float):
        return kind, math.inf
    if kind == SWIN:
        return 0.02, 2.0
    rows, columns = layer.weight.shape[:2]
    cells = layer.weight[0, 0].numel() if layer.weight.dim() > 2 else 1
    if kind == XAVIER:
        std = math.sqrt(2 / ((rows + columns) * cells))
        return std, math.sqrt(3) * std
    return math.sqrt(2 / (rows * cells)), math.inf


def check(name: str, weight: Tensor, std: float, most: float) -> None:
    count = weight.numel()
    # Five standard errors; that of a standard deviation is at most std / sqrt(2 * count), of a mean std / sqrt(count).
    assert float(weight.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * count)), name
    assert abs(float(weight.mean())) < 5 * std / math.sqrt(count), name
    assert float(weight.abs().max()) <= most * (1 + 1e-5), name
    if math.isinf(most) and count > 10_000:  # not uniform
        assert float(weight.abs().max()) > 3 * std, name


@pytest.mark.parametrize("case", CASES)
def test_every_layer_starts_as_in_the_papers_code(case):
    settings, rules = CASES[case]
    torch.manual_seed(0)
    model = build_model({"num_classes": 20, **settings})
    used = set()
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            pattern, kind = next((pattern, kind) for pattern, kind in rules if re.match(pattern, name))
            used.add(pattern)
            if kind is None:
                continue
            check(name, layer.weight.detach(), *wanted(layer, kind))
            prior = -math.log(99) if name.endswith("classification_head.cls_logits") else 0.0  # a probability of 0.01
            if layer.bias is not None:
                assert torch.allclose(layer.bias, torch.full_like(layer.bias, prior)), name
        elif isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            assert (layer.weight == 1).all() and (layer.bias == 0).all(), name
        elif "relative_position_bias_table" in dict(layer.named_parameters(recurse=False)):
            check(name, layer.relative_position_bias_table.detach(), 0.02, 2.0)
        elif "scale" in dict(layer.named_parameters(recurse=False)):
            assert (layer.scale == 20).all(), name  # SSD's L2 normalisation
        else:
            assert not dict(layer.named_parameters(recurse=False)), name
    assert len(used) >= 1 and all(any(re.match(p, n) for n, _ in model.named_modules()) for p in used)


def test_the_box_heads_fully_connected_layer():
    """The figure of mmdet's 4conv1fc head: Xavier from 256 * 7 * 7 to 1024."""
    layer = build_model({"detector": "rcnn", "backbone": "resnet18", "num_classes": 80}).box_head[5]
    assert tuple(layer.weight.shape) == (1024, 12544)
    assert float(layer.weight.detach().std()) == pytest.approx(0.01214, rel=1e-3)
