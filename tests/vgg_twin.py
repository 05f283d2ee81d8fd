"""A torchvision Faster R-CNN on a single map of VGG-16, with the same weights, width and settings as ours."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import MultiScaleRoIAlign

from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.network import RCNN

STRIDE = 16


class OneMap(nn.Module):
    """torchvision's VGG-16 up to conv5_3, with scaled widths: images -> {"0": map}."""

    def __init__(self, width: int, batch_norm: bool):
        super().__init__()
        layers = [c if c == "M" else c * width // 64 for c in cfgs["D"]]
        self.body = make_layers(layers[:-1], batch_norm)  # without the last pooling
        self.out_channels = 8 * width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": self.body(images)}


def unrounded_anchors(config: RCNNConfig) -> AnchorGenerator:
    """torchvision's anchors without rounding their sides to whole pixels, as in the papers' code and ours."""
    scales, ratios = torch.tensor(config.anchor_scales), torch.tensor(config.anchor_ratios)
    generator = AnchorGenerator((tuple(int(s * STRIDE) for s in config.anchor_scales),), (config.anchor_ratios,))
    height = (ratios.sqrt()[:, None] * scales * STRIDE).flatten()
    width = (scales * STRIDE / ratios.sqrt()[:, None]).flatten()
    exact = torch.stack([-width, -height, width, height], 1) / 2
    assert torch.equal(exact.round(), generator.cell_anchors[0])
    generator.cell_anchors = [exact]
    return generator


def build_twin(model: RCNN) -> FasterRCNN:
    """torchvision's detector with the weights of `model`, and the same settings where torchvision has them."""
    config = model.config
    assert (config.backbone, config.pyramid, config.masks, config.box_convs) == ("vgg16", False, False, 0)
    backbone = OneMap(config.width, config.norm == "bn")
    twin = FasterRCNN(
        backbone,
        config.num_classes + 1,
        rpn_anchor_generator=unrounded_anchors(config),
        rpn_pre_nms_top_n_train=config.train_pre_nms,
        rpn_pre_nms_top_n_test=config.test_pre_nms,
        rpn_post_nms_top_n_train=config.train_proposals,
        rpn_post_nms_top_n_test=config.test_proposals,
        rpn_nms_thresh=config.rpn_nms,
        rpn_batch_size_per_image=config.rpn_samples,
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=TwoMLPHead(backbone.out_channels * 49, config.box_features),
        box_batch_size_per_image=config.roi_samples,
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms,
        box_detections_per_img=config.detections,
    )
    # By default torchvision assumes a box head of 1024 features.
    twin.roi_heads.box_predictor = FastRCNNPredictor(config.box_features, config.num_classes + 1)
    for theirs, ours in same_layers(twin, model):
        state = ours.state_dict()
        if isinstance(theirs, nn.Conv2d) and theirs.bias is not None and ours.bias is None:
            state["bias"] = torch.zeros_like(theirs.bias)  # torchvision has it even before batch normalisation
        theirs.load_state_dict(state)
    return twin.train(model.training)


def same_layers(twin: FasterRCNN, model: RCNN) -> list[tuple[nn.Module, nn.Module]]:
    """Pairs of torchvision's layers and ours, in order of execution."""
    heads = twin.roi_heads
    parts = (
        [twin.backbone, twin.rpn.head, heads.box_head, heads.box_predictor],
        [model.backbone, model.rpn_head, model.box_head, model.box_predictor],
    )
    kinds = nn.Conv2d | nn.BatchNorm2d | nn.Linear
    theirs, ours = ([m for part in side for m in part.modules() if isinstance(m, kinds)] for side in parts)
    assert [type(m) for m in theirs] == [type(m) for m in ours]
    return list(zip(theirs, ours, strict=True))
