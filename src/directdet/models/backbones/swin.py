"""Swin transformer backbone (Swin-T: Mask R-CNN in Table 8 of the paper), of any width.

Blocks and parameter names are torchvision's, so its ImageNet weights (keys `features.*`) can be loaded and it serves as
the reference in tests.
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
DROP_PATH = 0.2  # rate of the last block; rises linearly from 0 in the first (in both phases of the authors' code)
FAR = -100.0  # added to the logits between tokens that must not attend to each other; e^-100 is negligible


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32 under autocast on every device; torch does this only on GPUs."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class WindowAttention(ShiftedWindowAttention):
    """torchvision's window attention with a mask computed from comparisons.

    torchvision assigns the mask slice by slice, which an exported graph would repeat for every image (51 ScatterND).

    As in torchvision, an axis covered by a single window is not shifted. The authors' code shifts it and masks within
    the window; only inputs of up to 224 pixels a side lead to maps that small (7 tokens). In all other respects the two
    agree: maps are padded to whole windows with zeros, which act as keys, and the mask is defined on the padded map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, H, W, C] -> tokens of the same shape."""
        images, height, width, channels = x.shape
        rows, columns = -(-height // WINDOW), -(-width // WINDOW)  # windows
        if (height, width) != (rows * WINDOW, columns * WINDOW):  # F.pad copies even if there is nothing to pad
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
    """[rows * columns, 49, 49], windows in row order: FAR between tokens made neighbours only by the cyclic shift."""
    regions = 3 * _regions(rows, shift[0], device)[:, None] + _regions(columns, shift[1], device)
    regions = regions.reshape(rows, WINDOW, columns, WINDOW).transpose(1, 2).reshape(-1, WINDOW**2)
    return torch.where(regions[:, :, None] == regions[:, None, :], 0.0, FAR)


def _regions(windows: int, shift: int, device: torch.device) -> Tensor:
    """Region along one axis [windows * 7]: 0 before the last window, 1 in it, 2 in its end that was wrapped around."""
    side = windows * WINDOW
    position = torch.arange(side, device=device)
    return (position >= side - WINDOW).int() + (position >= side - shift).int()


class Swin(Backbone):
    """A backbone: forward(images [N, 3, H, W]) -> {"c2": [N, C, H/4, W/4], ..., "c5": [N, 8C, H/32, W/32]}.

    H and W are multiples of 32. Each level has its own LayerNorm, `norm2` to `norm5`, which torchvision's weights do
    not include. Weights are initialised as in the Swin paper's code: from a normal distribution of standard deviation
    0.02, truncated at 2, for linear layers and relative position biases; 0 for the other biases.
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

    def keep_levels(self, levels: Iterable[str]) -> None:
        for name in self.channels.keys() - set(levels):
            setattr(self, name.replace("c", "norm"), nn.Identity())

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if not name.startswith(("head.", "norm."))}

    def unpublished(self) -> tuple[str, ...]:
        return tuple(f"norm{level}." for level in range(2, 2 + len(DEPTHS)))

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (patch embedding), 1, ..., each with the patch merging before it, used for freezing.

        The levels' LayerNorms belong to no stage: they are always trained, as in the authors' code.
        """
        merged = [[self.features[2 * stage], self.features[2 * stage + 1]] for stage in range(1, len(DEPTHS))]
        return [[self.features[0]], [self.features[1]], *merged]


def swin_t(width: int | None = None, norm: str = "bn") -> Swin:
    """Swin-T; `width` is the number of channels of the patch embedding (96).

    Raises:
        SettingError: `width` is not a multiple of 32, or `norm` is "gn": Swin has layer normalisation only.
    """
    if norm != "bn":
        raise SettingError(
            f"model.norm: {norm!r} is not available for swin_t, which has layer normalisation only; leave norm at bn"
        )
    width = width or 96
    if width < 0 or width % HEAD_WIDTH:
        near = max(1, round(width / HEAD_WIDTH)) * HEAD_WIDTH
        raise SettingError(
            f"model.width: {width} is not a multiple of {HEAD_WIDTH}, which swin_t requires; the nearest is {near}"
        )
    return Swin(width)
