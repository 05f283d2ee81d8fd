"""A file as a user would write it: a small backbone, a one-stage detector on it, and a recipe for both.

It is outside the package and is loaded with `--code own_parts.py`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.common.settings import Count, SettingError, Share, check_fields
from directdet.models.backbones.backbone import Backbone
from directdet.models.backbones.builders import add_backbone, build_backbone
from directdet.models.backbones.names import check_backbone
from directdet.models.build import Architecture, add_detector
from directdet.models.parts.boxes import clip_boxes, pairwise_iou
from directdet.models.parts.network import Network
from directdet.models.parts.postprocess import best_pairs, pack_detections, select_detections
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.targets import RandomKeys, Targets, random_keys
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.recipe import Recipe


class Plain(Backbone):
    """Five convolutions of stride 2, each with batch normalisation and a SiLU."""

    def __init__(self, width: int):
        super().__init__()
        inputs, outputs = [3, width, width, 2 * width, 2 * width], [width, width, 2 * width, 2 * width, 4 * width]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.SiLU())
            for i, o in zip(inputs, outputs, strict=True)
        )
        self.channels = {f"c{level}": outputs[level - 1] for level in range(2, 6)}
        self.strides = {f"c{level}": 2**level for level in range(2, 6)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, maps = images, {}
        for level, step in enumerate(self.steps, 1):
            x = step(x)
            maps[f"c{level}"] = x
        return {name: maps[name] for name in self.channels}

    def stages(self) -> list[list[nn.Module]]:
        return [[step] for step in self.steps]


def plain(width: int | None = None, norm: str = "bn") -> Plain:
    """The plain backbone; `width` is the number of channels of its first map (16)."""
    if norm != "bn":
        raise SettingError(f"model.norm: plain has batch normalisation only, not {norm!r}; leave norm at bn")
    return Plain(width or 16)


@dataclass(frozen=True)
class CentreConfig:
    """A detector on a single map: every cell predicts the class and size of the object it is inside."""

    num_classes: Count
    backbone: str = "plain"
    width: Count | None = None
    norm: Literal["bn", "gn"] = "bn"
    score_threshold: Share = 0.05
    nms: Share = 0.5
    candidates: Count = 100
    detections: Count = 50

    @property
    def masks(self) -> bool:
        return False

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        check_backbone("model.backbone", self.backbone, "pyramid")


class Centre(Network):
    """forward(images) -> RawMaps of the map c3: logits [N, cells, classes], deltas [N, cells, 4]: l, t, r, b."""

    def __init__(self, config: CentreConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(("pyramid",), config.backbone, config.width, config.norm)
        channels = self.backbone.channels["c3"]
        self.neck = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.neck_norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, config.num_classes, 1)
        self.sides = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.classifier.bias, -4.0)

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"backbone": ("backbone",), "fpn": ("neck", "neck_norm")}

    def class_layers(self) -> tuple[str, ...]:
        return ("classifier",)

    def forward(self, images: Tensor) -> RawMaps:
        x = F.silu(self.neck_norm(self.neck(self.backbone(images)["c3"])))
        logits, sides = (layer(x).flatten(2).transpose(1, 2).float() for layer in (self.classifier, self.sides))
        return RawMaps([x], logits, F.softplus(sides) * 8, centres(x.shape[2], x.shape[3], x.device), [x[0, 0].numel()])


def centres(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of the cells [height * width, 4] as x, y, x, y in pixels, at stride 8."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    point = torch.stack([x, y], -1).reshape(-1, 2).float() * 8 + 4
    return torch.cat([point, point], 1)


def boxes_of(raw: RawMaps) -> Tensor:
    return raw.anchors + raw.deltas * raw.deltas.new_tensor([-1.0, -1.0, 1.0, 1.0])


def centre_losses(
    model: Centre, raw: RawMaps, targets: Targets, draw: RandomKeys = random_keys
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Cells whose centre is inside an object learn its class and sides; of several objects, the smallest."""
    point, boxes = raw.anchors[None, :, None, :2], targets.boxes[:, None]
    inside = ((point > boxes[..., :2]) & (point < boxes[..., 2:])).all(-1) & targets.valid[:, None]
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1).masked_fill(~inside, torch.inf)
    owner, positive = areas.argmin(-1), inside.any(-1)
    labels = torch.gather(targets.labels, 1, owner)
    wanted = F.one_hot(labels, model.config.num_classes) * positive[..., None]
    count = positive.sum().clamp(min=1)
    classes = F.binary_cross_entropy_with_logits(raw.logits, wanted.float(), reduction="none")
    truth = torch.gather(targets.boxes, 1, owner[..., None].expand(-1, -1, 4))
    iou = pairwise_iou(boxes_of(raw).reshape(-1, 1, 4), truth.reshape(-1, 1, 4)).reshape(positive.shape)
    return {"class": classes.sum() / count, "box": ((1 - iou) * positive).sum() / count}, {"positives": positive.sum()}


class CentreDeploy(nn.Module):
    """forward(images [N, 3, H, W]) -> num, boxes, scores, labels."""

    def __init__(self, model: Centre, size: tuple[int, int], portable: bool = False):
        super().__init__()
        model.check_size(size)
        self.model, self.size = model, size
        self.register_buffer("limit", torch.tensor([size], dtype=torch.float32), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images)
        logits, index, labels = best_pairs(raw.logits, self.model.config.candidates)
        boxes = torch.gather(boxes_of(raw), 1, index[..., None].expand(-1, -1, 4))
        boxes = clip_boxes(boxes, self.limit.to(boxes.device).expand(images.shape[0], -1))
        return pack_detections(*select_detections(self.model.config, boxes, torch.sigmoid(logits), labels))


def centre_plain() -> Recipe:
    """Direct pre-training and fine-tuning of the plain detector, with the schedule of the slim recipes."""
    base = get_recipe("mask_rcnn_r18_slim")
    return replace(base, name="centre_plain", summary="a detector of my own", detector="centre", model={"width": 8})


add_backbone("plain", plain)
add_detector("centre", Architecture(CentreConfig, Centre, centre_losses, CentreDeploy))
RECIPES["centre_plain"] = centre_plain
