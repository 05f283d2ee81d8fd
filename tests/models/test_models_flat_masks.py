"""The flat form of a mask predictor: the same masks without a transposed convolution."""

import copy

import pytest
import torch

from directdet.models.build import build_model, fold_model
from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.flat_masks import FlatMaskPredictor
from directdet.models.two_stage.network import class_masks, mask_predictor

SLIM = {"num_classes": 3, "backbone": "resnet18", "width": 8, "fpn_channels": 16, "mask_convs": 1, "masks": True}


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    made = mask_predictor(RCNNConfig(5, backbone="resnet18", mask_channels=6)).double()
    for layer in (made.conv5_mask, made.mask_fcn_logits):
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    return made


@torch.no_grad()
def test_it_computes_what_the_transposed_convolution_does(predictor):
    features, labels = torch.randn(7, 6, 14, 13).double(), torch.tensor([1, 2, 3, 4, 5, 5, 1])
    flat, expected = FlatMaskPredictor(predictor), predictor(features)
    assert expected.shape == (7, 6, 28, 26)
    torch.testing.assert_close(flat(features), expected, rtol=1e-12, atol=1e-12)
    of_class = flat.of_class(features, labels)
    assert of_class.dtype == torch.float32
    torch.testing.assert_close(of_class, expected[torch.arange(7), labels].float())
    no_rois = class_masks(flat, features[:0], labels[:0])
    assert no_rois.shape == (0, 28, 26)


@pytest.mark.parametrize(
    "detector", [{"detector": "rcnn", "mask_channels": 16}, {"detector": "cascade", "mask_channels": 16}]
)
def test_folding_makes_every_mask_predictor_flat(detector):
    torch.manual_seed(0)
    model = build_model({**detector, **SLIM}).eval()
    folded = copy.deepcopy(model)
    fold_model(folded)
    kinds = [type(m).__name__ for m in folded.modules()]
    assert "ConvTranspose2d" not in kinds
    assert (
        kinds.count("FlatMaskPredictor") == [type(m).__name__ for m in model.modules()].count("MaskRCNNPredictor") > 0
    )
    pooled, labels = torch.randn(4, 16, 14, 14), torch.tensor([1, 2, 3, 3])
    stage = (2,) if detector["detector"] == "cascade" else ()
    with torch.no_grad():
        expected = model.predict_masks(*stage, pooled, labels)
        torch.testing.assert_close(folded.predict_masks(*stage, pooled, labels), expected, rtol=1e-4, atol=1e-5)
