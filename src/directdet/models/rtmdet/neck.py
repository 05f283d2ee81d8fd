"""RTMDet's neck: a path aggregation network (PAFPN) of CSP layers."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from directdet.models.parts.csp import ConvSiLU, CSPLayer
from directdet.models.parts.layers import Norm


class CSPPAFPN(nn.Module):
    """forward(maps, finest first, [N, channels[i], H, W] each) -> as many maps [N, out_channels, H, W].

    The coarsest map is carried down to the finest, each step doubling it by repetition, and the result is carried up
    again by convolutions of stride 2. Every map must have twice the sides of the next.
    """

    def __init__(self, channels: list[int], out_channels: int, blocks: int, norm: Norm):
        super().__init__()
        steps = list(itertools.pairwise(channels))  # (channels of the finer map, of the coarser one)
        self.reduce = nn.ModuleList(ConvSiLU(coarse, fine, 1, norm) for fine, coarse in steps)
        self.down = nn.ModuleList(CSPLayer(2 * fine, fine, blocks, norm) for fine, _ in steps)
        self.stride = nn.ModuleList(ConvSiLU(fine, fine, 3, norm, stride=2) for fine, _ in steps)
        self.up = nn.ModuleList(CSPLayer(2 * fine, coarse, blocks, norm) for fine, coarse in steps)
        self.out = nn.ModuleList(ConvSiLU(number, out_channels, 3, norm) for number in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        coarse, waiting = maps[-1], []
        for step in reversed(range(len(self.reduce))):
            reduced = self.reduce[step](coarse)
            waiting.append(reduced)
            doubled = F.interpolate(reduced, scale_factor=2.0, mode="nearest")
            coarse = self.down[step](torch.cat([doubled, maps[step]], 1))
        found = [coarse]
        for stride, up in zip(self.stride, self.up, strict=True):
            found.append(up(torch.cat([stride(found[-1]), waiting.pop()], 1)))
        return [out(x) for out, x in zip(self.out, found, strict=True)]
