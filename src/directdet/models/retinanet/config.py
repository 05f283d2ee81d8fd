"""What defines a RetinaNet and its training targets. Imports no torch: recipes are made of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from directdet.common.settings import Between, Count, NotNegative, Positive, SettingError, Share, check_fields
from directdet.models.backbones.names import check_backbone

MOST_HEAD_CONVS = 4  # what torchvision's subnets are built with


@dataclass(frozen=True)
class RetinaNetConfig:
    """Everything that defines the network and its training targets. Defaults are mmdet's.

    Attributes:
        num_classes: object classes; there is no background class.
        width: channels of the backbone's stem; None is the published network.
        norm: "bn" in the backbone alone, or "gn" there, in the pyramid and in the heads.
        head_convs: convolutions of each subnet before its last layer, 0 to 4.
        anchor_scale: side of a level's smallest square anchor, in strides.
        anchor_octave: anchors of one ratio within an octave: sides anchor_scale * 2^(i / anchor_octave).
        positive_iou: anchors are positive from here on, and so is the best anchor of each object, whatever its IoU;
            below negative_iou they are negative, between the two ignored.
        smooth_l1_beta: 0 is plain L1.
        test_pre_nms: (anchor, class) pairs kept of each level.
        candidates: boxes of all levels that enter NMS, best first.
    """

    num_classes: Count
    backbone: str = "resnet50"
    width: Count | None = None
    norm: Literal["bn", "gn"] = "bn"
    fpn_channels: Count = 256
    head_convs: Annotated[int, Between(0, MOST_HEAD_CONVS)] = 4
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

    @property
    def masks(self) -> bool:
        """It finds boxes alone."""
        return False

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_backbone("model.backbone", self.backbone, "pyramid")
        if not self.anchor_ratios:
            raise SettingError("model.anchor_ratios: there are none; give one number at least")
