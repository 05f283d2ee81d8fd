"""A torchvision RetinaNet with the same weights and settings as ours, the reference in tests."""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou, remove_small_boxes, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from twin import smooth_images

from directdet.models.parts.norm import group_norm
from directdet.models.parts.postprocess import MIN_SIDE
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import Targets
from directdet.models.retinanet.config import RetinaNetConfig
from directdet.models.retinanet.network import RetinaNet

EVERY = 1_000_000


class TwinAnchors(AnchorGenerator):
    """torchvision's anchors with sides and strides that are not rounded to whole pixels; see twin.TwinAnchors."""

    def __init__(self, config: RetinaNetConfig, strides: list[int]):
        octave = [config.anchor_scale * 2 ** (i / config.anchor_octave) for i in range(config.anchor_octave)]
        sides = [[scale * stride for scale in octave] for stride in strides]
        super().__init__(tuple(map(tuple, sides)), (config.anchor_ratios,) * len(strides))
        self.strides = strides
        root = torch.tensor(config.anchor_ratios).sqrt()[:, None]
        for index, level in enumerate(sides):
            side = torch.tensor(level)
            height, width = (side * root).flatten(), (side / root).flatten()
            self.cell_anchors[index] = torch.stack([-width, -height, width, height], 1) / 2

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [[torch.tensor(s), torch.tensor(s)] for s in self.strides])


def build_twin(model: RetinaNet) -> TorchvisionRetinaNet:
    """torchvision's detector with the weights of `model`, and the same settings where torchvision has them."""
    config = model.config
    assert config.width in (None, 64) and config.head_convs == 4, "torchvision builds full-width networks only"
    norm = group_norm if config.norm == "gn" else None
    body = getattr(torchvision.models, config.backbone)(weights=None, norm_layer=norm)
    channels = [body.fc.in_features // factor for factor in (4, 2, 1)]
    backbone = BackboneWithFPN(
        body,
        {f"layer{i + 2}": str(i) for i in range(3)},
        channels,
        config.fpn_channels,
        LastLevelP6P7(channels[-1], config.fpn_channels),
        norm,
    )
    anchors = TwinAnchors(config, model.strides)
    twin = TorchvisionRetinaNet(
        backbone,
        config.num_classes,
        anchor_generator=anchors,
        head=RetinaNetHead(config.fpn_channels, len(anchors.cell_anchors[0]), config.num_classes, norm),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms,
        detections_per_img=EVERY,
        fg_iou_thresh=config.positive_iou,
        bg_iou_thresh=config.negative_iou,
        topk_candidates=config.test_pre_nms,
    )
    for theirs, ours in same_parts(twin, model):
        theirs.load_state_dict(ours.state_dict())
    return twin.train(model.training)


def same_parts(twin: TorchvisionRetinaNet, model: RetinaNet) -> list[tuple[nn.Module, nn.Module]]:
    """Pairs of torchvision's modules and ours with the same parameters under the same names."""
    return [(twin.backbone.body, model.backbone), (twin.backbone.fpn, model.fpn), (twin.head, model.head)]


def twin_maps(twin: TorchvisionRetinaNet, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
    """Features, head outputs and each image's anchors, of normalised images [N, 3, H, W]."""
    features = list(twin.backbone(images).values())
    sizes = [tuple(images.shape[2:])] * len(images)
    return features, twin.head(features), twin.anchor_generator(ImageList(images, sizes), features)


def twin_losses(twin: TorchvisionRetinaNet, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """torchvision's losses under our names: those of each image divided by its positives, then their mean."""
    _, outputs, anchors = twin_maps(twin, images)
    theirs = [
        {"boxes": boxes[valid], "labels": labels[valid]}
        for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True)
    ]
    losses = twin.compute_loss(theirs, outputs, anchors)
    return {"class": losses["classification"], "box": losses["bbox_regression"]}


def plain_losses(config: RetinaNetConfig, raw: RawMaps, targets: Targets) -> tuple[dict[str, Tensor], int]:
    """The losses computed image by image with torchvision, divided by the positives of the batch; and that number."""
    matcher = Matcher(config.positive_iou, config.negative_iou, allow_low_quality_matches=True)
    losses, positives = {"class": torch.zeros(()), "box": torch.zeros(())}, 0
    for i, valid in enumerate(targets.valid):
        boxes, labels = targets.boxes[i][valid], targets.labels[i][valid]
        background = torch.full((len(raw.anchors),), -1)
        matched = matcher(box_iou(boxes, raw.anchors)) if len(boxes) else background
        positive = matched >= 0
        wanted = torch.zeros_like(raw.logits[i])
        wanted[positive, labels[matched[positive]]] = 1
        kept = matched != Matcher.BETWEEN_THRESHOLDS
        focal = sigmoid_focal_loss(raw.logits[i][kept], wanted[kept], config.focal_alpha, config.focal_gamma)
        losses["class"] = losses["class"] + focal.sum()
        if positive.any():
            deltas = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes[matched[positive]], raw.anchors[positive])
            losses["box"] = losses["box"] + (raw.deltas[i][positive] - deltas).abs().sum()
        positives += int(positive.sum())
    return {name: value / max(1, positives) for name, value in losses.items()}, positives


def twin_detections(twin: TorchvisionRetinaNet, images: Tensor, count: int) -> list[dict]:
    """torchvision's best `count` detections of each normalised image [N, 3, H, W].

    Unlike torchvision's other detectors, its RetinaNet keeps boxes that are empty after clipping; they are removed
    here.
    """
    features, outputs, anchors = twin_maps(twin, images)
    # As in its forward(), everything is split by level for post-processing.
    sizes = [f.shape[2] * f.shape[3] * len(twin.anchor_generator.cell_anchors[0]) for f in features]
    split = {name: list(value.split(sizes, 1)) for name, value in outputs.items()}
    image_sizes = [tuple(images.shape[2:])] * len(images)
    found = twin.postprocess_detections(split, [list(a.split(sizes)) for a in anchors], image_sizes)
    kept = [remove_small_boxes(d["boxes"], MIN_SIDE)[:count] for d in found]
    return [{name: value[index] for name, value in d.items()} for d, index in zip(found, kept, strict=True)]


def same_detections(outputs: tuple[Tensor, ...], theirs: list[dict], least: int = 10) -> None:
    """Every detection has exactly one counterpart with the same label, box and score; the other rows are 0."""
    num, boxes, scores, labels = outputs
    assert num.dtype == labels.dtype == torch.int32 and num.shape == (len(theirs), 1)
    for i, expected in enumerate(theirs):
        count = num[i].item()
        assert count == len(expected["boxes"]) >= least
        assert (scores[i, :count].diff() <= 0).all()
        assert not boxes[i, count:].any() and not scores[i, count:].any() and not labels[i, count:].any()
        iou = box_iou(boxes[i, :count], expected["boxes"])
        iou[labels[i, :count, None] != expected["labels"]] = 0
        value, partner = iou.max(1)
        assert (value > 0.99).all() and len(partner.unique()) == count
        torch.testing.assert_close(boxes[i, :count], expected["boxes"][partner], rtol=0, atol=0.01)
        torch.testing.assert_close(scores[i, :count], expected["scores"][partner], rtol=0, atol=1e-5)


def conditioned_model(config: RetinaNetConfig, size: tuple[int, int], seed: int = 0) -> RetinaNet:
    """A random network with real detections, in evaluation mode; see twin.conditioned_model for the reason.

    Logits are given mean -3 and standard deviation 1.5, so that half of all pairs are above the usual threshold of
    0.05.
    """
    torch.manual_seed(seed)
    model = RetinaNet(config)
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    last = "bn3" if config.backbone == "resnet50" else "bn2"
    for name, norm in norms:
        if name.endswith(last):
            nn.init.constant_(norm.weight, 0.2)
        norm.momentum = None  # a plain average over the calibration images
        norm.reset_running_stats()
    with torch.no_grad():
        model.train().backbone(smooth_images(4, size, 100 + seed))
        for _, norm in norms:
            norm.momentum = 0.1
        raw = model.eval()(smooth_images(2, size, 200 + seed))
        shapes = len(model.anchor_shapes)
        _spread(model.head.classification_head.cls_logits, raw.logits.reshape(-1, shapes * config.num_classes), -3, 1.5)
        _spread(model.head.regression_head.bbox_reg, raw.deltas.reshape(-1, shapes * 4), 0, 0.3)
    return model


def _spread(layer: nn.Conv2d, outputs: Tensor, mean: float, deviation: float) -> None:
    """Rescale `layer` so that each channel of its outputs [K, C] gets this mean and standard deviation."""
    scale = deviation / outputs.std(0).clamp(min=1e-6)
    layer.weight.mul_(scale[:, None, None, None])
    layer.bias.copy_((layer.bias - outputs.mean(0)) * scale + mean)
