"""torchvision's five losses with its random sampling replaced by given keys, so that they equal ours."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, roi_heads
from torchvision.models.detection.image_list import ImageList

from directdet.models.parts.masks import project_masks
from directdet.models.parts.targets import Targets

# torchvision's name of each of our losses.
LOSS_NAMES = {
    "rpn_class": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}


class Keys:
    """Reproducible uniform keys, used as our `draw` and for torchvision's sampling.

    All keys are distinct, so that every implementation sorts them in the same order.
    """

    def __init__(self, seed: int = 0):
        self.seed, self.shapes = seed, []

    def __call__(self, shape: torch.Size, device: torch.device | None = None) -> Tensor:
        self.shapes.append(tuple(shape))
        generator = torch.Generator().manual_seed(self.seed + 1000 * len(self.shapes))
        order = torch.randperm(int(torch.Size(shape).numel()), generator=generator)
        return (order / order.numel()).reshape(shape).to(device or "cpu")


class ForcedSampler:
    """Replaces BalancedPositiveNegativeSampler: selects the largest keys instead of random ones."""

    def __init__(self, total: int, fraction: float, keys: list[Tensor]):
        self.total, self.positives, self.keys = total, int(total * fraction), keys

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        chosen = ([], [])
        for label, keys in zip(labels, self.keys, strict=True):
            assert len(label) == len(keys)
            positive = self._best(torch.where(label >= 1)[0], keys, self.positives)
            negative = self._best(torch.where(label == 0)[0], keys, self.total - len(positive))
            for masks, index in zip(chosen, (positive, negative), strict=True):
                masks.append(torch.zeros_like(label, dtype=torch.uint8).index_fill(0, index, 1))
        return chosen

    @staticmethod
    def _best(index: Tensor, keys: Tensor, count: int) -> Tensor:
        return index[keys[index].argsort(descending=True)][:count]


def twin_losses(
    twin: FasterRCNN,
    images: Tensor,
    targets: Targets,
    keys: Keys,
    proposals_per_image: int,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Tensor]:
    """torchvision's losses under our names, sampled by the same `keys`.

    Mask targets come from our project_masks, which is tested separately: torchvision averages where we threshold.
    """
    sizes = [tuple(int(v) for v in size) for size in targets.sizes]
    theirs = [
        {"boxes": targets.boxes[i][v], "labels": targets.labels[i][v] + 1, "masks": None if m is None else m[i][v]}
        for i, v in enumerate(targets.valid)
        for m in [targets.masks]
    ]
    features = twin.backbone(images)
    sampler = twin.rpn.fg_bg_sampler
    cells = sum(f.shape[2] * f.shape[3] for f in features.values())
    anchors = cells * twin.rpn.anchor_generator.num_anchors_per_location()[0]
    monkeypatch.setattr(
        twin.rpn,
        "fg_bg_sampler",
        ForcedSampler(
            sampler.batch_size_per_image, sampler.positive_fraction, list(keys(torch.Size([len(images), anchors])))
        ),
    )
    proposals, losses = twin.rpn(ImageList(images, sizes), features, theirs)
    # Ours are padded proposals, then padded objects; theirs have no padding.
    padded = keys(torch.Size([len(images), proposals_per_image + targets.boxes.shape[1]]))
    compact = [
        torch.cat([row[: len(boxes)], row[proposals_per_image:][valid]])
        for row, boxes, valid in zip(padded, proposals, targets.valid, strict=True)
    ]
    sampler = twin.roi_heads.fg_bg_sampler
    monkeypatch.setattr(
        twin.roi_heads,
        "fg_bg_sampler",
        ForcedSampler(sampler.batch_size_per_image, sampler.positive_fraction, compact),
    )
    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", _our_masks([t["boxes"] for t in theirs]))
    _, roi_losses = twin.roi_heads(features, proposals, sizes, theirs)
    losses |= roi_losses
    return {ours: losses[name] for ours, name in LOSS_NAMES.items() if name in losses}


def _our_masks(boxes: list[Tensor]) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """A project_masks_on_boxes, called once per image in order, that takes each object's crop as its mask."""
    images = iter(boxes)

    def project(masks: Tensor, rois: Tensor, objects: Tensor, size: int) -> Tensor:
        own = next(images)
        return project_masks(masks[objects], own[objects], rois) if len(rois) else rois.new_zeros(0, size, size)

    return project
