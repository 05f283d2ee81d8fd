"""mmdet's RTMDet-Ins with the same weights as ours, as in mmdet_twin.py; and masks over whole maps, written plainly.

To store mmdet's results again: DIRECTDET_MMDET=LIB python tests/mmdet_ins_twin.py
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet_twin import CANVAS, CLASSES, batch, fill, import_mmdet, their_names, theirs
from torch import Tensor, nn

from directdet.models.build import build_model
from directdet.models.parts.targets import Targets
from directdet.models.rtmdet_ins.masks import PARAMETERS
from directdet.models.rtmdet_ins.network import RTMDetIns
from directdet.recipes.by_name import get_recipe

STORED = Path(__file__).parent / "models" / "oracle" / "rtmdet_ins.npz"
SIZES = ("tiny", "s", "m", "l")
STORED_SIZES = ("tiny", "s")
EVERY = 9  # kernels and masks are stored of every ninth point


def ours(size: str, classes: int = CLASSES) -> RTMDetIns:
    """RTMDet-Ins of a size with weights from a fixed sequence."""
    model = build_model({"detector": "rtmdet_ins", "num_classes": classes, **get_recipe(f"rtmdet_ins_{size}").model})
    assert isinstance(model, RTMDetIns)
    fill(model, 10 + SIZES.index(size), "head.boxes.", 2.0)
    with torch.no_grad():  # distances below 0, which become 0: to the right, at stride 16
        model.head.boxes[1].bias[2] = -2.0
        random = np.random.default_rng(5)  # masks with an edge
        model.prototypes.last.weight *= 10.0
        for conv in model.kernels.last:
            conv.bias.copy_(torch.from_numpy(random.random(PARAMETERS, dtype=np.float32) - 0.5) * 5.0)
    return model.eval()


def ins_batch() -> tuple[Tensor, Targets]:
    """`mmdet_twin.batch`, every object's mask the upper left half of its box: columns + rows below the side."""
    images, targets = batch()
    place = torch.arange(56)
    mask = (place[:, None] + place < 56).to(torch.uint8)
    return images, targets._replace(masks=mask.expand(*targets.valid.shape, -1, -1) * targets.valid[..., None, None])


def their_ins_names(name: str) -> list[str]:
    """mmdet's names of one of our tensors: those of the shared convolutions are there for each level and branch."""
    words = name.split(".")
    tail = words[-1]
    if words[0] == "head" and words[1] == "tower":
        branches = [f"bbox_head.{branch}_convs" for branch in ("cls", "reg")]
        if words[2] == "norms":
            return [f"{branch}.{words[3]}.{words[4]}.bn.{tail}" for branch in branches]
        return [f"{branch}.{level}.{words[3]}.conv.{tail}" for branch in branches for level in range(3)]
    if words[0] == "head":
        branch = {"classes": "cls", "boxes": "reg"}[words[1]]
        return [f"bbox_head.rtm_{branch}.{words[2]}.{tail}"]
    if words[0] in ("kernels", "prototypes"):
        part = {
            ("kernels", "convs"): "kernel_convs",
            ("kernels", "last"): "rtm_kernel",
            ("prototypes", "fuse"): "mask_head.fusion_conv",
            ("prototypes", "convs"): "mask_head.stacked_convs",
            ("prototypes", "last"): "mask_head.projection",
        }[words[0], words[1]]
        return [".".join(["bbox_head", part, *("bn" if word == "norm" else word for word in words[2:])])]
    return their_names(name)


def twin(model: RTMDetIns, size: str) -> nn.Module:
    """mmdet's network with the weights of `model`."""
    other = theirs(size, model.config.num_classes, "rtmdet-ins")
    other.load_state_dict({name: value for own, value in model.state_dict().items() for name in their_ins_names(own)})
    return other


def their_results(other: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """What mmdet computes: raw maps as in InsMaps, losses, and masks [N, A / 9, H, W] of every ninth point.

    Kernels are those of every ninth point, too.
    """
    parts: Any = other
    head = parts.bbox_head
    scores, distances, kernels, prototypes = head(parts.neck(parts.backbone(images)))
    flat = {
        name: torch.cat([values.permute(0, 2, 3, 1).flatten(1, 2) for values in maps], 1)
        for name, maps in (("logits", scores), ("distances", distances), ("kernels", kernels))
    }
    flat["kernels"] = flat["kernels"][:, ::EVERY]
    shapes = [maps.shape[2:] for maps in scores]
    points = torch.cat(head.prior_generator.grid_priors(shapes, device="cpu", with_stride=True))[::EVERY]
    logits = [
        head._mask_predict_by_feat_single(one, rows, points)
        for one, rows in zip(prototypes, flat["kernels"], strict=True)
    ]
    structures = importlib.import_module("mmengine.structures")
    bitmaps = importlib.import_module("mmdet.structures.mask").BitmapMasks
    objects = []
    for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True):
        masks = bitmaps(np.array([_corner(box) for box in boxes[valid]]).reshape(-1, *CANVAS), *CANVAS)
        objects.append(structures.InstanceData(bboxes=boxes[valid], labels=labels[valid], masks=masks))
    shape = {"img_shape": images.shape[2:], "pad_shape": images.shape[2:]}
    losses = head.loss_by_feat(scores, distances, kernels, prototypes, objects, [shape] * len(images))
    found = {**flat, "prototypes": prototypes, "masks": torch.stack(logits)}
    return found | {"class": sum(losses["loss_cls"]), "box": sum(losses["loss_bbox"])}


def _corner(box: Tensor) -> np.ndarray:
    """The mask of `ins_batch` in whole pixels, each standing for its upper left corner, as mmdet counts."""
    x0, y0, x1, y1 = box.tolist()
    x, y = np.meshgrid((np.arange(CANVAS[1]) - x0) / (x1 - x0), (np.arange(CANVAS[0]) - y0) / (y1 - y0))
    mask = ((x >= 0) & (y >= 0) & (x + y < 1)).astype(np.uint8)
    assert mask.any()
    return mask


def plain_masks(prototypes: Tensor, kernel: Tensor, point: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mask logits [P, P] of one object at (x, y), each [P], in pixels: ten maps, interpolated, then three layers.

    prototypes [8, H, W] of stride 8; kernel [169]; point [3].
    """
    height, width = prototypes.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height) * 8.0, torch.arange(width) * 8.0, indexing="ij")
    ways = torch.stack([point[0] - columns, point[1] - rows]) / (8 * point[2])
    places = torch.stack(torch.meshgrid(y * 2 / (8 * height) - 1, x * 2 / (8 * width) - 1, indexing="ij"), -1).flip(-1)
    inputs = torch.cat([ways, prototypes])[None]
    values = F.grid_sample(inputs, places[None], "bilinear", "border", align_corners=False)
    values = F.relu(F.conv2d(values, kernel[:80].reshape(8, 10, 1, 1), kernel[152:160]))
    values = F.relu(F.conv2d(values, kernel[80:144].reshape(8, 8, 1, 1), kernel[160:168]))
    return F.conv2d(values, kernel[144:152].reshape(1, 8, 1, 1), kernel[168:])[0, 0]


def write(path: Path) -> None:
    """Store mmdet's results."""
    import_mmdet()
    stored = {}
    for size in STORED_SIZES:
        with torch.no_grad():
            found = their_results(twin(ours(size), size), *ins_batch())
        stored |= {f"{size}/{name}": value.numpy() for name, value in found.items()}
    np.savez_compressed(path, **stored)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    write(STORED)
