"""The configuration of RetinaNet. Does not import torch, because recipes use it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from directdet.common.settings import Between, Channels, Count, NotNegative, Positive, SettingError, Share, check_fields
from directdet.models.backbones.names import check_backbone

MAX_HEAD_CONVS = 4  # torchvision's subnets have four


@dataclass(frozen=True)
class RetinaNetConfig:
    """Settings of the network, its training targets and its post-processing. Defaults are mmdet's.

    Attributes:
        num_classes: number of object classes; there is no background class.
        backbone: its name.
        width: channels of the backbone's stem; None is the published width.
        norm: "bn" in the backbone only, or "gn" in the backbone, the pyramid and the heads.
        head_convs: convolutions of each subnet before its last layer, 0 to 4.
        anchor_scale: side of a level's smallest square anchor, in strides.
        anchor_octave: number of scales per octave: the sides are anchor_scale * 2^(i / anchor_octave).
        positive_iou: anchors are positive from this IoU; so is the best anchor of each object, whatever its IoU.
        negative_iou: anchors are negative below this IoU, and ignored between the two.
        focal_alpha, focal_gamma: of the focal loss (arXiv 1708.02002).
        smooth_l1_beta: 0 is plain L1.
        fpn_channels: of every level of the pyramid.
        anchor_ratios: height by width of a cell's anchors.
        test_pre_nms: (anchor, class) pairs kept per level.
        candidates: number of boxes from all levels that enter NMS, best first.
        score_threshold: detections below it are left out.
        nms: IoU above which NMS suppresses detections of the same class.
        detections: of an image, at most.
        in_channels: channels of the pictures; training takes those of its data.
    """

    num_classes: Count
    backbone: str = "resnet50"
    width: Count | None = None
    norm: Literal["bn", "gn"] = "bn"
    fpn_channels: Count = 256
    head_convs: Annotated[int, Between(0, MAX_HEAD_CONVS)] = 4
    anchor_scale: Positive = 4.0
    anchor_octave: Count = 3
    anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    positive_iou: Share = 0.5
    negative_iou: Share = 0.4
    focal_alpha: Share = 0.25
    focal_gamma: NotNegative = 2.0
    smooth_l1_beta: NotNegative = 0.0
    score_threshold: Share = 0.05
    nms: Share = 0.5
    test_pre_nms: Count = 1000
    candidates: Count = 1000
    detections: Count = 100
    in_channels: Channels = 3

    @property
    def masks(self) -> bool:
        """RetinaNet does not predict masks."""
        return False

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_backbone("model.backbone", self.backbone, "pyramid")
        if not self.anchor_ratios:
            raise SettingError("model.anchor_ratios: must not be empty; give at least one number")
