"""A torchvision Mask or Faster R-CNN with the same weights and settings as ours, the reference in tests."""

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import MultiScaleRoIAlign

from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.network import RCNN


class TwinAnchors(AnchorGenerator):
    """torchvision's anchors without two rounding steps, which neither the papers' code nor ours has.

    torchvision rounds the sides of anchors to whole pixels, and uses image size // map size as the stride of a level,
    which is 53 instead of 64 for the last level of a canvas of 160.
    """

    def __init__(self, config: RCNNConfig, strides: list[int]):
        super().__init__(tuple((config.anchor_scale * s,) for s in strides), (config.anchor_ratios,) * len(strides))
        self.strides = strides
        root = torch.tensor(config.anchor_ratios).sqrt()
        for index, stride in enumerate(strides):
            side = config.anchor_scale * stride
            self.cell_anchors[index] = torch.stack([-side / root, -side * root, side / root, side * root], 1) / 2

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        return super().grid_anchors(grid_sizes, [[torch.tensor(s), torch.tensor(s)] for s in self.strides])


def build_twin(model: RCNN) -> FasterRCNN:
    """torchvision's detector with the weights of `model`, and the same settings where torchvision has them."""
    config = model.config
    assert config.width in (None, 64) and config.fpn_channels == 256, "torchvision builds full-width networks only"
    backbone = _resnet_fpn_extractor(getattr(torchvision.models, config.backbone)(weights=None), 5)
    if config.box_convs:
        head = FastRCNNConvFCHead((256, 7, 7), [256] * config.box_convs, [config.box_features])
    else:
        head = TwoMLPHead(256 * 49, config.box_features)
    settings = {
        "rpn_anchor_generator": TwinAnchors(config, model.strides),
        "rpn_pre_nms_top_n_train": config.train_pre_nms,
        "rpn_pre_nms_top_n_test": config.test_pre_nms,
        "rpn_post_nms_top_n_train": config.train_proposals,
        "rpn_post_nms_top_n_test": config.test_proposals,
        "rpn_nms_thresh": config.rpn_nms,
        "rpn_batch_size_per_image": config.rpn_samples,
        "box_batch_size_per_image": config.roi_samples,
        "box_score_thresh": config.score_threshold,
        "box_nms_thresh": config.nms,
        "box_detections_per_img": config.detections,
        "box_head": head,
    }
    if config.masks:
        assert config.mask_channels == 256, "torchvision's mask predictor is built for 256 channels"
        settings["mask_head"] = MaskRCNNHeads(256, (256,) * config.mask_convs, 1)
    twin = (MaskRCNN if config.masks else FasterRCNN)(backbone, config.num_classes + 1, **settings)
    # By default torchvision assumes a box head of 1024 features.
    twin.roi_heads.box_predictor = FastRCNNPredictor(config.box_features, config.num_classes + 1)
    for theirs, ours in same_parts(twin, model):
        theirs.load_state_dict(ours.state_dict())
    return twin.train(model.training)


def same_parts(twin: FasterRCNN, model: RCNN) -> list[tuple[nn.Module, nn.Module]]:
    """Pairs of torchvision's modules and ours with the same parameters under the same names."""
    heads = twin.roi_heads
    pairs = [
        (twin.backbone.body, model.backbone),
        (twin.backbone.fpn, model.fpn),
        (twin.rpn.head, model.rpn_head),
        (heads.box_head, model.box_head),
        (heads.box_predictor, model.box_predictor),
    ]
    if model.config.masks:
        pairs += [(heads.mask_head, model.mask_head), (heads.mask_predictor, model.mask_predictor)]
    return pairs


def twin_detections(twin: FasterRCNN, images: torch.Tensor) -> list[dict]:
    """torchvision's detections of normalised images [N, 3, H, W]; masks stay 28x28."""
    size = tuple(images.shape[2:])
    image_list = ImageList(images, [size] * len(images))
    features = twin.backbone(images)
    proposals, _ = twin.rpn(image_list, features)
    detections, _ = twin.roi_heads(features, proposals, image_list.image_sizes)
    return detections


def smooth_images(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Normalised images of smooth blobs [count, 3, H, W], with distinct regions, unlike white noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, *size)
    for cells in (4, 8, 16, 32):
        blobs = torch.rand(count, 3, cells, cells, generator=generator) * (8 / cells) ** 0.5
        images += nn.functional.interpolate(blobs, size=size, mode="bicubic", align_corners=False)
    low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
    return ((images - low) / (high - low) - 0.45) / 0.225


def conditioned_model(config: RCNNConfig, size: tuple[int, int], seed: int = 0) -> RCNN:
    """A random network with real detections, on which two correct implementations agree.

    A newly initialised network is chaotic: rounding errors grow from layer to layer, and all scores are similar. So the
    residual branches are damped, the BN statistics calibrated, and each output of the heads standardised over typical
    boxes: varied labels and scores, none saturated (saturated scores hide errors and cause ties).
    """
    torch.manual_seed(seed)
    model = RCNN(config)
    for name, module in model.named_modules():
        if name.endswith("bn3" if config.backbone == "resnet50" else "bn2"):
            nn.init.constant_(module.weight, 0.2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average over the calibration images
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        model.backbone(smooth_images(4, size, 100 + seed))
        for norm in norms:
            norm.momentum = 0.1
        model.eval()
        maps = model.fpn(model.backbone(smooth_images(2, size, 200 + seed)))
        logits, deltas = model.rpn_head(list(maps.values()))
        _spread(model.rpn_head.cls_logits, torch.cat([t.movedim(1, -1).flatten(0, 2) for t in logits]), 1.5)
        _spread(model.rpn_head.bbox_pred, torch.cat([t.movedim(1, -1).flatten(0, 2) for t in deltas]), 0.3)
        boxes = [_random_boxes(32, size) for _ in range(2)]
        hidden = model.box_head(_pool(maps, boxes, 7, size))
        _spread(model.box_predictor.cls_score, model.box_predictor.cls_score(hidden), 1.5)
        _spread(model.box_predictor.bbox_pred, model.box_predictor.bbox_pred(hidden), 0.5)
        if config.masks:
            logits = model.mask_predictor(model.mask_head(_pool(maps, [b[:8] for b in boxes], 14, size)))
            _spread(model.mask_predictor.mask_fcn_logits, logits.movedim(1, -1).flatten(0, 2), 2.0)
    return model


def _spread(layer: nn.Module, outputs: torch.Tensor, wanted: float) -> None:
    """Rescale `layer` so that each channel of its outputs [K, C] gets mean 0 and standard deviation `wanted`."""
    mean, scale = outputs.mean(0), wanted / outputs.std(0).clamp(min=1e-6)
    layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - mean) * scale)


def _random_boxes(count: int, size: tuple[int, int]) -> torch.Tensor:
    corners = torch.rand(count, 2, 2).sort(1).values * torch.tensor([size[1] - 8.0, size[0] - 8.0])
    return torch.cat([corners[:, 0], corners[:, 1] + 8], 1)


def _pool(maps: dict[str, torch.Tensor], boxes: list[torch.Tensor], bins: int, size: tuple[int, int]) -> torch.Tensor:
    return MultiScaleRoIAlign(list(maps)[:4], bins, 2)(maps, boxes, [size] * len(boxes))
