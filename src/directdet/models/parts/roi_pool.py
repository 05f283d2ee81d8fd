"""RoIAlign over a feature pyramid or a single map, with static shapes, as a weighted sum of rows.

It computes torchvision's MultiScaleRoIAlign (aligned=False) with a fixed sampling ratio of 2; the papers' code used the
adaptive ratio, which a static graph cannot express. RoIAlign is separable: along each axis a bin averages two samples,
and each sample interpolates between two neighbouring cells. So with the pyramid flattened to one row per cell, a bin is
a weighted sum of 16 rows: contiguous reads, no loop over levels, exact at the borders.

In PyTorch the sum is an EmbeddingBag, ten times faster on a CPU than torchvision's operator, whose backward pass is
serial. In an exported graph it is a Gather and a MatMul, which every runtime supports and runs faster than GridSample.
They take a few RoIs at a time: the rows of a thousand would be 0.8 GB, those of a few stay in the processor's cache.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from directdet.models.parts.boxes import areas

SAMPLES = 2  # samples per bin and axis, as in torchvision's detectors
# Level k pools boxes whose side sqrt(area) is at least 224 * 2^(k - 4) pixels (FPN, equation 1); the tolerance is the
# 1e-6 that torchvision adds to the logarithm.
LEVEL_SIDES = (112.0, 224.0, 448.0)
LEVEL_TOLERANCE = 2.0**-1e-6
GATHERED = 2**21  # values that one Gather of an exported graph fetches for each image: 8 MB, ten RoIs of 256 channels


def level_of(rois: Tensor, levels: int = 4) -> Tensor:
    """Pyramid level 0..levels - 1 of each box [..., 4], int64 [...]; the last level takes all larger boxes."""
    side = torch.sqrt(areas(rois).clamp(min=0))
    if levels == 1:
        return torch.zeros_like(side, dtype=torch.int64)
    level = (side >= LEVEL_SIDES[0] * LEVEL_TOLERANCE).to(torch.int64)
    for limit in LEVEL_SIDES[1 : levels - 1]:
        level = level + (side >= limit * LEVEL_TOLERANCE).to(torch.int64)
    return level


def _by_level(level: Tensor, values: list[float] | list[int]) -> Tensor:
    """values[level], elementwise. No lookup tensor: creating one would copy from the host in every step."""
    chosen = torch.full_like(level, values[0], dtype=None if isinstance(values[0], int) else torch.float32)
    for index, value in enumerate(values[1:], 1):
        chosen = torch.where(level == index, value, chosen)
    return chosen


def _samples(start: Tensor, stop: Tensor, scale: Tensor, limit: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Sample positions along one axis, in cells of the RoI's level.

    start, stop, scale, limit: [..., 1] -> position [..., bins * SAMPLES] within [0, limit - 1], and whether the sample
    counts: RoIAlign returns 0 outside the map, which boxes smaller than a cell can reach as they are widened to one. A
    box that is not finite, as a diverging network makes them, has no sample that counts: as an index, NaN would be out
    of range.
    """
    length = ((stop - start) * scale).clamp(min=1.0)
    offset = (torch.arange(bins * SAMPLES, dtype=start.dtype, device=start.device) + 0.5) / (bins * SAMPLES)
    raw = start * scale + length * offset
    inside = (raw >= -1) & (raw <= limit)
    return torch.where(inside, torch.minimum(raw.clamp(min=0), limit - 1), 0.0), inside


@dataclass(frozen=True)
class PyramidRows:
    """A pyramid flattened to one row per cell, to pool from several times.

    Attributes:
        table: [N, cells of all levels, C], the finest level first.
        shapes: (height, width) of each level.
        strides: of each level.
    """

    table: Tensor
    shapes: list[tuple[int, int]]
    strides: list[int]


def pyramid_rows(features: list[Tensor], strides: list[int]) -> PyramidRows:
    """Maps [N, C, H, W] of each level, finest first, and their strides, as rows."""
    count, channels = features[0].shape[:2]
    table = torch.cat([f.permute(0, 2, 3, 1).reshape(count, -1, channels) for f in features], 1)
    return PyramidRows(table, [(f.shape[2], f.shape[3]) for f in features], strides)


def pool_rois(
    rows: PyramidRows, rois: Tensor, image: Tensor, bins: int, portable: bool = False, few: bool = False
) -> Tensor:
    """Pool RoIs [K, 4] (pixels) from a pyramid -> [K, C, bins, bins], channels-last in memory.

    Args:
        image: [K], the index of each RoI's image in the batch.
        bins: cells of the output along each axis.
        portable: use Gather and MatMul instead of EmbeddingBag, which ONNX does not have. There must then be as many
            RoIs of each image, those of the first image first.
        few: with `portable`, take all of them at a time, as in a loop's body, where tracing takes minutes for a split.
    """
    table, strides = rows.table, rows.strides
    count, _, channels = table.shape
    heights, widths = [height for height, _ in rows.shapes], [width for _, width in rows.shapes]
    first = [sum(h * w for h, w in zip(heights[:i], widths[:i], strict=True)) for i in range(len(strides))]
    level = level_of(rois, len(strides))
    scale = _by_level(level[:, None], [1.0 / s for s in strides]).to(rois.dtype)
    height, width = _by_level(level[:, None], heights), _by_level(level[:, None], widths)

    def taps(start: Tensor, stop: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        position, inside = _samples(start, stop, scale, limit.to(rois.dtype), bins)
        low = position.floor()
        fraction = position - low
        low = low.long()
        high = torch.minimum(low + 1, limit - 1)
        cell = torch.stack([low, high], -1).reshape(-1, bins, 2 * SAMPLES)
        weight = torch.stack([1 - fraction, fraction], -1) * inside[..., None] / SAMPLES
        return cell, weight.reshape(-1, bins, 2 * SAMPLES)

    x, weight_x = taps(rois[:, 0:1], rois[:, 2:3], width)  # [K, bins, 4]
    y, weight_y = taps(rois[:, 1:2], rois[:, 3:4], height)
    row = _by_level(level, first) + image * table.shape[1]
    index = row[:, None, None, None, None] + y[:, :, None, :, None] * width[..., None, None, None] + x[:, None, :, None]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None]  # [K, bins, bins, 4, 4]
    taps_per_bin = (2 * SAMPLES) ** 2
    table = table.reshape(-1, channels)
    if portable:
        index, weight = index.reshape(count, -1, taps_per_bin), weight.reshape(count, -1, taps_per_bin)
        pooled = _weighted_rows(table, index, weight) if few else _pool_in_turn(table, index, weight)
    else:
        index, weight = index.reshape(-1, taps_per_bin), weight.reshape(-1, taps_per_bin)
        pooled = F.embedding_bag(index, table.float(), per_sample_weights=weight.float(), mode="sum")
    return pooled.reshape(-1, bins, bins, channels).permute(0, 3, 1, 2).to(rows.table.dtype)


def _pool_in_turn(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows of table [rows, C], as many bins of each image at a time as GATHERED allows.

    index, weight: [N, bins, taps] -> [N, bins, C].
    """
    step = max(1, GATHERED // (index.shape[2] * table.shape[1]))
    parts = [
        _weighted_rows(table, rows, part)
        for rows, part in zip(index.split(step, 1), weight.split(step, 1), strict=True)
    ]
    return torch.cat(parts, 1)


def _weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """`_pool_in_turn` of all bins at a time."""
    return torch.matmul(weight[:, :, None].to(table.dtype), F.embedding(index, table)).squeeze(2)
