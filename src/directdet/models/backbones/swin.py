"""Swin transformer backbone (Swin-T: Mask R-CNN in Table 8 of the paper), of any width.

Blocks and parameter names are torchvision's, so its ImageNet weights (keys `features.*`) load and it is the oracle.
"""

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformer, SwinTransformerBlock

from directdet.common.settings import SettingError
from directdet.models.backbones.backbone import Backbone

WINDOW = 7
HEAD_WIDTH = 32  # channels of one attention head
DEPTHS = (2, 2, 6, 2)
DROP_PATH = 0.2  # of the last block; rises linearly from 0 in the first (in both phases of the authors' code)
FAR = -100.0  # logit added between tokens that must not see each other; e^-100 is nothing beside the token itself


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32 under autocast, on every device: torch itself does so on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class WindowAttention(ShiftedWindowAttention):
    """torchvision's window attention with a mask made of comparisons.

    torchvision writes the mask slice by slice, which an exported graph would do again for each picture (51 ScatterND).

    As in torchvision, an axis that one window covers is not shifted. The authors' code shifts it and masks inside the
    window; maps that small (here up to 7 tokens a side) come from inputs up to 224 pixels a side only. All else is the
    same in both: padding to whole windows with zeros that are seen as keys, and the mask drawn on the padded map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, H, W, C] -> the same shape."""
        images, height, width, channels = x.shape
        rows, columns = -(-height // WINDOW), -(-width // WINDOW)  # windows
        if (height, width) != (rows * WINDOW, columns * WINDOW):  # even nothing costs a copy
            x = F.pad(x, (0, 0, 0, columns * WINDOW - width, 0, rows * WINDOW - height))
        shift = [0 if count == 1 else own for count, own in zip((rows, columns), self.shift_size, strict=True)]
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        x = x.reshape(images, rows, WINDOW, columns, WINDOW, channels).transpose(2, 3).reshape(-1, WINDOW**2, channels)

        qkv = self.qkv(x).reshape(-1, WINDOW**2, 3, self.num_heads, channels // self.num_heads)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]  # each [N * windows, heads, 49, channels of a head]
        query = query * (channels // self.num_heads) ** -0.5
        logits = query @ key.transpose(-2, -1) + self.get_relative_position_bias()
        if any(shift):
            mask = shift_mask(rows, columns, shift, x.device)
            logits = (logits.unflatten(0, (images, rows * columns)) + mask[:, None]).flatten(0, 1)
        x = self.proj((logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2))

        x = x.reshape(images, rows, columns, WINDOW, WINDOW, channels).transpose(2, 3)
        x = x.reshape(images, rows * WINDOW, columns * WINDOW, channels)
        if any(shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width]


def shift_mask(rows: int, columns: int, shift: list[int], device: torch.device) -> Tensor:
    """[rows * columns, 49, 49], windows row by row: FAR between tokens that only the cyclic shift brought together."""
    regions = 3 * _regions(rows, shift[0], device)[:, None] + _regions(columns, shift[1], device)
    regions = regions.reshape(rows, WINDOW, columns, WINDOW).transpose(1, 2).reshape(-1, WINDOW**2)
    return torch.where(regions[:, :, None] == regions[:, None, :], 0.0, FAR)


def _regions(windows: int, shift: int, device: torch.device) -> Tensor:
    """Along one axis [windows * 7]: 0 before the last window, 1 in it, 2 for its end that came from the other side."""
    side = windows * WINDOW
    position = torch.arange(side, device=device)
    return (position >= side - WINDOW).int() + (position >= side - shift).int()


class Swin(Backbone):
    """A backbone: forward(images [N, 3, H, W]) -> {"c2": [N, C, H/4, W/4], ..., "c5": [N, 8C, H/32, W/32]}.

    H and W are multiples of 32. Each level has a LayerNorm of its own, `norm2` to `norm5`, which torchvision's weights
    do not hold. `channels` and `strides` tell each level's, by name. Weights start as in the Swin paper's code: normal
    of deviation 0.02, cut at 2, for linear layers and relative position biases; 0 for the other biases.
    """

    imagenet = "swin_t"

    def __init__(self, width: int):
        super().__init__()
        heads = [width // HEAD_WIDTH * 2**stage for stage in range(len(DEPTHS))]
        self.features = SwinTransformer(
            [4, 4],
            width,
            list(DEPTHS),
            heads,
            [WINDOW, WINDOW],
            stochastic_depth_prob=DROP_PATH,
            num_classes=1,
            norm_layer=LayerNorm,
            block=partial(SwinTransformerBlock, attn_layer=WindowAttention),
        ).features
        levels = range(2, 2 + len(DEPTHS))
        self.channels = {f"c{level}": width * 2 ** (level - 2) for level in levels}
        self.strides = {f"c{level}": 2**level for level in levels}
        for level in levels:
            setattr(self, f"norm{level}", LayerNorm(self.channels[f"c{level}"]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = images
        levels = {}
        for stage, modules in enumerate(self.stages()):
            for module in modules:
                x = module(x)
            if stage:
                level = stage + 1
                levels[f"c{level}"] = getattr(self, f"norm{level}")(x).permute(0, 3, 1, 2)
        return levels

    def use_only(self, levels: Iterable[str]) -> None:
        for name in self.channels.keys() - set(levels):
            setattr(self, name.replace("c", "norm"), nn.Identity())

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if not name.startswith(("head.", "norm."))}

    def unpublished(self) -> tuple[str, ...]:
        return tuple(f"norm{level}." for level in range(2, 2 + len(DEPTHS)))

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (patch embedding), 1, ..., each with the merging that leads into it, for freezing.

        The levels' LayerNorms are in none of them: they learn whatever is frozen, as in the authors' code.
        """
        merged = [[self.features[2 * stage], self.features[2 * stage + 1]] for stage in range(1, len(DEPTHS))]
        return [[self.features[0]], [self.features[1]], *merged]


def swin_t(width: int | None = None, norm: str = "bn") -> Swin:
    """Swin-T; `width` is the patch embedding's number of channels (96).

    Raises SettingError for a width that is no multiple of 32, and for `norm` "gn": there is layer normalisation only.
    """
    if norm != "bn":
        raise SettingError(
            f"model.norm: {norm!r} needs a ResNet; swin_t has layer normalisation only, leave norm at bn"
        )
    width = width or 96
    if width < 0 or width % HEAD_WIDTH:
        near = max(1, round(width / HEAD_WIDTH)) * HEAD_WIDTH
        raise SettingError(
            f"model.width: {width} is not a multiple of {HEAD_WIDTH}, as swin_t needs it; the nearest is {near}"
        )
    return Swin(width)
