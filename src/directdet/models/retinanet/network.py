"""The RetinaNet network, from images to raw maps.

Lin et al., "Focal Loss for Dense Object Detection", with the settings of mmdet's configuration, which the from-scratch
paper used. It is built from torchvision's modules, so parameter names match and torchvision serves as the reference in
tests.
"""

from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from directdet.models.backbones.builders import build_backbone
from directdet.models.parts.anchors import anchor_shapes
from directdet.models.parts.pyramid import Anchored, RawMaps, norm_layer
from directdet.models.parts.start import init_xavier
from directdet.models.retinanet.config import RetinaNetConfig

LEVELS = ("c3", "c4", "c5")


class RetinaNet(Anchored):
    """Backbone, a feature pyramid P3 to P7, and two subnets shared by all levels.

    forward(images [N, 3, H, W], normalised, H and W multiples of 32) -> RawMaps with logits [N, A, classes], one
    independent sigmoid per class.

    P6 is computed from C5, and P7 from P6 after a ReLU, as in the RetinaNet paper and torchvision (mmdet omits the
    ReLU). P6 and P7 are never normalised, not even with "gn", as in torchvision.
    """

    config: RetinaNetConfig

    def __init__(self, config: RetinaNetConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(("pyramid",), config.backbone, config.width, config.norm, config.in_channels)
        self.backbone.keep_levels(LEVELS)
        channels, norm = [self.backbone.channels[level] for level in LEVELS], norm_layer(config.norm)
        coarsest = LastLevelP6P7(channels[-1], config.fpn_channels)
        coarsest.use_P5 = False  # torchvision would use P5 if it has as many channels as C5
        self.fpn = FeaturePyramidNetwork(channels, config.fpn_channels, coarsest, norm)
        init_xavier(self.fpn)
        strides = [self.backbone.strides[level] for level in LEVELS]
        self.strides = [*strides, strides[-1] * 2, strides[-1] * 4]
        self.narrowest = strides[-1] * 2  # P6, from which P7 is made
        sides = tuple(config.anchor_scale * 2 ** (i / config.anchor_octave) for i in range(config.anchor_octave))
        shapes = anchor_shapes(sides, config.anchor_ratios)
        self.register_buffer("anchor_shapes", shapes, persistent=False)
        # Initialised as in the paper: weights of standard deviation 0.01, and a probability of 0.01 for every class.
        self.head = RetinaNetHead(config.fpn_channels, len(shapes), config.num_classes, norm)
        for subnet in (self.head.classification_head, self.head.regression_head):
            subnet.conv = subnet.conv[: config.head_convs]

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"backbone": ("backbone",), "fpn": ("fpn",), "box": ("head",)}

    def class_layers(self) -> tuple[str, ...]:
        return ("head.classification_head.cls_logits",)

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
