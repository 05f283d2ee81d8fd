"""Raw maps and anchors, shared by the detectors with a feature pyramid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from directdet.models.parts.anchors import level_anchors
from directdet.models.parts.network import Network
from directdet.models.parts.norm import group_norm


class RawMaps(NamedTuple):
    """The outputs of a network for a batch, before post-processing. A is the number of anchors over all levels.

    Attributes:
        features: feature maps, finest first, each [N, C, H, W].
        logits: [N, A] objectness of a two-stage detector, or [N, A, classes] of a one-stage one (SSD: background
            first).
        deltas: [N, A, 4].
        anchors: [A, 4].
        level_sizes: number of anchors of each level.
    """

    features: list[Tensor]
    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    level_sizes: list[int]


def flatten_map(values: Tensor, per_anchor: int) -> Tensor:
    """[N, anchors * per_anchor, H, W] -> [N, H * W * anchors, per_anchor], float32, in the order of the anchors."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, per_anchor).float()


def map_shapes(size: tuple[int, int], strides: list[int]) -> list[tuple[int, int]]:
    """(height, width) of each level for an input of `size`, multiples of 32; sizes round up."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


class Anchored(Network):
    """A network with anchors at every cell of its maps, defined by `strides`, one per map, and `anchor_shapes`."""

    strides: list[int]
    anchor_shapes: Tensor

    def anchors(self, shapes: list[tuple[int, int]]) -> Tensor:
        """Anchors [A, 4] of maps with the given (height, width), level by level."""
        per_level = [
            level_anchors(height, width, stride, self.anchor_shapes)
            for (height, width), stride in zip(shapes, self.strides, strict=True)
        ]
        return torch.cat(per_level)

    def level_sizes(self, shapes: list[tuple[int, int]]) -> list[int]:
        """Number of anchors of each map."""
        return [height * width * len(self.anchor_shapes) for height, width in shapes]


class AnchoredDeploy(nn.Module):
    """Base class of the deployed forms of `Anchored` networks: anchors and clipping limits for one input size.

    With `portable`, the form for export, it uses operations available in every runtime instead of PyTorch's fastest.
    """

    model: Any
    anchors: Tensor
    limit: Tensor

    def __init__(self, model: Anchored, size: tuple[int, int], portable: bool = False):
        super().__init__()
        model.check_size(size)
        self.model, self.size, self.portable = model, size, portable
        device = next(model.parameters()).device
        self.register_buffer("anchors", model.anchors(map_shapes(size, model.strides)), persistent=False)
        limit = torch.tensor([size], dtype=torch.float32, device=device)
        self.register_buffer("limit", limit, persistent=False)


def norm_layer(norm: str) -> Callable[[int], nn.Module] | None:
    """The `norm_layer` argument of torchvision's necks and heads: group normalisation for "gn", otherwise None."""
    return group_norm if norm == "gn" else None
