"""The configurations of RTMDet and RTMDet-Ins. Does not import torch, because recipes use it."""

from dataclasses import dataclass
from typing import Literal

from directdet.common.settings import Channels, Count, Share, ZeroOrMore, check_fields
from directdet.models.backbones.names import check_backbone


@dataclass(frozen=True)
class PointConfig:
    """Settings of a detector of points on a PAFPN, of its targets and its post-processing. Defaults: RTMDet-s.

    Attributes:
        num_classes: number of object classes; there is no background class.
        backbone: its name.
        width: channels of the backbone's stem; None is the published width.
        norm: "bn" or "gn", in the whole network.
        fpn_channels: channels of the neck's three maps and of the head.
        neck_blocks: blocks of each CSP layer of the neck.
        head_convs: convolutions of each branch of the head before its last layer.
        top_ious: an object has as many positive points as its `top_ious` best IoUs add up to, at least one.
        candidates: (point, class) pairs that enter NMS, best first.
        score_threshold: detections below it are left out.
        nms: IoU above which NMS suppresses detections of the same class.
        detections: of an image, at most.
        in_channels: channels of the pictures; training takes those of its data.
    """

    num_classes: Count
    backbone: str = "cspnext_s"
    width: Count | None = None
    norm: Literal["bn", "gn"] = "bn"
    fpn_channels: Count = 128
    neck_blocks: Count = 1
    head_convs: ZeroOrMore = 2
    top_ious: Count = 13
    score_threshold: Share = 0.001
    nms: Share = 0.65
    candidates: Count = 300
    detections: Count = 100
    in_channels: Channels = 3

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_backbone("model.backbone", self.backbone, "pyramid")


@dataclass(frozen=True)
class RTMDetConfig(PointConfig):
    """Settings of RTMDet.

    Attributes:
        exp_distances: whether the predicted distances to a box's sides go through exp(), as in the sizes m and l.
    """

    exp_distances: bool = False

    @property
    def masks(self) -> bool:
        """RTMDet does not predict masks."""
        return False


@dataclass(frozen=True)
class RTMDetInsConfig(PointConfig):
    """Settings of RTMDet-Ins. A lower `nms` than RTMDet's, as in mmdet's configuration.

    Attributes:
        mask_convs: convolutions before the prototypes.
        mask_slots: positive points of an image whose masks are in the loss, at most, drawn anew in every step.
    """

    nms: Share = 0.6
    mask_convs: ZeroOrMore = 4
    mask_slots: Count = 32

    @property
    def masks(self) -> bool:
        """RTMDet-Ins predicts masks."""
        return True
