"""Slim detectors for tests: fractions of a second to build, and as if they had been trained."""

import json
from pathlib import Path

import torch
from torch import nn

from directdet.models.backbones.builders import BACKBONES
from directdet.models.build import build_model, describe_model
from directdet.models.checkpoint import save_checkpoint
from directdet.reproduce.scales import Scale

CLASSES = ("cat", "dog", "bird")
HEADS = {"fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8, "box_convs": 1}
FEW = {"train_pre_nms": 32, "train_proposals": 16, "rpn_samples": 16, "roi_samples": 16, "mask_slots": 4}

_TWO_STAGE = {**HEADS, **FEW, "test_pre_nms": 32, "test_proposals": 16, "candidates": 64}
_R18 = {"backbone": "resnet18", "width": 8}
_MODELS = {
    "rcnn": {**_R18, **_TWO_STAGE},
    "cascade": {**_R18, **{key: value for key, value in _TWO_STAGE.items() if key != "box_convs"}},
    "retinanet": {**_R18, "fpn_channels": 16, "head_convs": 1, "test_pre_nms": 32, "candidates": 64},
    "swin": {**_TWO_STAGE, "backbone": "swin_t", "width": 32},
}
# Of a comparison: networks that take a fraction of a second a step.
MICRO = Scale("micro", (64, 96), 0.15, _MODELS, workers=0, ssd_width=8, ssd_batch=2)


def mask_rcnn(seed: int = 0, **changes) -> nn.Module:
    """A slim Mask R-CNN for three classes."""
    torch.manual_seed(seed)
    settings = {"backbone": "resnet18", "width": 8, "num_classes": 3, **HEADS, **FEW}
    return build_model({"detector": "rcnn", **settings, **changes})


def lived_in(module: nn.Module) -> nn.Module:
    """The module with every tensor changed, statistics of batch normalisation among them."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value += 7
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value += 0.05 * torch.randn_like(value)
    return module


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state as it is now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def saved(model: nn.Module, path: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """A checkpoint of ours."""
    facts = {"classes": list(classes), "category_ids": list(range(len(classes))), "preprocess": {}}
    save_checkpoint(path, {"model_config": describe_model(model.config), "model": model.state_dict(), **facts})
    return path


def backbone_file(path: Path, backbone: str = "resnet18", width: int = 8) -> Path:
    """A backbone's state as torchvision saves it: without our names, with its classifier."""
    torch.manual_seed(0)
    state = lived_in(BACKBONES[backbone](width)).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("norm")}  # Swin: ours, per level
    classifier = ("norm.weight", "norm.bias", "head.weight") if backbone == "swin_t" else ("fc.weight", "fc.bias")
    torch.save({**state, **dict.fromkeys(classifier, torch.ones(3))}, path)
    return path


def without_masks(data: Path, folder: Path) -> Path:
    """A copy of a COCO dataset whose objects have boxes only."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).symlink_to(data / split)
        content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
        for annotation in content["annotations"]:
            annotation.pop("segmentation")
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
