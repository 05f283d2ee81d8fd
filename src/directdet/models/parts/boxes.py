"""Box operations with static shapes: encoding, IoU, gathering, and exact greedy NMS as a fixed point.

Boxes are xyxy, float32, in pixels. Nothing here uses boolean indexing or waits for the host: invalid rows are masked.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Upper bound of predicted log scales, which keeps exp() finite (torchvision and mmdet use the same bound).
LOG_SCALE_CLIP = math.log(1000.0 / 16)
# Iterations of the NMS fixed point. Suppression chains are at most 16 long on real images, but longer if all scores are
# tied, as on a blank image. Blocks shorten the chains, and are used in training only, where an extra box does no harm.
NMS_SWEEPS, BLOCK_SWEEPS = 32, 16


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows: values [B, N, ...], index [B, K] -> [B, K, ...]."""
    if values.dim() == 2:
        return torch.gather(values, 1, index)
    return torch.gather(values, 1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Deltas [..., 4] that turn `anchors` into `boxes` (both [..., 4]); finite for degenerate boxes as well."""
    width, height = _sides(anchors)
    box_width, box_height = _sides(boxes)
    width, height = width.clamp(min=1e-3), height.clamp(min=1e-3)
    dx = weights[0] * ((boxes[..., 0] + boxes[..., 2]) - (anchors[..., 0] + anchors[..., 2])) * 0.5 / width
    dy = weights[1] * ((boxes[..., 1] + boxes[..., 3]) - (anchors[..., 1] + anchors[..., 3])) * 0.5 / height
    dw = weights[2] * torch.log(box_width.clamp(min=1e-3) / width)
    dh = weights[3] * torch.log(box_height.clamp(min=1e-3) / height)
    return torch.stack([dx, dy, dw, dh], -1)


def decode_boxes(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Apply `deltas` to `anchors` (both [..., 4]) -> boxes [..., 4]; the inverse of encode_boxes."""
    width, height = _sides(anchors)
    cx = anchors[..., 0] + 0.5 * width + deltas[..., 0] / weights[0] * width
    cy = anchors[..., 1] + 0.5 * height + deltas[..., 1] / weights[1] * height
    half_width = 0.5 * width * torch.exp(torch.clamp(deltas[..., 2] / weights[2], max=LOG_SCALE_CLIP))
    half_height = 0.5 * height * torch.exp(torch.clamp(deltas[..., 3] / weights[3], max=LOG_SCALE_CLIP))
    return torch.stack([cx - half_width, cy - half_height, cx + half_width, cy + half_height], -1)


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes [B, N, 4] to images of `sizes` [B, 2] (height, width)."""
    limit = torch.stack([sizes[:, 1], sizes[:, 0], sizes[:, 1], sizes[:, 0]], -1)[:, None]  # [B, 1, 4]
    return torch.minimum(boxes.clamp(min=0), limit)


def is_larger_than(boxes: Tensor, side: float) -> Tensor:
    """Whether both sides of each box [..., 4] are at least `side` pixels -> [...]."""
    width, height = _sides(boxes)
    return (width >= side) & (height >= side)


def areas(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]."""
    width, height = _sides(boxes)
    return width * height


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection areas [B, N, M] of a [B, N, 4] and b [B, M, 4]."""
    # One coordinate at a time: a [B, N, M, 2] intermediate would cost twice the memory traffic.
    width = torch.minimum(a[:, :, None, 2], b[:, None, :, 2]) - torch.maximum(a[:, :, None, 0], b[:, None, :, 0])
    height = torch.minimum(a[:, :, None, 3], b[:, None, :, 3]) - torch.maximum(a[:, :, None, 1], b[:, None, :, 1])
    return width.clamp(min=0) * height.clamp(min=0)


def intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Pairwise intersection and union areas of a [B, N, 4] and b [B, M, 4] -> two [B, N, M]."""
    intersection = pairwise_intersection(a, b)
    return intersection, areas(a)[:, :, None] + areas(b)[:, None, :] - intersection


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [B, N, M] of a [B, N, 4] and b [B, M, 4]; 0 where the union is empty."""
    intersection, union = intersection_and_union(a, b)
    return intersection / union.clamp(min=1e-9)


def nms_mask(
    boxes: Tensor, valid: Tensor, threshold: float, labels: Tensor | None = None, block: int | None = None
) -> Tensor:
    """Greedy NMS with static shapes: the mask [B, N] of the boxes that are kept.

    Greedy NMS is the only fixed point of the rule "a box is kept unless an earlier kept box overlaps it". Starting with
    all boxes kept, applying the rule repeatedly reaches it in as many steps as the longest suppression chain has links.

    Args:
        boxes: [B, N, 4], sorted by descending score.
        valid: [B, N], False for padding.
        threshold: IoU above which a box suppresses a later one.
        labels: [B, N]; boxes with different labels do not suppress each other. None: all have the same label.
        block: process the boxes in blocks of this size: earlier blocks are compared once, and only boxes within a block
            are iterated over. Cheaper for many boxes (training), but a larger graph (so not for export).
    """
    count = boxes.shape[1]
    sweeps = BLOCK_SWEEPS if block else NMS_SWEEPS
    block = block or count
    kept: list[Tensor] = []
    for start in range(0, count, block):
        stop = min(start + block, count)
        covers = _covers(boxes, labels, start, stop, threshold)  # [B, stop, stop - start]
        alive = valid[:, None, start:stop].to(boxes.dtype)  # [B, 1, stop - start]
        if start:
            alive = torch.relu(alive - torch.matmul(torch.cat(kept, 2), covers[:, :start]))
        # A box is kept if relu(alive - number of kept boxes that cover it) is 1. With a 1 appended to the state and
        # `alive` to the matrix, a sweep is one product and a ReLU, three times as fast in OpenVINO as with a
        # subtraction.
        state = F.pad(alive, (0, 1), value=1.0)
        sweep = torch.cat([F.pad(-covers[:, start:], (0, 1)), state], 1)
        for _ in range(min(sweeps, stop - start - 1)):
            state = torch.relu(torch.matmul(state, sweep))
        kept.append(state[..., : stop - start])
    return torch.cat(kept, 2).squeeze(1) > 0.5


def _covers(boxes: Tensor, labels: Tensor | None, start: int, stop: int, threshold: float) -> Tensor:
    """[B, stop, stop - start], 1.0 where box j of [0, stop) would suppress the later box i of [start, stop)."""
    rows, columns = boxes[:, :stop], boxes[:, start:stop]
    intersection, union = intersection_and_union(rows, columns)
    covers = intersection > threshold * union  # no division: an empty box covers nothing instead of giving NaN
    if labels is not None:
        covers = covers & (labels[:, :stop, None] == labels[:, None, start:stop])
    position = torch.arange(stop, device=boxes.device)
    before = position[:, None] < position[start:stop]
    return (covers & before).to(boxes.dtype)


def box_loss(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Smooth L1 loss summed over the four coordinates, [..., 4] -> [...]; beta 0 is L1 (as in the papers' mmdet)."""
    return F.smooth_l1_loss(deltas, targets, reduction="none", beta=beta).sum(-1)
