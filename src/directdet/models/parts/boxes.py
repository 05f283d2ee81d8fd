"""Box operations with static shapes: encoding, IoU, gathering, and exact greedy NMS as a fixed point.

Boxes are xyxy, float32, in pixels. Nothing here uses boolean indexing or waits for the host: invalid rows are masked.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Upper bound of predicted log scales, which keeps exp() finite (torchvision and mmdet use the same bound).
LOG_SCALE_CLIP = math.log(1000.0 / 16)
# Sweeps of the NMS fixed point between two looks at whether it is reached: few real images need more than one look.
SWEEPS = 8
BOUNDED_SWEEPS = 16  # all sweeps of a block in training on a GPU, where looking would make the GPU wait for the host
_LOW = 2**31 - 1


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows: values [B, N, ...], index [B, K] -> [B, K, ...]."""
    if values.dim() == 2:
        return torch.gather(values, 1, index)
    return torch.gather(values, 1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def best_first(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of values [N, M] and their indices, both [N, count], best first; equal values by index.

    torch.topk leaves open which of equal values it takes, and in which order; ONNX's TopK has this order, to which ONNX
    Runtime keeps, but OpenVINO and TensorRT do not (OpenVINO can, but RetinaNet then takes eight times as long). NaN is
    first.
    """
    if torch.compiler.is_exporting():
        return torch.topk(values, count, dim=1)
    if can_look(values):
        found, index = torch.topk(values, count, dim=1)
        if not count or bool(((values >= found[:, -1:]).sum(1) == count).all()):  # what is chosen has no ties outside
            index = index.sort(dim=1).values
            found, order = torch.sort(take(values, index), dim=1, descending=True, stable=True)
            return found, take(index, order)
        found, index = torch.sort(values, dim=1, descending=True, stable=True)
        return found[:, :count], index[:, :count]
    # The float's bits as an integer of the same order, then the place in the row, make keys without ties.
    bits = (values.float() + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0
    place = _LOW - torch.arange(values.shape[1], device=values.device)
    keys, _ = torch.topk((torch.where(bits < 0, bits ^ _LOW, bits) << 31) + place, count, dim=1)
    index = _LOW - (keys & _LOW)
    return take(values, index), index


def can_look(values: Tensor) -> bool:
    """Whether Python may decide by these values: not while a graph is traced, nor if a GPU would have to be waited for.

    Tensors without content (of torch's FakeTensorMode) are of another type.
    """
    return type(values) is Tensor and values.device.type == "cpu" and not torch.compiler.is_compiling()


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
    """Greedy NMS with static shapes: the mask [B, N] of the boxes that are kept; exact for any input.

    Args:
        boxes: [B, N, 4], sorted by descending score.
        valid: [B, N], False for padding.
        threshold: IoU above which a box suppresses a later one.
        labels: [B, N]; boxes with different labels do not suppress each other. None: all have the same label.
        block: see `sweep_boxes`.
    """
    return sweep_boxes(boxes, valid, threshold, labels, block)[0]


def sweep_boxes(
    boxes: Tensor,
    valid: Tensor,
    threshold: float,
    labels: Tensor | None = None,
    block: int | None = None,
    wait: bool = True,
) -> tuple[Tensor, Tensor]:
    """`nms_mask`, and the number of boxes of which it is not decided whether they are kept, a scalar.

    Greedy NMS is the only fixed point of the rule "a box is kept unless an earlier kept box overlaps it". Starting with
    all boxes kept, applying the rule repeatedly reaches it in as many steps as the longest suppression chain has links.
    On the way, every second step keeps too many boxes and the others too few; where two of them agree, it is reached.

    Args:
        block: process the boxes in blocks of this size: earlier blocks are compared once, and only boxes within a block
            are iterated over. Cheaper for many boxes (training), but a larger graph (so not for export).
        wait: go on until all is decided. False, for training: only where that costs nothing; on a GPU and in a traced
            graph, stop after BOUNDED_SWEEPS sweeps of each block.
    """
    count = boxes.shape[1]
    block = block or max(count, 1)
    kept: list[Tensor] = []
    undecided: list[Tensor] = []
    for start in range(0, max(count, 1), block):
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
        state, before = _fixed_point(state, sweep, stop - start - 1, wait)
        kept.append(state[..., : stop - start])
        undecided.append((state - before).abs().sum())
    return torch.cat(kept, 2).squeeze(1) > 0.5, torch.stack(undecided).sum()


def _fixed_point(state: Tensor, sweep: Tensor, links: int, wait: bool) -> tuple[Tensor, Tensor]:
    """Sweeps of state [B, 1, n] with sweep [B, n, n] until nothing changes: the last two states, which are then equal.

    links: of the longest possible chain, so that many sweeps reach the fixed point.
    """

    def some(state: Tensor, number: int) -> tuple[Tensor, Tensor]:
        before = state
        for _ in range(number):
            before, state = state, torch.relu(torch.matmul(state, sweep))
        return state, before

    if links <= SWEEPS:
        return some(state, max(links, 0) + 1)
    if can_look(state):  # then looking costs less than a sweep
        state, before = some(state, 1)
        while not torch.equal(state, before):
            state, before = some(state, 1)
        return state, before
    if not wait or (state.is_cuda and torch.cuda.is_current_stream_capturing()):  # a CUDA graph cannot wait
        return some(state, BOUNDED_SWEEPS)
    state, before = some(state, SWEEPS)
    if torch.compiler.is_compiling():
        # One operation for all of an exported graph's looping. Nothing may be both an input and an output of its body.
        return torch.while_loop(
            lambda state, before: (state - before).abs().sum().bool(),  # whole numbers; no constant of the outer graph
            lambda state, before: some(state, SWEEPS),
            (state, before),
        )
    while not torch.equal(state, before):
        state, before = some(state, SWEEPS)
    return state, before


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
