"""A torchvision Mask or Faster R-CNN with the same weights and settings as ours: the oracle."""

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.image_list import ImageList

from directdet.models.rcnn import RCNN, RCNNConfig


def build_twin(model: RCNN) -> FasterRCNN:
    """torchvision's detector holding the weights of `model`, with every setting that torchvision has set alike."""
    config = model.config
    assert config.width == 64 and config.fpn_channels == 256, "torchvision builds full-width networks only"
    backbone = _resnet_fpn_extractor(getattr(torchvision.models, config.backbone)(weights=None), 5)
    anchors = AnchorGenerator(
        tuple((config.anchor_scale * s,) for s in model.strides), (config.anchor_ratios,) * len(model.strides)
    )
    # torchvision rounds its anchors to whole pixels; the papers' code, and ours, do not.
    for index, stride in enumerate(model.strides):
        root = torch.tensor(config.anchor_ratios).sqrt()
        side = config.anchor_scale * stride
        anchors.cell_anchors[index] = torch.stack([-side / root, -side * root, side / root, side * root], 1) / 2
    if config.box_convs:
        head = FastRCNNConvFCHead((256, 7, 7), [256] * config.box_convs, [config.box_features])
    else:
        head = TwoMLPHead(256 * 49, config.box_features)
    settings = {
        "rpn_anchor_generator": anchors,
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
    twin = (MaskRCNN if config.masks else FasterRCNN)(backbone, config.num_classes + 1, **settings)
    pairs = [
        (twin.backbone.body, model.backbone),
        (twin.backbone.fpn, model.fpn),
        (twin.rpn.head, model.rpn_head),
        (twin.roi_heads.box_head, model.box_head),
        (twin.roi_heads.box_predictor, model.box_predictor),
    ]
    if config.masks:
        pairs += [(twin.roi_heads.mask_head, model.mask_head), (twin.roi_heads.mask_predictor, model.mask_predictor)]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return twin.train(model.training)


def twin_detections(twin: FasterRCNN, images: torch.Tensor) -> list[dict]:
    """torchvision's own path from normalised images [N, 3, H, W] on; masks stay 28x28."""
    size = tuple(images.shape[2:])
    image_list = ImageList(images, [size] * len(images))
    features = twin.backbone(images)
    proposals, _ = twin.rpn(image_list, features)
    detections, _ = twin.roi_heads(features, proposals, image_list.image_sizes)
    return detections


def smooth_images(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Normalised pictures of soft blobs [count, 3, H, W]: regions to tell apart, unlike white noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, *size)
    for cells in (4, 8, 16, 32):
        blobs = torch.rand(count, 3, cells, cells, generator=generator) * (8 / cells) ** 0.5
        images += nn.functional.interpolate(blobs, size=size, mode="bicubic", align_corners=False)
    low, high = images.amin((1, 2, 3), True), images.amax((1, 2, 3), True)
    return ((images - low) / (high - low) - 0.45) / 0.225


def conditioned_model(config: RCNNConfig, size: tuple[int, int], seed: int = 0) -> RCNN:
    """A random network that really detects, and on which two correct implementations agree.

    A fresh one is chaotic: rounding errors grow from layer to layer, and all scores are alike. So its residual branches
    are damped, its BN statistics calibrated and its heads' outputs spread.
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
        features = list(model.fpn.eval()(model.backbone.eval()(smooth_images(1, size, 200))).values())
        _spread(model.rpn_head.cls_logits, model.rpn_head(features)[0][0], 1.5)
        _spread(model.rpn_head.bbox_pred, model.rpn_head(features)[1][0], 0.3)
        pooled = nn.functional.adaptive_avg_pool2d(features[0], 7).repeat(8, 1, 1, 1) * torch.rand(8, 1, 1, 1)
        hidden = model.box_head(pooled + 0.3 * torch.randn(pooled.shape) * features[0].std())
        _spread(model.box_predictor.cls_score, model.box_predictor.cls_score(hidden), 2.0)
        _spread(model.box_predictor.bbox_pred, model.box_predictor.bbox_pred(hidden), 0.5)
    return model.eval()


def _spread(layer: nn.Module, output: torch.Tensor, wanted: float) -> None:
    layer.weight *= wanted / output.std().clamp(min=1e-6)
