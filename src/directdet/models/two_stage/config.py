"""The configurations of two-stage detectors. Does not import torch, because recipes use it."""

from dataclasses import dataclass
from typing import Literal

from directdet.common.settings import (
    Channels,
    Count,
    NotNegative,
    Positive,
    SettingError,
    Share,
    ZeroOrMore,
    check_fields,
)
from directdet.models.backbones.names import NAMES, check_backbone


@dataclass(frozen=True)
class TwoStageConfig:
    """Settings shared by all two-stage detectors. Defaults are those of the paper's code.

    Attributes:
        num_classes: number of object classes, without background.
        backbone: its name.
        width: channels of the backbone's stem; None is the published width.
        norm: "bn" in the backbone only, or "gn" in the backbone, the pyramid and the heads (Scratch (GN)). vgg16 also
            supports "none".
        pyramid: False computes proposals on, and pools RoIs from, the backbone's single map, as the original Faster
            R-CNN did; only with vgg16.
        masks: whether there is a mask head.
        fpn_channels: of every level of the pyramid.
        box_features: of the box head's fully connected layers.
        mask_convs, mask_channels: of the mask head.
        anchor_ratios: height by width of a cell's anchors.
        rpn_positive_iou, rpn_negative_iou: anchors are positive from the one, and negative below the other.
        rpn_samples, rpn_positive_fraction: anchors of an image in the loss, and the most of them that are positive.
        rpn_nms: IoU above which NMS suppresses proposals.
        rpn_smooth_l1_beta: where the loss of the boxes turns from a square into a line; 0 is plain L1.
        train_pre_nms, train_proposals: proposals of a level before NMS, and of an image after it, in training.
        test_pre_nms, test_proposals: the same of the deployed network.
        roi_samples, roi_positive_fraction: RoIs of an image in the loss, and the most of them that are positive.
        score_threshold: detections below it are left out.
        nms: IoU above which NMS suppresses detections of the same class.
        detections: of an image, at most.
        anchor_scale: side of a level's square anchor, in strides.
        anchor_scales: several such sides per cell, instead of anchor_scale.
        cross_border_anchors: whether anchors that cross the border of the image take part in training (mmdet: yes).
        rpn_min_positive_iou: the best anchor of an object is positive from this IoU (mmdet: 0.3; torchvision: 0).
        mask_slots: mask RoIs per image, shared over the batch: positives beyond mask_slots * batch are dropped. 128 is
            the maximum that the paper's sampling can produce.
        candidates: number of boxes that enter the final NMS, best first.
        in_channels: channels of the pictures; training takes those of its data.
    """

    num_classes: Count
    backbone: str = "resnet50"
    width: Count | None = None
    norm: Literal["bn", "gn", "none"] = "bn"
    masks: bool = True
    pyramid: bool = True
    fpn_channels: Count = 256
    box_features: Count = 1024
    mask_convs: Count = 4
    mask_channels: Count = 256
    anchor_scale: Positive = 8.0
    anchor_scales: tuple[Positive, ...] = ()
    anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    cross_border_anchors: bool = True
    rpn_positive_iou: Share = 0.7
    rpn_negative_iou: Share = 0.3
    rpn_min_positive_iou: Share = 0.3
    rpn_samples: Count = 256
    rpn_positive_fraction: Share = 0.5
    rpn_nms: Share = 0.7
    rpn_smooth_l1_beta: NotNegative = 0.0
    train_pre_nms: Count = 2000
    train_proposals: Count = 1000
    test_pre_nms: Count = 1000
    test_proposals: Count = 1000
    roi_samples: Count = 512
    roi_positive_fraction: Share = 0.25
    mask_slots: Count = 128
    score_threshold: Share = 0.05
    nms: Share = 0.5
    candidates: Count = 1000
    detections: Count = 100
    in_channels: Channels = 3

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_backbone("model.backbone", self.backbone, "pyramid", "single_map")
        if not self.anchor_ratios:
            raise SettingError("model.anchor_ratios: must not be empty; give at least one number")
        if self.backbone not in NAMES["single_map"] and (not self.pyramid or self.norm == "none"):
            setting = "norm: 'none'" if self.norm == "none" else "pyramid: false"
            raise SettingError(f"model.{setting} requires {' or '.join(NAMES['single_map'])}, not {self.backbone}")


@dataclass(frozen=True)
class RCNNConfig(TwoStageConfig):
    """Settings of Faster and Mask R-CNN. Defaults are those of the paper's Mask R-CNN.

    Attributes:
        box_convs: convolutions of the box head: 4 is the paper's 4conv1fc head without normalisation, 0 the classic
            head of two fully connected layers.
        roi_positive_iou: a RoI is positive from this IoU.
        smooth_l1_beta: 0 is plain L1, as in the paper's code.
    """

    box_convs: ZeroOrMore = 4
    roi_positive_iou: Share = 0.5
    smooth_l1_beta: NotNegative = 0.0


@dataclass(frozen=True)
class CascadeConfig(TwoStageConfig):
    """Settings of Cascade R-CNN. Defaults are those of the paper's code.

    Attributes:
        stage_positive_ious: for each stage, the IoU from which a RoI is positive; below, it is negative.
        stage_loss_weights: for each stage, the factor of its losses.
        smooth_l1_beta: where the loss of the boxes turns from a square into a line; 0 is plain L1.
    """

    rpn_smooth_l1_beta: NotNegative = 1 / 9
    train_proposals: Count = 2000
    stage_positive_ious: tuple[Share, Share, Share] = (0.5, 0.6, 0.7)
    stage_loss_weights: tuple[NotNegative, NotNegative, NotNegative] = (1.0, 0.5, 0.25)
    smooth_l1_beta: NotNegative = 1.0
