"""Faster and Mask R-CNN on a feature pyramid: the network, from images to raw maps and from boxes to head outputs."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from .anchors import level_anchors
from .resnet import BACKBONES

BOX_BINS, MASK_BINS, MASK_SIZE = 7, 14, 28
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # 1 / (0.1, 0.1, 0.2, 0.2)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class RCNNConfig:
    """Everything that defines the network and its training targets. Defaults are the paper's Mask R-CNN (facts.md 1.4).

    Attributes:
        num_classes: object classes, background not counted.
        width: channels of the backbone's stem; 64 is the ordinary ResNet.
        box_convs: 4 is the paper's 4conv1fc head without normalisation, 0 the classic two-layer one.
        rpn_min_positive_iou: an anchor that is the best of its object counts as positive from this IoU on (mmdet: 0.3;
            torchvision: 0).
        mask_slots: mask RoIs per image, packed over the batch: positives beyond mask_slots * batch are left out. 128
            holds all that the paper's sampling can give.
        smooth_l1_beta: 0 is plain L1, as the paper's code.
        candidates: boxes that enter the last NMS, best first.
    """

    num_classes: int
    backbone: str = "resnet50"
    width: int = 64
    masks: bool = True
    fpn_channels: int = 256
    box_convs: int = 4
    box_features: int = 1024
    mask_convs: int = 4
    mask_channels: int = 256
    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_positive_iou: float = 0.3
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_nms: float = 0.7
    train_pre_nms: int = 2000
    train_proposals: int = 1000
    test_pre_nms: int = 1000
    test_proposals: int = 1000
    roi_samples: int = 512
    roi_positive_fraction: float = 0.25
    roi_positive_iou: float = 0.5
    mask_slots: int = 128
    smooth_l1_beta: float = 0.0
    score_threshold: float = 0.05
    nms: float = 0.5
    candidates: int = 1000
    detections: int = 100


class RawMaps(NamedTuple):
    """What the network says of a batch before any choice is made. A is the number of anchors of all levels.

    features: the pyramid, finest first, five of [N, C, H, W]; logits [N, A]; deltas [N, A, 4]; anchors [A, 4];
    level_sizes: anchors of each level.
    """

    features: list[Tensor]
    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    level_sizes: list[int]


class RCNN(nn.Module):
    """The network. forward(images [N, 3, H, W], normalised, H and W multiples of 32) -> RawMaps."""

    def __init__(self, config: RCNNConfig):
        super().__init__()
        self.config = config
        channels, classes = config.fpn_channels, config.num_classes + 1  # class 0 is the background
        self.backbone = BACKBONES[config.backbone](config.width)
        self.fpn = FeaturePyramidNetwork(list(self.backbone.channels.values()), channels, LastLevelMaxPool())
        strides = list(self.backbone.strides.values())
        self.strides = [*strides, strides[-1] * 2]
        self.register_buffer("anchor_ratios", torch.tensor(config.anchor_ratios), persistent=False)
        self.rpn_head = RPNHead(channels, len(config.anchor_ratios))
        size = (channels, BOX_BINS, BOX_BINS)
        if config.box_convs:
            self.box_head = FastRCNNConvFCHead(size, [channels] * config.box_convs, [config.box_features])
        else:
            self.box_head = TwoMLPHead(channels * BOX_BINS**2, config.box_features)
        self.box_predictor = FastRCNNPredictor(config.box_features, classes)
        if config.masks:
            self.mask_head = MaskRCNNHeads(channels, (config.mask_channels,) * config.mask_convs, dilation=1)
            self.mask_predictor = MaskRCNNPredictor(config.mask_channels, config.mask_channels, classes)
        self._initialise()

    def _initialise(self) -> None:
        """mmdet's initialisation of the last layers, which decides how a detector without ImageNet starts."""
        nn.init.normal_(self.box_predictor.cls_score.weight, std=0.01)
        nn.init.normal_(self.box_predictor.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.box_predictor.cls_score.bias)
        nn.init.zeros_(self.box_predictor.bbox_pred.bias)

    def forward(self, images: Tensor, anchors: Tensor | None = None) -> RawMaps:
        features = list(self.fpn(self.backbone(images)).values())
        logits, deltas = self.rpn_head(features)
        per_cell = len(self.config.anchor_ratios)
        if anchors is None:
            anchors = self.anchors([tuple(f.shape[2:]) for f in features])
        return RawMaps(
            features,
            torch.cat([t.permute(0, 2, 3, 1).flatten(1) for t in logits], 1).float(),
            torch.cat([t.permute(0, 2, 3, 1).reshape(t.shape[0], -1, 4) for t in deltas], 1).float(),
            anchors,
            [f.shape[2] * f.shape[3] * per_cell for f in features],
        )

    def anchors(self, shapes: list[tuple[int, int]]) -> Tensor:
        """Anchors [A, 4] of maps of the given (height, width), level after level."""
        per_level = [
            level_anchors(height, width, stride, self.config.anchor_scale, self.anchor_ratios)
            for (height, width), stride in zip(shapes, self.strides, strict=True)
        ]
        return torch.cat(per_level)

    def boxes_of(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled RoIs [K, C, 7, 7] -> class logits [K, 1 + classes] and deltas [K, 1 + classes, 4], float32."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float().reshape(-1, self.config.num_classes + 1, 4)

    def masks_of(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Pooled RoIs [K, C, 14, 14] and labels [K] (1..classes) -> mask logits [K, 28, 28] of that class, float32."""
        logits = self.mask_predictor(self.mask_head(pooled)).float()
        index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, MASK_SIZE, MASK_SIZE)
        return torch.gather(logits, 1, index).squeeze(1)
