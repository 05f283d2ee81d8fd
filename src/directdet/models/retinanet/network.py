"""RetinaNet: the network, from images to raw maps.

Lin et al., "Focal Loss for Dense Object Detection", with the settings of mmdet's configuration, which the from-scratch
paper used. The parts are torchvision's, so its parameter names are ours and it serves as the oracle.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from directdet.models.backbones.builders import BACKBONES
from directdet.models.parts.anchors import anchor_shapes
from directdet.models.parts.pyramid import Anchored, RawMaps, norm_layer

LEVELS = ("c3", "c4", "c5")
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

    masks: ClassVar[bool] = False

    num_classes: int
    backbone: str = "resnet50"
    width: int | None = None
    norm: str = "bn"
    fpn_channels: int = 256
    head_convs: int = 4
    anchor_scale: float = 4.0
    anchor_octave: int = 3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.0
    score_threshold: float = 0.05
    nms: float = 0.5
    test_pre_nms: int = 1000
    candidates: int = 1000
    detections: int = 100


class RetinaNet(Anchored):
    """Backbone, a pyramid P3 to P7, and two subnets shared by its levels.

    forward(images [N, 3, H, W], normalised, H and W multiples of 32) -> RawMaps with logits [N, A, classes], each class
    by itself (sigmoid).

    P6 is made of C5, and P7 of P6 after a ReLU, as the RetinaNet paper and torchvision have it (mmdet leaves the ReLU
    out). P6 and P7 are not normalised, with "gn" neither, as in torchvision.
    """

    def __init__(self, config: RetinaNetConfig):
        super().__init__()
        if not 0 <= config.head_convs <= MOST_HEAD_CONVS:
            raise ValueError(f"head_convs is 0 to {MOST_HEAD_CONVS}, not {config.head_convs}")
        self.config = config
        self.backbone = BACKBONES[config.backbone](config.width, config.norm)
        channels, norm = [self.backbone.channels[level] for level in LEVELS], norm_layer(config.norm)
        coarsest = LastLevelP6P7(channels[-1], config.fpn_channels)
        coarsest.use_P5 = False  # torchvision would take P5 wherever it has as many channels as C5
        self.fpn = FeaturePyramidNetwork(channels, config.fpn_channels, coarsest, norm)
        strides = [self.backbone.strides[level] for level in LEVELS]
        self.strides = [*strides, strides[-1] * 2, strides[-1] * 4]
        sides = tuple(config.anchor_scale * 2 ** (i / config.anchor_octave) for i in range(config.anchor_octave))
        shapes = anchor_shapes(sides, config.anchor_ratios)
        self.register_buffer("anchor_shapes", shapes, persistent=False)
        # It starts as the paper says: weights of 0.01, and every class with a probability of 0.01.
        self.head = RetinaNetHead(config.fpn_channels, len(shapes), config.num_classes, norm)
        for subnet in (self.head.classification_head, self.head.regression_head):
            subnet.conv = subnet.conv[: config.head_convs]

    def forward(self, images: Tensor, anchors: Tensor | None = None) -> RawMaps:
        levels = self.backbone(images)
        features = list(self.fpn({name: levels[name] for name in LEVELS}).values())
        outputs = self.head(features)
        shapes = [tuple(f.shape[2:]) for f in features]
        return RawMaps(
            features,
            outputs["cls_logits"].float(),
            outputs["bbox_regression"].float(),
            self.anchors(shapes) if anchors is None else anchors,
            self.level_sizes(shapes),
        )
