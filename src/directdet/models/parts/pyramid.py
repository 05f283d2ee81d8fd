"""What every detector on a feature pyramid shares: its raw maps, and how its parts are built."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from directdet.models.parts.anchors import level_anchors
from directdet.models.parts.network import Network
from directdet.models.parts.norm import group_norm


class RawMaps(NamedTuple):
    """What a network says of a batch before any choice is made. A is the number of anchors of all levels.

    features: the maps, finest first, [N, C, H, W] each; logits [N, A] of proposals, or [N, A, classes] of a one-stage
    detector (SSD: background first); deltas [N, A, 4]; anchors [A, 4]; level_sizes: anchors of each level.
    """

    features: list[Tensor]
    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    level_sizes: list[int]


def flatten_map(values: Tensor, per_anchor: int) -> Tensor:
    """[N, anchors * per_anchor, H, W] -> [N, H * W * anchors, per_anchor], float32, in the anchors' order."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, per_anchor).float()


def map_shapes(size: tuple[int, int], strides: list[int]) -> list[tuple[int, int]]:
    """(height, width) of each level for an input of `size`, a multiple of 32: every level rounds up."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


class Anchored(Network):
    """A network with anchors on every cell of its maps: `strides`, one of each map, and the buffer `anchor_shapes`."""

    strides: list[int]
    anchor_shapes: Tensor

    def anchors(self, shapes: list[tuple[int, int]]) -> Tensor:
        """Anchors [A, 4] of maps of the given (height, width), level after level."""
        per_level = [
            level_anchors(height, width, stride, self.anchor_shapes)
            for (height, width), stride in zip(shapes, self.strides, strict=True)
        ]
        return torch.cat(per_level)

    def level_sizes(self, shapes: list[tuple[int, int]]) -> list[int]:
        """Anchors of each map."""
        return [height * width * len(self.anchor_shapes) for height, width in shapes]


class AnchoredDeploy(nn.Module):
    """What the deployed forms of such networks share: anchors and limits of one input size.

    `portable` is the form for export: operations that every runtime has, instead of the fastest in PyTorch.
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
    """The `norm_layer` argument of torchvision's necks and heads: nothing, or group normalisation (Scratch (GN))."""
    return group_norm if norm == "gn" else None
