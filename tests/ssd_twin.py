"""A torchvision SSD with the same weights, width and settings as ours, the reference in tests."""

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG, SSDHead
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import box_iou, remove_small_boxes
from twin import smooth_images

from directdet.models.parts.postprocess import MIN_SIDE
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import Targets
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.network import SSD

SIZE = (300, 300)
RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
STEPS = [8, 16, 32, 64, 100, 300]
# min_size and max_size of SSD's Caffe scripts, as fractions of 300 pixels.
SCALES = {"coco": [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05], "voc": [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]}
CHANNELS = [512, 1024, 512, 256, 256, 256]


def build_twin(model: SSD) -> TorchvisionSSD:
    """torchvision's detector with the weights of `model`, and the same settings where torchvision has them.

    Its layers are those of ssd300_vgg16 (built without VGG's classifier, which it discards), scaled to our width.
    """
    config, twin = model.config, bare_twin(model.config)
    assert (config.backbone, config.extras, config.norm, config.head_norm) == ("vgg16", "ssd", "none", False)
    width = config.width or 64
    body = SSDFeatureExtractorVGG(make_layers(cfgs["D"]), highres=False)
    if width != 64:
        _narrow(body, width)
    twin.backbone = body
    twin.head = SSDHead(
        [c * width // 64 for c in CHANNELS], twin.anchor_generator.num_anchors_per_location(), config.num_classes + 1
    )
    with torch.no_grad():
        body.scale_weight.copy_(model.l2_norm.scale)
    for theirs, ours in same_convolutions(twin, model):
        theirs.load_state_dict(ours.state_dict())
    return twin.train(model.training)


def bare_twin(config: SSDConfig) -> TorchvisionSSD:
    """torchvision's detector without a network: its matching, losses and post-processing."""
    return TorchvisionSSD(
        nn.Identity(),
        DefaultBoxGenerator(RATIOS, scales=SCALES[config.priors], steps=STEPS, clip=False),
        SIZE,
        config.num_classes + 1,
        head=nn.Identity(),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms,
        detections_per_img=1_000_000,  # it keeps boxes that are empty after clipping; see twin_detections
        iou_thresh=config.positive_iou,
        positive_fraction=1 / (1 + config.negative_ratio),
    )


def _narrow(module: nn.Module, width: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            inputs = child.in_channels if child.in_channels == 3 else child.in_channels * width // 64
            slim = nn.Conv2d(
                inputs,
                child.out_channels * width // 64,
                child.kernel_size,
                child.stride,
                child.padding,
                child.dilation,
            )
            setattr(module, name, slim)
        _narrow(child, width)
    if isinstance(module, SSDFeatureExtractorVGG):
        module.scale_weight = nn.Parameter(module.scale_weight[: 512 * width // 64].detach().clone())


def same_convolutions(twin: TorchvisionSSD, model: SSD) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """Pairs of torchvision's convolutions and ours; both networks store them in order of execution."""
    theirs, ours = (
        [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]
        for parts in ([twin.backbone, twin.head], [model.backbone, model.extras, model.head])
    )
    return list(zip(theirs, ours, strict=True))


def twin_maps(twin: TorchvisionSSD, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """Features, head outputs and priors [A, 4], of normalised images [N, 3, 300, 300]."""
    features = list(twin.backbone(images).values())
    return features, twin.head(features), twin_priors(twin, [tuple(f.shape[2:]) for f in features])


def twin_priors(twin: TorchvisionSSD, sizes: list[tuple[int, int]]) -> Tensor:
    maps = [torch.empty(1, 1, *size) for size in sizes]
    return twin.anchor_generator(ImageList(torch.empty(1, 3, *SIZE), [SIZE]), maps)[0]


def twin_matches(twin: TorchvisionSSD, boxes: Tensor, priors: Tensor) -> Tensor:
    """The object of each prior [A], or -1, as torchvision's forward() finds it."""
    if not len(boxes):
        return torch.full((len(priors),), -1)
    return twin.proposal_matcher(box_iou(boxes, priors))


def twin_losses(twin: TorchvisionSSD, raw: RawMaps, targets: Targets) -> tuple[dict[str, Tensor], int]:
    """torchvision's losses of these maps under our names, and the number of positive priors."""
    theirs = [
        {"boxes": boxes[valid], "labels": labels[valid] + 1}
        for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True)
    ]
    matched = [twin_matches(twin, one["boxes"], raw.anchors) for one in theirs]
    outputs = {"bbox_regression": raw.deltas, "cls_logits": raw.logits}
    losses = twin.compute_loss(theirs, outputs, [raw.anchors] * len(theirs), matched)
    positives = sum(int((m >= 0).sum()) for m in matched)
    return {"class": losses["classification"], "box": losses["bbox_regression"]}, positives


def twin_detections(twin: TorchvisionSSD, raw: RawMaps, count: int) -> list[dict]:
    """torchvision's best `count` detections per image from these maps, without boxes that are empty after clipping."""
    outputs, images = {"bbox_regression": raw.deltas, "cls_logits": raw.logits}, len(raw.logits)
    found = twin.postprocess_detections(outputs, [raw.anchors] * images, [SIZE] * images)
    kept = [remove_small_boxes(d["boxes"], MIN_SIDE)[:count] for d in found]
    return [{name: value[index] for name, value in d.items()} for d, index in zip(found, kept, strict=True)]


def same_detections(outputs: tuple[Tensor, ...], theirs: list[dict], least: int, score: float = 1e-5) -> None:
    """Every detection has exactly one counterpart with the same label, box and score; the other rows are 0."""
    num, boxes, scores, labels = outputs
    assert num.dtype == labels.dtype == torch.int32 and num.shape == (len(theirs), 1)
    for i, expected in enumerate(theirs):
        count = num[i].item()
        assert count == len(expected["boxes"]) >= least
        assert (scores[i, :count].diff() <= 0).all()
        assert not boxes[i, count:].any() and not scores[i, count:].any() and not labels[i, count:].any()
        iou = box_iou(boxes[i, :count], expected["boxes"])
        iou[labels[i, :count, None] != expected["labels"] - 1] = 0
        value, partner = iou.max(1) if count else (iou.new_zeros(0), torch.zeros(0, dtype=torch.long))
        assert (value > 0.99).all() and len(partner.unique()) == count
        torch.testing.assert_close(boxes[i, :count], expected["boxes"][partner], rtol=0, atol=0.01)
        torch.testing.assert_close(scores[i, :count], expected["scores"][partner], rtol=0, atol=score)


def trained_maps(
    config: SSDConfig, priors: Tensor, level_sizes: list[int], objects: list[int], seed: int = 0
) -> RawMaps:
    """Raw maps as predicted by a trained network: objects[i] objects in image i, and confident priors on each.

    A prior's probability increases with its IoU with an object, its box is off by a tenth of the object's sides, some
    objects are also detected as a second class, and the background has low scores with a tail of weak detections.
    """
    generator = torch.Generator().manual_seed(seed)
    images, number = len(objects), len(priors)
    logits = 0.7 * torch.randn(images, number, config.num_classes + 1, generator=generator) - 5
    logits[..., 0] = 3
    deltas = 0.3 * torch.randn(images, number, 4, generator=generator)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    for i, count in ((i, count) for i, count in enumerate(objects) if count):
        side = 300 * (0.08 + 0.5 * torch.rand(count, 2, generator=generator) ** 2)
        corner = torch.rand(count, 2, generator=generator) * (300 - side)
        boxes = torch.cat([corner, corner + side], 1)
        labels = torch.randint(config.num_classes, (count, 2), generator=generator) + 1
        iou, own = box_iou(priors, boxes).max(1)
        sure = 12 * (iou - 0.35)
        rows = torch.where(iou > 0.25)[0]
        logits[i, rows, labels[own[rows], 0]] = 2 + sure[rows] + 0.5 * torch.randn(len(rows), generator=generator)
        logits[i, rows, labels[own[rows], 1]] = -1 + 0.5 * sure[rows]
        noise = 0.1 * torch.randn(len(rows), 4, generator=generator) * torch.tensor([10.0, 10, 5, 5])
        deltas[i, rows] = coder.encode_single(boxes[own[rows]], priors[rows]) + noise
    return RawMaps([], logits, deltas, priors, level_sizes)


def conditioned_model(config: SSDConfig, seed: int = 0) -> SSD:
    """A random network with real detections, in evaluation mode; see twin.conditioned_model for the reason.

    Every output channel is given a mean and standard deviation over the cells of some images: 0 and 1.5 for classes, 0
    and 0.3 for boxes. Batch normalisations are given the statistics of those images first.
    """
    torch.manual_seed(seed)
    model = SSD(config)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average over the calibration images
    images = pictures(8, 100 + seed)
    with torch.no_grad():
        if norms:
            model.train()(images)
        for norm in norms:
            norm.momentum = 0.1
            # A channel that hardly varies over these few images would only amplify rounding errors.
            norm.running_var.clamp_(min=0.1 * norm.running_var.mean().item())
        features = model.eval()(images).features
        for layers, deviation in ((model.head.classes, 1.5), (model.head.boxes, 0.3)):
            for layer, feature in zip(layers, features, strict=True):
                _spread(layer.norm if hasattr(layer.norm, "weight") else layer.conv, layer(feature), deviation)
    return model


def pictures(count: int, seed: int) -> Tensor:
    """Normalised images [count, 3, 300, 300]."""
    return smooth_images(count, SIZE, seed)


def _spread(layer: nn.Module, outputs: Tensor, deviation: float) -> None:
    """Rescale `layer` so that each channel of its outputs [N, C, H, W] gets mean 0 and this deviation."""
    scale = deviation / outputs.std((0, 2, 3)).clamp(min=1e-6)
    layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - outputs.mean((0, 2, 3))) * scale)
