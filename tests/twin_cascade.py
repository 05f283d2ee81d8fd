"""A cascade with real detections, and its reference: a plain loop over images and stages with torchvision's parts."""

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes
from twin import TwinAnchors, _pool, _random_boxes, _spread, smooth_images
from twin_losses import ForcedSampler, Keys

from directdet.models.parts.masks import project_masks
from directdet.models.parts.targets import Targets
from directdet.models.two_stage.cascade import Cascade
from directdet.models.two_stage.config import CascadeConfig, TwoStageConfig
from directdet.models.two_stage.network import RCNN

# The paper's code: IoU, loss weight and standard deviations of the deltas of each stage.
PUBLISHED = (
    (0.5, 1.0, (0.1, 0.1, 0.2, 0.2)),
    (0.6, 0.5, (0.05, 0.05, 0.1, 0.1)),
    (0.7, 0.25, (0.033, 0.033, 0.067, 0.067)),
)


def conditioned_cascade(trunk: RCNN, size: tuple[int, int], masks: bool = True, **settings: object) -> Cascade:
    """A cascade on the conditioned trunk of an R-CNN; the outputs of its heads are standardised as in twin.py."""
    shared = {f.name: getattr(trunk.config, f.name) for f in fields(TwoStageConfig)}
    torch.manual_seed(1)
    model = Cascade(CascadeConfig(**{**shared, "masks": masks, **settings})).eval()
    for part in ("backbone", "fpn", "rpn_head"):
        getattr(model, part).load_state_dict(getattr(trunk, part).state_dict())
    with torch.no_grad():
        maps = model.fpn(model.backbone(smooth_images(2, size, 200)))
        boxes = [_random_boxes(32, size) for _ in range(2)]
        for head, predictor in zip(model.box_heads, model.box_predictors, strict=True):
            hidden = head(_pool(maps, boxes, 7, size))
            _spread(predictor.cls_score, predictor.cls_score(hidden), 1.5)
            _spread(predictor.bbox_pred, predictor.bbox_pred(hidden), 0.5)
        for head, predictor in zip(*(model.mask_heads, model.mask_predictors) if masks else ((), ()), strict=True):
            logits = predictor(head(_pool(maps, [b[:8] for b in boxes], 14, size)))
            _spread(predictor.mask_fcn_logits, logits.movedim(1, -1).flatten(0, 2), 2.0)
    return model


def their_rpn(model: Cascade) -> RegionProposalNetwork:
    config = model.config
    return RegionProposalNetwork(
        TwinAnchors(config, model.strides),
        model.rpn_head,
        config.rpn_positive_iou,
        config.rpn_negative_iou,
        config.rpn_samples,
        config.rpn_positive_fraction,
        {"training": config.train_pre_nms, "testing": config.test_pre_nms},
        {"training": config.train_proposals, "testing": config.test_proposals},
        config.rpn_nms,
    )


def their_pool(maps: dict[str, Tensor], rois: list[Tensor], bins: int, sizes: list[tuple[int, int]]) -> Tensor:
    return MultiScaleRoIAlign(list(maps)[:4], bins, 2)(maps, rois, sizes)


def box_keys(boxes: Tensor) -> Tensor:
    """A sampling key for each box [..., 4], computed from its coordinates because the order of slots is arbitrary."""
    return (boxes * torch.tensor([0.031, 0.047, 0.023, 0.037])).sum(-1) % 1


def loop_losses(
    model: Cascade, images: Tensor, targets: Targets, keys: Keys
) -> tuple[dict[str, Tensor], list[list[dict]]]:
    """The losses, and the samples of every stage and image."""
    config, sizes = model.config, [tuple(int(v) for v in size) for size in targets.sizes]
    objects = [{"boxes": targets.boxes[i][v], "labels": targets.labels[i][v] + 1} for i, v in enumerate(targets.valid)]
    masks = [None if targets.masks is None else targets.masks[i][v] for i, v in enumerate(targets.valid)]
    maps = model.fpn(model.backbone(images))
    rpn = their_rpn(model).train()
    anchors = sum(f.shape[2] * f.shape[3] for f in maps.values()) * 3
    rpn_keys = list(keys(torch.Size([len(images), anchors])))
    rpn.fg_bg_sampler = ForcedSampler(config.rpn_samples, config.rpn_positive_fraction, rpn_keys)
    boxes, theirs = rpn(ImageList(images, sizes), maps, objects)
    losses, stages = {"rpn_class": theirs["loss_objectness"], "rpn_box": theirs["loss_rpn_box_reg"]}, []
    for stage, (iou, weight, stds) in enumerate(PUBLISHED):
        coder = BoxCoder(tuple(1 / s for s in stds))
        samples = [loop_sample(config, *pair, iou) for pair in zip(boxes, objects, strict=True)]
        rois = [s["rois"] for s in samples]
        logits, deltas = model.box_predictors[stage](model.box_heads[stage](their_pool(maps, rois, 7, sizes)))
        labels = torch.cat([s["labels"] for s in samples])
        wanted = coder.encode_single(torch.cat([s["matched"] for s in samples]), torch.cat(rois)[labels > 0])
        difference = F.smooth_l1_loss(deltas[labels > 0], wanted, beta=1.0, reduction="sum")
        losses[f"class{stage + 1}"] = weight * F.cross_entropy(logits, labels)
        losses[f"box{stage + 1}"] = weight * difference / len(labels)
        if config.masks:
            losses[f"mask{stage + 1}"] = weight * loop_mask_loss(model, stage, maps, sizes, samples, objects, masks)
        with torch.no_grad():
            refined = coder.decode_single(deltas, torch.cat(rois)).split([len(r) for r in rois])
            boxes = [
                clip_boxes_to_image(new, size)[~s["own"]] for new, size, s in zip(refined, sizes, samples, strict=True)
            ]
        stages.append(samples)
    return losses, stages


def loop_sample(config: CascadeConfig, boxes: Tensor, objects: dict[str, Tensor], iou: float) -> dict:
    """One image's sample among `boxes` and its objects: positives first."""
    candidates = torch.cat([boxes, objects["boxes"]])
    overlap = box_iou(objects["boxes"], candidates)
    best, matched = overlap.max(0) if len(overlap) else (torch.zeros(len(candidates)), None)
    limit = int(config.roi_samples * config.roi_positive_fraction)
    keys = box_keys(candidates)
    positive, negative = torch.where(best >= iou)[0], torch.where(best < iou)[0]
    positive = positive[keys[positive].argsort(descending=True)][:limit]
    negative = negative[keys[negative].argsort(descending=True)][: config.roi_samples - len(positive)]
    index = torch.cat([positive, negative])
    labels = torch.zeros(len(index), dtype=torch.long)
    matched = matched[positive] if len(positive) else positive
    labels[: len(positive)] = objects["labels"][matched]
    return {
        "rois": candidates[index],
        "labels": labels,
        "object": matched,
        "matched": objects["boxes"][matched],
        "own": index >= len(boxes),
        "candidates": len(candidates),
    }


def loop_mask_loss(
    model: Cascade,
    stage: int,
    maps: dict[str, Tensor],
    sizes: list[tuple[int, int]],
    samples: list[dict],
    objects: list[dict[str, Tensor]],
    masks: list[Tensor],
) -> Tensor:
    """Mask targets come from our project_masks, which is tested separately."""
    rois = [s["rois"][s["labels"] > 0] for s in samples]
    labels = torch.cat([s["labels"][s["labels"] > 0] for s in samples])
    if not len(labels):
        return torch.zeros(())
    wanted = [
        project_masks(m[s["object"]], o["boxes"][s["object"]], r)
        for m, o, s, r in zip(masks, objects, samples, rois, strict=True)
        if len(r)
    ]
    logits = model.mask_predictors[stage](model.mask_heads[stage](their_pool(maps, rois, 14, sizes)))
    return F.binary_cross_entropy_with_logits(logits[torch.arange(len(labels)), labels], torch.cat(wanted))


@torch.no_grad()
def loop_detections(model: Cascade, images: Tensor) -> list[dict[str, Tensor]]:
    """Detections of normalised images; labels count from 1, as in torchvision."""
    config, size = model.config, tuple(images.shape[2:])
    maps = model.fpn(model.backbone(images))
    proposals, _ = their_rpn(model).eval()(ImageList(images, [size] * len(images)), maps)
    found = []
    for i, boxes in enumerate(proposals):
        own_maps, scores = {k: v[i : i + 1] for k, v in maps.items()}, []
        for head, predictor, (_, _, stds) in zip(model.box_heads, model.box_predictors, PUBLISHED, strict=True):
            logits, deltas = predictor(head(their_pool(own_maps, [boxes], 7, [size])))
            scores.append(logits)
            boxes = BoxCoder(tuple(1 / s for s in stds)).decode_single(deltas, boxes)
            boxes = clip_boxes_to_image(boxes, size)
        score = torch.stack(scores).mean(0).softmax(1)[:, 1:]
        roi, label = torch.where(score > config.score_threshold)
        score, boxes = score[roi, label], boxes[roi]
        large = remove_small_boxes(boxes, 1e-2)
        boxes, score, label = boxes[large], score[large], label[large]
        kept = batched_nms(boxes, score, label, config.nms)[: config.detections]
        found.append({"boxes": boxes[kept], "scores": score[kept], "labels": label[kept] + 1})
        if config.masks:
            pooled = their_pool(own_maps, [boxes[kept]], 14, [size])
            heads = zip(model.mask_heads, model.mask_predictors, strict=True)
            masks = torch.stack([predictor(head(pooled)).sigmoid() for head, predictor in heads]).mean(0)
            found[-1]["masks"] = masks[torch.arange(len(kept)), label[kept] + 1][:, None]
    return found
