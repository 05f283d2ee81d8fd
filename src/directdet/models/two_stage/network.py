"""Faster and Mask R-CNN on a feature pyramid or a single map: images to raw maps, and boxes to head outputs."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from directdet.models.backbones.builders import build_backbone
from directdet.models.parts.anchors import anchor_shapes
from directdet.models.parts.masks import MASK_SIZE
from directdet.models.parts.pyramid import Anchored, RawMaps, flatten_map, norm_layer
from directdet.models.parts.roi_pool import PyramidRows, pool_rois, pyramid_rows
from directdet.models.parts.start import init_head, init_normal, init_xavier
from directdet.models.two_stage.config import RCNNConfig, TwoStageConfig
from directdet.models.two_stage.flat_masks import FlatMaskPredictor

BOX_BINS, MASK_BINS = 7, 14
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # 1 / (0.1, 0.1, 0.2, 0.2)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class TwoStage(Anchored):
    """Backbone, pyramid and RPN head: the base class of two-stage detectors.

    forward(images [N, 3, H, W], normalised, H and W multiples of 32) -> RawMaps.

    Attributes:
        channels: channels of every map.
        strides: stride of each map.
        roi_strides: strides of the maps from which RoIs are pooled, the first ones.
    """

    def __init__(self, config: TwoStageConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(
            ("pyramid", "single_map"), config.backbone, config.width, config.norm, config.in_channels
        )
        channels = list(self.backbone.channels.values())
        self.roi_strides = list(self.backbone.strides.values())
        if config.pyramid:
            self.fpn = FeaturePyramidNetwork(channels, config.fpn_channels, LastLevelMaxPool(), norm_layer(config.norm))
            init_xavier(self.fpn)
            self.channels, self.strides = config.fpn_channels, [*self.roi_strides, self.roi_strides[-1] * 2]
        else:
            self.fpn, self.channels, self.strides = nn.Identity(), channels[0], self.roi_strides
        shapes = anchor_shapes(config.anchor_scales or (config.anchor_scale,), config.anchor_ratios)
        self.register_buffer("anchor_shapes", shapes, persistent=False)
        self.rpn_head = RPNHead(self.channels, len(shapes))
        init_normal(self.rpn_head, std=0.01)

    def forward(self, images: Tensor, anchors: Tensor | None = None) -> RawMaps:
        features = list(self.fpn(self.backbone(images)).values())
        logits, deltas = self.rpn_head(features)
        shapes = [tuple(f.shape[2:]) for f in features]
        return RawMaps(
            features,
            torch.cat([flatten_map(level, 1).squeeze(-1) for level in logits], 1),
            torch.cat([flatten_map(level, 4) for level in deltas], 1),
            self.anchors(shapes) if anchors is None else anchors,
            self.level_sizes(shapes),
        )

    def parts(self) -> dict[str, tuple[str, ...]]:
        heads = {"box": ("box_head", "box_predictor"), "mask": ("mask_head", "mask_predictor")}
        return {"backbone": ("backbone",), "fpn": ("fpn",), "rpn": ("rpn_head",), **heads}

    def class_layers(self) -> tuple[str, ...]:
        return ("box_predictor", "mask_predictor.mask_fcn_logits")

    def class_rows(self, name: str) -> tuple[int, int]:
        return 1, 4 if ".bbox_pred." in name else 1

    def rows(self, features: list[Tensor]) -> PyramidRows:
        """The raw maps from which RoIs are pooled."""
        return pyramid_rows(features[: len(self.roi_strides)], self.roi_strides)

    def pool_batch(
        self, rows: PyramidRows, boxes: Tensor, bins: int, portable: bool = False, few: bool = False
    ) -> Tensor:
        """Pool boxes [N, R, 4] (pixels), R of each image -> [N * R, C, bins, bins]; see pool_rois."""
        image = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
        return pool_rois(rows, boxes.reshape(-1, 4), image, bins, portable, few)


def mask_head(config: TwoStageConfig, channels: int) -> MaskRCNNHeads:
    """The convolutions of a mask head on maps with `channels` channels."""
    layers = (config.mask_channels,) * config.mask_convs
    head = MaskRCNNHeads(channels, layers, dilation=1, norm_layer=norm_layer(config.norm))
    init_head(head)
    return head


def mask_predictor(config: TwoStageConfig) -> MaskRCNNPredictor:
    """The last layers of a mask head: 28x28 logits of every class, including background."""
    predictor = MaskRCNNPredictor(config.mask_channels, config.mask_channels, config.num_classes + 1)
    init_head(predictor)
    return predictor


def class_masks(predictor: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Mask logits of each RoI's label [K] (1..classes): features [K, C, 14, 14] -> float32 [K, 28, 28]."""
    if isinstance(predictor, FlatMaskPredictor):
        return predictor.of_class(features, labels)
    return select_class_masks(predictor(features), labels)


def select_class_masks(logits: Tensor, labels: Tensor) -> Tensor:
    """Select the mask logits of each RoI's label [K] (1..classes): [K, 1 + classes, 28, 28] -> float32 [K, 28, 28]."""
    index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, MASK_SIZE, MASK_SIZE)
    # Converted to float32 after the selection: doing so for all classes would need much memory.
    return torch.gather(logits, 1, index).squeeze(1).float()


def init_predictor(predictor: FastRCNNPredictor) -> None:
    """mmdet's initialisation of the last layers, which matters for training from scratch."""
    init_normal(predictor.cls_score, std=0.01)
    init_normal(predictor.bbox_pred, std=0.001)


class RCNN(TwoStage):
    """Faster R-CNN, or Mask R-CNN if the configuration has masks."""

    config: RCNNConfig

    def __init__(self, config: RCNNConfig):
        super().__init__(config)
        channels, size = self.channels, (self.channels, BOX_BINS, BOX_BINS)
        if config.box_convs:
            self.box_head = FastRCNNConvFCHead(
                size, [channels] * config.box_convs, [config.box_features], norm_layer(config.norm)
            )
        else:
            self.box_head = TwoMLPHead(channels * BOX_BINS**2, config.box_features)
        init_head(self.box_head)
        self.box_predictor = FastRCNNPredictor(config.box_features, config.num_classes + 1)  # class 0: background
        if config.masks:
            self.mask_head, self.mask_predictor = mask_head(config, channels), mask_predictor(config)
        init_predictor(self.box_predictor)

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As Network.from_torchvision; and fc6 and fc7 of a single-map VGG-16 are the classifier's first two layers.

        They are exactly these with box_features=4096, as in Faster R-CNN; a smaller head takes evenly spaced outputs.
        """
        found = super().from_torchvision(state)
        taken = [state.get(f"classifier.{layer}.{kind}") for layer in (0, 3) for kind in ("weight", "bias")]
        if self.config.pyramid or self.config.box_convs or any(value is None for value in taken):
            return found
        weight6, bias6, weight7, bias7 = [value for value in taken if value is not None]
        count = self.config.box_features
        if weight6.shape[1] != self.channels * BOX_BINS**2 or count > len(bias6):
            return found
        chosen = torch.arange(count) * len(bias6) // count
        found |= {"box_head.fc6.weight": weight6[chosen], "box_head.fc6.bias": bias6[chosen]}
        return found | {"box_head.fc7.weight": weight7[chosen][:, chosen], "box_head.fc7.bias": bias7[chosen]}

    def predict_boxes(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled RoIs [K, C, 7, 7] -> class logits [K, 1 + classes] and deltas [K, 1 + classes, 4], float32."""
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float().reshape(-1, self.config.num_classes + 1, 4)

    def predict_masks(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Pooled RoIs [K, C, 14, 14] and labels [K] (1..classes) -> mask logits [K, 28, 28] of that class, float32."""
        return class_masks(self.mask_predictor, self.mask_head(pooled), labels)
