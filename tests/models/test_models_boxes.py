"""Box operations and static NMS compared with torchvision.ops."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms

from directdet.models.parts.boxes import (
    BOUNDED_SWEEPS,
    SWEEPS,
    best_first,
    box_loss,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    is_larger_than,
    nms_mask,
    pairwise_iou,
    sweep_boxes,
    take,
)

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(*shape: int, spread: float = 200, side: float = 60, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * spread
    return torch.cat([corner, corner + 2 + torch.rand(*shape, 2, generator=generator) * side], -1)


def greedy(boxes: Tensor, threshold: float, valid: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """torchvision's NMS of sorted boxes [N, 4], class by class -> mask [N]."""
    count = len(boxes)
    valid = torch.ones(count, dtype=torch.bool) if valid is None else valid
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    keep = torch.zeros(count, dtype=torch.bool)
    for label in labels.unique():
        index = torch.where(valid & (labels == label))[0]
        keep[index[nms(boxes[index], -index.float(), threshold)]] = True
    return keep


@pytest.mark.parametrize("weights", WEIGHTS)
def test_coding_equals_torchvision(weights: tuple[float, ...]) -> None:
    anchors, boxes = random_boxes(200, seed=1), random_boxes(200, seed=2)
    coder = BoxCoder(weights)
    deltas = encode_boxes(boxes, anchors, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode_boxes(deltas, anchors, weights), boxes, rtol=1e-5, atol=1e-4)
    deltas = torch.randn(200, 4, generator=torch.Generator().manual_seed(3)) * 2 * torch.tensor(weights)
    expected = coder.decode_single(deltas, anchors)
    torch.testing.assert_close(decode_boxes(deltas, anchors, weights), expected, rtol=1e-5, atol=1e-4)


def test_huge_deltas_stay_finite_and_equal_torchvision() -> None:
    anchors = random_boxes(4)
    deltas = torch.tensor([[0.0, 0, 1e4, 1e4], [0, 0, -1e4, -1e4], [50, -50, 5, 5], [0, 0, 4.2, 4.0]])
    boxes = decode_boxes(deltas, anchors, WEIGHTS[0])
    assert boxes.isfinite().all()
    torch.testing.assert_close(boxes, BoxCoder(WEIGHTS[0]).decode_single(deltas, anchors), rtol=1e-5, atol=1e-4)


def test_degenerate_boxes_encode_to_finite_deltas() -> None:
    empty = torch.zeros(3, 4)
    assert encode_boxes(empty, random_boxes(3), WEIGHTS[1]).isfinite().all()
    assert encode_boxes(random_boxes(3), empty, WEIGHTS[1]).isfinite().all()


def test_clip_equals_torchvision_per_image() -> None:
    boxes = random_boxes(2, 50, spread=300) - 50
    sizes = [(120, 200), (210, 90)]
    clipped = clip_boxes(boxes, torch.tensor(sizes, dtype=torch.float32))
    for i, size in enumerate(sizes):
        assert torch.equal(clipped[i], clip_boxes_to_image(boxes[i], size))


def test_iou_equals_torchvision_and_is_0_for_empty_boxes() -> None:
    a, b = random_boxes(2, 70, seed=1), random_boxes(2, 30, seed=2)
    iou = pairwise_iou(a, b)
    for i in range(2):
        torch.testing.assert_close(iou[i], box_iou(a[i], b[i]), rtol=1e-6, atol=0)
    assert torch.equal(pairwise_iou(torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)), torch.zeros(1, 2, 3))


def test_is_larger_than_counts_the_border_and_needs_both_sides() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 0.5, 1], [3, 3, 3, 3], [5, 5, 4, 4]])
    assert is_larger_than(boxes, 1.0).tolist() == [True, False, False, False, False]


def test_take_gathers_rows_of_vectors_and_of_scalars() -> None:
    values, index = torch.arange(24.0).reshape(2, 3, 4), torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(take(values, index), torch.stack([values[0, [2, 0]], values[1, [1, 1]]]))
    assert torch.equal(take(values[..., 0], index), torch.stack([values[0, [2, 0], 0], values[1, [1, 1], 0]]))


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_box_loss_is_smooth_l1_summed_over_coordinates(beta: float) -> None:
    deltas, targets = torch.randn(7, 4), torch.randn(7, 4)
    gap = (deltas - targets).abs()
    expected = torch.where(gap < beta, 0.5 * gap**2 / max(beta, 1e-9), gap - 0.5 * beta).sum(-1)
    torch.testing.assert_close(box_loss(deltas, targets, beta), expected)


@pytest.mark.parametrize("block", [None, 64, 256])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize(("count", "spread"), [(1, 9), (2, 1), (17, 5), (300, 20), (1000, 10), (1000, 60), (1000, 400)])
def test_nms_equals_torchvision(count: int, spread: float, threshold: float, block: int | None) -> None:
    boxes = torch.stack([random_boxes(count, spread=spread, side=s, seed=s) for s in (20, 40, 80)])
    valid = torch.rand(3, count, generator=torch.Generator().manual_seed(0)) < 0.9
    keep = nms_mask(boxes, valid, threshold, block=block)
    for i in range(3):
        assert torch.equal(keep[i], greedy(boxes[i], threshold, valid[i]))


@pytest.mark.parametrize("block", [None, 100])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_nms_of_clusters_round_objects(threshold: float, block: int | None) -> None:
    generator = torch.Generator().manual_seed(5)
    centres = random_boxes(2, 8, spread=300, side=100, seed=6) + torch.tensor([0.0, 0, 40, 40])
    which = torch.randint(8, (2, 1000), generator=generator)
    boxes = take(centres, which) + torch.randn(2, 1000, 4, generator=generator) * 4
    keep = nms_mask(boxes, torch.ones(2, 1000, dtype=torch.bool), threshold, block=block)
    for i in range(2):
        assert torch.equal(keep[i], greedy(boxes[i], threshold))


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_nms_with_labels_equals_torchvision(threshold: float, block: int | None) -> None:
    boxes = random_boxes(2, 600, spread=60)
    labels = torch.randint(4, (2, 600), generator=torch.Generator().manual_seed(1))
    keep = nms_mask(boxes, torch.ones(2, 600, dtype=torch.bool), threshold, labels, block)
    for i in range(2):
        assert torch.equal(keep[i], greedy(boxes[i], threshold, labels=labels[i]))
        theirs = batched_nms(boxes[i], -torch.arange(600.0), labels[i], threshold)
        assert torch.equal(keep[i].nonzero().flatten(), theirs.sort().values)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_nms_at_exactly_the_threshold_and_of_equal_boxes(threshold: float) -> None:
    # Boxes with integer sides 1..20 and a common corner: thousands of pairs with an IoU of exactly 5/10 or 7/10.
    sides = torch.cartesian_prod(torch.arange(1.0, 21), torch.arange(1.0, 21))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    boxes = torch.cat([torch.zeros(400, 2), sides], 1)[order].repeat_interleave(2, 0)
    iou = box_iou(boxes, boxes)
    assert (iou == torch.tensor(threshold)).sum() > 1000
    keep = nms_mask(boxes[None], torch.ones(1, 800, dtype=torch.bool), threshold)[0]
    assert torch.equal(keep, greedy(boxes, threshold))
    assert not keep[1::2].any()  # the second of two equal boxes


def test_empty_boxes_neither_suppress_nor_are_suppressed() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10], [5, 0, 5, 10], [0, 0, 10, 10]])
    keep = nms_mask(boxes[None], torch.ones(1, 5, dtype=torch.bool), 0.5)[0]
    assert torch.equal(keep, greedy(boxes, 0.5))
    assert keep.tolist() == [True, True, True, True, False]


def test_what_is_not_valid_is_dropped_and_suppresses_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    keep = nms_mask(boxes[None].expand(2, -1, -1), torch.tensor([[False, True, True], [False] * 3]), 0.5)
    assert keep.tolist() == [[False, True, False], [False, False, False]]


def chain(links: int) -> Tensor:
    """Boxes each of which overlaps only the next: the slowest case for the fixed point."""
    x = torch.arange(links + 1) * 4.0
    return torch.stack([x, torch.zeros_like(x), x + 20, torch.full_like(x, 20)], 1)


def tied_grid(side: int) -> Tensor:
    """Boxes of a blank picture, where all scores are tied: a grid in row order, each overlapping its neighbours."""
    y, x = torch.meshgrid(torch.arange(side) * 4.0, torch.arange(side) * 4.0, indexing="ij")
    corner = torch.stack([x, y], -1).reshape(-1, 2)
    return torch.cat([corner, corner + 20], 1)


HARD = {
    "no box": torch.zeros(0, 4),
    "one box": chain(0),
    **{f"chain of {links}": chain(links) for links in (1, SWEEPS, SWEEPS + 1, 31, 32, 33, 63, 999)},
    "tied grid": tied_grid(25),
    "identical": torch.tensor([[3.0, 4, 30, 40]]).repeat(300, 1),
    "empty": torch.zeros(100, 4),
}


@pytest.mark.parametrize("block", [None, 64, 256])
@pytest.mark.parametrize("name", HARD)
def test_nms_is_exact_for_any_chain(name: str, block: int | None) -> None:
    boxes = HARD[name]
    keep, undecided = sweep_boxes(boxes[None], torch.ones(1, len(boxes), dtype=torch.bool), 0.6, block=block)
    assert torch.equal(keep[0], greedy(boxes, 0.6))
    assert undecided == 0


def test_the_chain_of_64_and_the_grid_of_ties_keep_what_torchvision_keeps() -> None:
    kept = [
        int(nms_mask(b[None], torch.ones(1, len(b), dtype=torch.bool), 0.6).sum()) for b in (chain(63), tied_grid(25))
    ]
    assert kept == [32, len(nms(tied_grid(25), torch.ones(625), 0.6))]


class Nms(torch.nn.Module):
    def forward(self, boxes: Tensor) -> Tensor:
        return nms_mask(boxes, boxes[..., 2] >= 0, 0.6)


@pytest.mark.parametrize("name", [name for name in HARD if name != "no box"])
def test_traced_nms_is_exact_for_any_chain(name: str) -> None:
    torch.compiler.reset()  # each length of boxes is compiled anew, and only a few are allowed
    boxes = HARD[name][None]
    compiled = torch.compile(Nms(), backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(compiled(boxes)[0], greedy(boxes[0], 0.6))


def test_where_it_must_not_wait_nms_counts_what_it_left_undecided() -> None:
    short, long = chain(BOUNDED_SWEEPS - 1)[None], chain(200)[None]

    def bounded(boxes: Tensor) -> tuple[Tensor, Tensor]:
        return sweep_boxes(boxes, boxes[..., 2] >= 0, 0.6, wait=False)

    compiled = torch.compile(bounded, backend="eager", fullgraph=True, dynamic=False)
    keep, undecided = compiled(short)
    assert undecided == 0 and torch.equal(keep[0], greedy(short[0], 0.6))
    keep, undecided = compiled(long)
    right = greedy(long[0], 0.6)
    assert (keep[0] | ~right).all()  # nothing is lost
    assert undecided >= (keep[0] != right).sum() > 0
    assert bounded(long)[1] == 0  # on a CPU it need not wait


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("count", [1, 40, 700, 1000])
def test_best_first_orders_ties_by_index(count: int, compiled: bool) -> None:
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(-3, 3, (3, 1000), generator=generator) * 0.25
    values[1] = torch.randn(1000, generator=generator)
    values[2, ::7] = -0.0
    chosen = torch.compile(best_first, backend="eager", fullgraph=True, dynamic=False) if compiled else best_first
    found, index = chosen(values, count)
    expected, order = torch.sort(values, dim=1, descending=True, stable=True)
    assert torch.equal(found, expected[:, :count]) and torch.equal(index, order[:, :count])
