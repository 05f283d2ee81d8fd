"""RoIAlign over a feature pyramid, static in shape, in two forms that are tested equal.

Both are torchvision's MultiScaleRoIAlign (aligned=False) with a fixed sampling ratio of 2; the papers' code used the
adaptive ratio, which no static graph can express. RoIAlign is separable: along each axis a bin averages two samples,
and each sample mixes two neighbouring cells.

`pool_rows` sums weighted rows of the flattened pyramid (EmbeddingBag): contiguous reads, no loop over levels, exact at
the borders; on a CPU ten times faster than torchvision's operator, whose backward pass is serial. It serves training
and evaluation in PyTorch. `pool_grid` is one GridSample over a canvas that all levels are packed into: the form that
every runtime accepts without a plugin, and the one that is exported.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 2  # samples per bin and axis, as torchvision's detectors
# Level k serves boxes whose side sqrt(area) is at least 224 * 2^(k - 4) pixels (FPN, equation 1); the factor is the
# 1e-6 that torchvision adds to the logarithm.
LEVEL_SIDES = (112.0, 224.0, 448.0)
LEVEL_TOLERANCE = 2.0**-1e-6


def level_of(rois: Tensor) -> Tensor:
    """Pyramid level 0..3 of each box of [..., 4], int64 [...]."""
    area = (rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])
    side = torch.sqrt(area.clamp(min=0))
    return sum((side >= s * LEVEL_TOLERANCE).to(torch.int64) for s in LEVEL_SIDES)


def _samples(start: Tensor, stop: Tensor, scale: Tensor, limit: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Sample positions along one axis, in cells of the RoI's level.

    start, stop, scale, limit: [..., 1] -> position [..., bins * SAMPLES] inside [0, limit - 1], and whether the sample
    counts: RoIAlign gives 0 beyond the map, where a box of under one cell, widened to one, may reach.
    """
    length = ((stop - start) * scale).clamp(min=1.0)
    offset = (torch.arange(bins * SAMPLES, dtype=start.dtype, device=start.device) + 0.5) / (bins * SAMPLES)
    raw = start * scale + length * offset
    inside = (raw >= -1) & (raw <= limit)
    return torch.minimum(raw.clamp(min=0), limit - 1), inside


def pool_rows(features: list[Tensor], strides: list[int], rois: Tensor, image: Tensor, bins: int) -> Tensor:
    """Pool rois [K, 4] (pixels) of images `image` [K] from maps [N, C, H, W] -> [K, C, bins, bins], channels last."""
    count, channels = features[0].shape[:2]
    device = rois.device
    table = torch.cat([f.permute(0, 2, 3, 1).reshape(count, -1, channels) for f in features], 1).float()
    heights, widths = [f.shape[2] for f in features], [f.shape[3] for f in features]
    first = [sum(h * w for h, w in zip(heights[:i], widths[:i], strict=True)) for i in range(len(features))]
    level = level_of(rois)
    scale = torch.tensor([1.0 / s for s in strides], device=device)[level, None]
    height = torch.tensor(heights, device=device)[level, None]
    width = torch.tensor(widths, device=device)[level, None]

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
    row = torch.tensor(first, device=device)[level] + image * table.shape[1]
    index = row[:, None, None, None, None] + y[:, :, None, :, None] * width[..., None, None, None] + x[:, None, :, None]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None]  # [K, bins, bins, 4, 4]
    taps_per_bin = (2 * SAMPLES) ** 2
    pooled = F.embedding_bag(
        index.reshape(-1, taps_per_bin),
        table.reshape(-1, channels),
        per_sample_weights=weight.reshape(-1, taps_per_bin).float(),
        mode="sum",
    )
    return pooled.reshape(-1, bins, bins, channels).permute(0, 3, 1, 2).to(features[0].dtype)


def pool_grid(features: list[Tensor], strides: list[int], rois: Tensor, bins: int) -> Tensor:
    """Pool rois [N, R, 4] (pixels) from four maps [N, C, H, W] -> [N * R, C, bins, bins]."""
    count, number = rois.shape[:2]
    channels, samples = features[0].shape[1], bins * SAMPLES
    canvas, corners = _pack(features)
    canvas_height, canvas_width = canvas.shape[2:]
    # One row a level: scale, width, height, and where the level lies in the canvas.
    table = torch.tensor(
        [[1.0 / s, f.shape[3], f.shape[2], x, y] for s, f, (x, y) in zip(strides, features, corners, strict=True)],
        device=rois.device,
    )
    row = table[level_of(rois)]  # [N, R, 5]
    scale = row[..., 0:1]
    x, inside_x = _samples(rois[..., 0:1], rois[..., 2:3], scale, row[..., 1:2], bins)
    y, inside_y = _samples(rois[..., 1:2], rois[..., 3:4], scale, row[..., 2:3], bins)
    x = (x + row[..., 3:4]) * (2.0 / (canvas_width - 1)) - 1
    y = (y + row[..., 4:5]) * (2.0 / (canvas_height - 1)) - 1
    x, y = torch.where(inside_x, x, -4.0), torch.where(inside_y, y, -4.0)  # off the canvas the padding gives 0
    grid = torch.stack(
        [x[:, :, None].expand(-1, -1, samples, -1), y[..., None].expand(-1, -1, -1, samples)], -1
    ).reshape(count, number * samples, samples, 2)
    # In float32 whatever the maps are: a half-precision grid is off by 0.1 px, and TensorRT wants one type for both.
    sampled = F.grid_sample(canvas.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    pooled = F.avg_pool2d(sampled.to(features[0].dtype), SAMPLES)  # [N, C, R * bins, bins]
    pooled = pooled.reshape(count, channels, number, bins, bins)
    return pooled.permute(0, 2, 1, 3, 4).reshape(count * number, channels, bins, bins)


def _pack(features: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pack the maps into one canvas, the finest on top and the others in a row below it; and their (x, y) corners."""
    below = features[1:]
    height = below[0].shape[2]
    strip = torch.cat([F.pad(f, (0, 0, 0, height - f.shape[2])) for f in below], 3)
    width = max(features[0].shape[3], strip.shape[3])
    canvas = torch.cat([F.pad(f, (0, width - f.shape[3])) for f in (features[0], strip)], 2)
    corners, x = [(0, 0)], 0
    for f in below:
        corners.append((x, features[0].shape[2]))
        x += f.shape[3]
    return canvas, corners
