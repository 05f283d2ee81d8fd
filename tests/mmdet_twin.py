"""mmdet's RTMDet with the same weights as ours, the reference in tests; its results are stored for where it is not.

mmdet 3.3 is not a dependency. To compare with it, install it beside the others (it needs no compiled mmcv here):

    pip install --target LIB --no-deps mmdet==3.3.0 mmcv-lite==2.1.0 mmengine addict yapf termcolor terminaltables \
        shapely opencv-python-headless six scipy
    DIRECTDET_MMDET=LIB pytest tests/models/test_models_rtmdet_oracle.py

and to store its results again: DIRECTDET_MMDET=LIB python tests/mmdet_twin.py
"""

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from directdet.models.build import build_model
from directdet.models.parts.targets import Targets
from directdet.models.rtmdet.network import RTMDet
from directdet.recipes.by_name import get_recipe

STORED = Path(__file__).parent / "models" / "oracle" / "rtmdet.npz"
SIZES = ("tiny", "s", "m", "l")
CLASSES = 3
CANVAS = (64, 96)


class NoMmdet(Exception):
    """mmdet 3.3 cannot be imported; the message says why."""


def ours(size: str, classes: int = CLASSES) -> RTMDet:
    """RTMDet of a size with weights from a fixed sequence, so that its boxes overlap the objects of `batch`."""
    model = build_model({"detector": "rtmdet", "num_classes": classes, **get_recipe(f"rtmdet_{size}").model})
    assert isinstance(model, RTMDet)
    fill(model, SIZES.index(size), "head.boxes.last.", 0.7 if model.config.exp_distances else 2.0)
    return model.eval()


def fill(model: nn.Module, seed: int, boxes: str, distance: float) -> None:
    """Weights from a fixed sequence; the biases of `boxes`, the first letters of their names, are near `distance`."""
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            values = torch.from_numpy(random.random(tuple(value.shape), dtype=np.float32)) - 0.5
            if value.dim() == 4:
                values *= 4.2 / value[0].numel() ** 0.5
            elif name.startswith(boxes):
                values = values * 0.6 + distance
            elif name.endswith(("weight", "running_var")):
                values = 1 + 0.6 * values
            value.copy_(values)


def batch() -> tuple[Tensor, Targets]:
    """Images [3, 3, 64, 96] and their objects: three that overlap; none; one of a pixel and one between the points."""
    images = np.random.default_rng(9).random((3, 3, *CANVAS), dtype=np.float32) * 4 - 2
    boxes = torch.zeros(3, 4, 4)
    boxes[0, 1] = torch.tensor([10.5, 7.0, 60.0, 50.0])
    boxes[0, 2] = torch.tensor([30.0, 20.0, 90.0, 60.0])
    boxes[0, 3] = torch.tensor([28.0, 12.0, 52.0, 44.0])
    boxes[2, 0] = torch.tensor([40.0, 20.0, 41.0, 21.0])
    boxes[2, 1] = torch.tensor([49.0, 33.0, 55.0, 39.0])
    boxes[2, 3] = torch.tensor([4.0, 4.0, 44.0, 60.0])
    valid = boxes[..., 2] > 0
    labels = torch.tensor([[0, 1, 1, 2], [0, 0, 0, 0], [2, 0, 0, 1]])
    return torch.from_numpy(images), Targets(boxes, labels, valid, torch.tensor([CANVAS] * 3, dtype=torch.float32))


def import_mmdet() -> Any:
    """The module mmdet.

    Raises:
        NoMmdet: it cannot be imported.
    """
    if "DIRECTDET_MMDET" in os.environ and os.environ["DIRECTDET_MMDET"] not in sys.path:
        sys.path.append(os.environ["DIRECTDET_MMDET"])  # last: everything else is ours
    if "mmcv.ops" not in sys.modules:  # compiled operators, of which RTMDet uses none
        for name in ("", ".nms", ".roi_align", ".point_sample", ".carafe", ".deform_conv", ".masked_conv"):
            _stub(f"mmcv.ops{name}")
        for name in ("modulated_deform_conv", "merge_cells", "multi_scale_deform_attn"):
            _stub(f"mmcv.ops.{name}")
    try:
        module = importlib.import_module("mmdet")
        importlib.import_module("mmdet.registry")
        importlib.import_module("mmdet.models")
    except Exception as error:  # an old mmengine beside a new torch can raise anything
        raise NoMmdet(f"mmdet 3.3 is not installed ({error}); set DIRECTDET_MMDET, see tests/mmdet_twin.py") from None
    if not module.__version__.startswith("3.3"):
        raise NoMmdet(f"mmdet 3.3 is wanted, not {module.__version__}")
    return module


def _stub(name: str) -> None:
    module: Any = types.ModuleType(name)

    def placeholder(wanted: str) -> type:
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return type(wanted, (nn.Module,), {})

    module.__getattr__ = placeholder
    sys.modules[name] = module


def theirs(size: str, classes: int = CLASSES, family: str = "rtmdet") -> nn.Module:
    """mmdet's backbone, neck and bbox_head of its own configuration, with batch normalisation that runs on a CPU.

    family: "rtmdet" or "rtmdet-ins".
    """
    folder = Path(import_mmdet().__file__).parent
    config = importlib.import_module("mmengine").Config.fromfile(
        folder / ".mim" / "configs" / "rtmdet" / f"{family}_{size}_8xb32-300e_coco.py"
    )
    parts = config.model
    for part in (parts.backbone, parts.neck, parts.bbox_head):
        part.norm_cfg = {"type": "BN"}
        part.pop("init_cfg", None)
    parts.bbox_head.update(num_classes=classes, train_cfg=parts.train_cfg, test_cfg=parts.test_cfg)
    build = importlib.import_module("mmdet.registry").MODELS.build
    return nn.ModuleDict({name: build(parts[name]) for name in ("backbone", "neck", "bbox_head")}).eval()


def twin(model: RTMDet, size: str) -> nn.Module:
    """`theirs` with the weights of `model`."""
    other = theirs(size, model.config.num_classes)
    state = {name: value for own, value in model.state_dict().items() for name in their_names(own)}
    other.load_state_dict(state)
    return other


_WORDS = {
    ".norm.": ".bn.",
    ".main.": ".main_conv.",
    ".short.": ".short_conv.",
    ".final.": ".final_conv.",
    ".depthwise.": ".conv2.depthwise_conv.",
    ".pointwise.": ".conv2.pointwise_conv.",
}


def their_names(name: str) -> list[str]:
    """mmdet's names of one of our tensors: those of the head's shared convolutions are there once for each level."""
    words = name.split(".")
    if words[0] == "head":
        branch = {"classes": "cls", "boxes": "reg"}[words[1]]
        if words[2] == "last":
            return [f"bbox_head.rtm_{branch}.{'.'.join(words[3:])}"]
        if words[2] == "norms":
            return [f"bbox_head.{branch}_convs.{words[3]}.{words[4]}.bn.{words[5]}"]
        return [f"bbox_head.{branch}_convs.{level}.{words[3]}.conv.{words[4]}" for level in range(3)]
    if words[:2] == ["backbone", "body"]:
        words[1:3] = [f"stage{int(words[2]) + 1}"]
        if words[1:3] == ["stage4", "1"]:  # spatial pyramid pooling
            words[3] = {"reduce": "conv1", "final": "conv2"}[words[3]]
    if words[0] == "neck":
        part = {"reduce": "reduce_layers", "down": "top_down_blocks", "stride": "downsamples", "up": "bottom_up_blocks"}
        if words[1] in ("reduce", "down"):  # they begin with the coarsest
            words[2] = str(1 - int(words[2]))
        words[1] = part.get(words[1], "out_convs")
    if "blocks" in words and words[words.index("blocks") + 2] == "conv":
        words[words.index("blocks") + 2] = "conv1"
    renamed = ".".join(words)
    for word, other in _WORDS.items():
        renamed = renamed.replace(word, other)
    return [renamed]


def their_results(other: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """What mmdet computes: logits [N, A, C], distances [N, A, 4], objects [N, A] (-1: none), quality, and losses."""
    parts: Any = other
    scores, distances = parts.bbox_head(parts.neck(parts.backbone(images)))
    structures = importlib.import_module("mmengine.structures")
    objects = [
        structures.InstanceData(bboxes=boxes[valid], labels=labels[valid])
        for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True)
    ]
    shape = {"img_shape": images.shape[2:], "pad_shape": images.shape[2:]}
    losses = parts.bbox_head.loss_by_feat(scores, distances, objects, [shape] * len(images))
    found = {"logits": _flat(scores), "distances": _flat(distances)}
    head = parts.bbox_head
    shapes = [maps.shape[2:] for maps in scores]
    priors = torch.cat(head.prior_generator.grid_priors(shapes, device="cpu", with_stride=True))
    corners = importlib.import_module("mmdet.structures.bbox").distance2bbox
    rows, quality = [], []
    for index, instances in enumerate(objects):
        predicted = structures.InstanceData(
            scores=found["logits"][index], bboxes=corners(priors, found["distances"][index]), priors=priors
        )
        assigned = head.assigner.assign(predicted, instances)
        numbers = targets.valid[index].nonzero().flatten()  # of the rows that hold an object
        chosen = assigned.gt_inds - 1
        rows.append(torch.where(chosen >= 0, torch.cat([numbers, torch.tensor([-1])])[chosen], -1))
        quality.append(assigned.max_overlaps.clamp(min=0))
    found |= {"objects": torch.stack(rows), "quality": torch.stack(quality)}
    return found | {"class": sum(losses["loss_cls"]), "box": sum(losses["loss_bbox"])}


def _flat(maps: Any) -> Tensor:
    return torch.cat([values.permute(0, 2, 3, 1).flatten(1, 2) for values in maps], 1)


def write(path: Path) -> None:
    """Store mmdet's results for every size."""
    images, targets = batch()
    stored = {}
    for size in SIZES:
        with torch.no_grad():
            found = their_results(twin(ours(size), size), images, targets)
        found["objects"] = found["objects"].to(torch.int8)
        stored |= {f"{size}/{name}": value.numpy() for name, value in found.items()}
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **stored)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    write(STORED)
