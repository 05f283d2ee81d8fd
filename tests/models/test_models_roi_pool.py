"""Both forms of RoIAlign compared with torchvision's MultiScaleRoIAlign and roi_align."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from directdet.models.parts import roi_pool
from directdet.models.parts.roi_pool import level_of, pool_rois, pyramid_rows

STRIDES = [4, 8, 16, 32]


def pyramid(size: tuple[int, int], images: int = 2, channels: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size[0] + size[1])
    return [torch.randn(images, channels, size[0] // s, size[1] // s, generator=generator) for s in STRIDES]


def hard_boxes(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Boxes [40, 4] of every level, and edge cases."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(30, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height])
    special = torch.tensor(
        [
            [0.0, 0, width, height],
            [0, 0, 5, 7],
            [width - 6, height - 3, width, height],
            [width - 0.5, height - 0.2, width, height],
            [width, height, width, height],
            [0, 0, 0, 0],
            [10.2, 11.7, 10.9, 11.8],
            [-40, -30, width + 50, height + 60],
            [-20, 10, -2, 30],
            [width - 3, -9, width + 12, height / 2],
        ]
    )
    return torch.cat([torch.cat([corners[:, 0], corners[:, 1]], 1), special])


def theirs(features: list[Tensor], boxes: Tensor, bins: int, size: tuple[int, int]) -> Tensor:
    pool = MultiScaleRoIAlign([str(i) for i in range(4)], bins, sampling_ratio=2)
    return pool({str(i): f for i, f in enumerate(features)}, list(boxes), [size] * len(boxes))


@pytest.mark.parametrize("bins", [7, 14])
@pytest.mark.parametrize("size", [(128, 128), (160, 224), (96, 544), (64, 32), (512, 480)])
def test_both_forms_equal_torchvision(size: tuple[int, int], bins: int) -> None:
    features = pyramid(size)
    boxes = torch.stack([hard_boxes(size, 1), hard_boxes(size, 2)])
    expected = theirs(features, boxes, bins, size)
    exact = theirs([f.double() for f in features], boxes.double(), bins, size)
    image = torch.arange(2).repeat_interleave(boxes.shape[1])
    rows = pool_rois(pyramid_rows(features, STRIDES), boxes.flatten(0, 1), image, bins)
    portable = pool_rois(pyramid_rows(features, STRIDES), boxes.flatten(0, 1), image, bins, portable=True)
    # White noise is the hardest input, with the full effect of rounded coordinates. Hence 2e-5 of the largest value;
    # and our rows are closer to the float64 result than torchvision's.
    for pooled in (rows, portable):
        assert (pooled - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (rows - exact).abs().max() <= (expected - exact).abs().max()


def test_the_exported_form_gathers_a_few_bins_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of bins at a time, which need not divide all of them, the result is that of all at once."""
    size, channels = (128, 128), 8
    features, boxes = pyramid(size, channels=channels), torch.stack([hard_boxes(size, 1), hard_boxes(size, 2)])
    image = torch.arange(2).repeat_interleave(boxes.shape[1])
    whole = pool_rois(pyramid_rows(features, STRIDES), boxes.flatten(0, 1), image, 7, portable=True)
    gathered: list[int] = []
    embedding = roi_pool.F.embedding

    def watched(index: Tensor, table: Tensor) -> Tensor:
        rows = embedding(index, table)
        gathered.append(rows.numel() // len(features[0]))
        return rows

    monkeypatch.setattr(roi_pool.F, "embedding", watched)
    for bins_at_a_time in (1000, 300, 49):
        gathered.clear()
        monkeypatch.setattr(roi_pool, "GATHERED", bins_at_a_time * 16 * channels)
        parts = pool_rois(pyramid_rows(features, STRIDES), boxes.flatten(0, 1), image, 7, portable=True)
        assert max(gathered) == roi_pool.GATHERED and len(gathered) == -(-40 * 49 // bins_at_a_time)
        assert torch.equal(parts, whole)


def test_all_four_levels_are_met_and_chosen_as_torchvision_does() -> None:
    sides = torch.tensor([0.0, 20, 111.9, 112, 112.1, 223.9, 224, 300, 447.9, 448, 449, 2000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    level = level_of(boxes)
    assert level.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    # Maps filled with the number of their level show which one torchvision pooled from.
    features = [torch.full((1, 1, 2048 // s, 2048 // s), float(i)) for i, s in enumerate(STRIDES)]
    assert theirs(features, boxes[None, 1:], 1, (2048, 2048)).flatten().tolist() == level[1:].tolist()


def test_rows_may_come_in_any_order_of_images() -> None:
    features, boxes = pyramid((128, 128)), hard_boxes((128, 128))
    image = torch.arange(len(boxes)) % 2
    pooled = pool_rois(pyramid_rows(features, STRIDES), boxes, image, 7)
    for i in range(2):
        expected = theirs([f[i : i + 1] for f in features], boxes[None], 7, (128, 128))
        torch.testing.assert_close(pooled[image == i], expected[image == i], rtol=1e-5, atol=2e-5)


def test_gradients_of_the_rows_equal_torchvision() -> None:
    size = (160, 544)
    boxes = hard_boxes(size)
    ours = [f.requires_grad_() for f in pyramid(size, images=1)]
    reference = [f.detach().clone().requires_grad_() for f in ours]
    weight = torch.randn(len(boxes), 8, 7, 7, generator=torch.Generator().manual_seed(3))
    (
        pool_rois(pyramid_rows(ours, STRIDES), boxes, torch.zeros(len(boxes), dtype=torch.long), 7) * weight
    ).sum().backward()
    level = level_of(boxes)
    assert set(level.tolist()) == {0, 1, 2}
    for i, (feature, stride) in enumerate(zip(reference, STRIDES, strict=True)):
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)[level == i]
        (roi_align(feature, rois, 7, 1 / stride, 2, aligned=False) * weight[level == i]).sum().backward()
        expected = feature.grad
        torch.testing.assert_close(ours[i].grad, expected, rtol=1e-5, atol=1e-5 * max(1, expected.abs().max().item()))


def test_half_precision_maps_are_pooled_in_float32_coordinates() -> None:
    features, boxes = pyramid((128, 128), images=1), hard_boxes((128, 128))
    exact = theirs([f.bfloat16().float() for f in features], boxes[None], 7, (128, 128))
    half = [f.bfloat16() for f in features]
    rows = pool_rois(pyramid_rows(half, STRIDES), boxes, torch.zeros(len(boxes), dtype=torch.long), 7)
    portable = pool_rois(
        pyramid_rows(half, STRIDES), boxes, torch.zeros(len(boxes), dtype=torch.long), 7, portable=True
    )
    assert rows.dtype == portable.dtype == torch.bfloat16
    torch.testing.assert_close(rows.float(), exact, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(portable.float(), exact, rtol=1e-2, atol=2e-2)
