"""CSPNeXt, the backbone of RTMDet (Lyu et al., arXiv 2212.07784), with 5x5 depthwise convolutions.

A stem of three 3x3 convolutions, the first of stride 2, and four stages, each a 3x3 of stride 2 and a CSP layer. The
last stage has spatial pyramid pooling before its CSP layer, whose blocks have no shortcuts.
"""

from torch import Tensor, nn

from directdet.models.backbones.backbone import Backbone
from directdet.models.backbones.resnet import NORMS
from directdet.models.parts.csp import SPP, ConvSiLU, CSPLayer
from directdet.models.parts.layers import Norm

LEVELS = ("c2", "c3", "c4", "c5")


class CSPNeXt(Backbone):
    """forward(images [N, 3, H, W]) -> {"c2": [N, 2 * width, H/4, W/4], ..., "c5": [N, 16 * width, H/32, W/32]}.

    Weights have PyTorch's initialisation, as in mmdet.

    Args:
        blocks: number of blocks of each stage.
        width: channels of the stem; 64 in the large network.
    """

    def __init__(self, blocks: tuple[int, int, int, int], width: int, norm: Norm):
        super().__init__()
        half = max(width // 2, 1)
        self.stem = nn.Sequential(
            ConvSiLU(3, half, 3, norm, stride=2), ConvSiLU(half, half, 3, norm), ConvSiLU(half, width, 3, norm)
        )
        widths = [width * 2**stage for stage in range(1, 5)]
        self.body = nn.ModuleList(
            _stage(channels // 2, channels, count, norm, last=channels == widths[-1])
            for channels, count in zip(widths, blocks, strict=True)
        )
        self.channels = dict(zip(LEVELS, widths, strict=True))
        self.strides = {level: 4 * 2**index for index, level in enumerate(LEVELS)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, maps = self.stem(images), {}
        for level, stage in zip(LEVELS, self.body, strict=True):
            maps[level] = x = stage(x)
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (stem), 1, ..., used to freeze the first n stages."""
        return [[self.stem], *([stage] for stage in self.body)]


def _stage(in_channels: int, out_channels: int, blocks: int, norm: Norm, last: bool) -> nn.Sequential:
    """[N, C, H, W] -> [N, C', H/2, W/2]."""
    down = ConvSiLU(in_channels, out_channels, 3, norm, stride=2)
    layer = CSPLayer(out_channels, out_channels, blocks, norm, shortcut=not last, attention=True)
    return nn.Sequential(down, SPP(out_channels, norm), layer) if last else nn.Sequential(down, layer)


def cspnext_tiny(width: int | None = None, norm: str = "bn") -> CSPNeXt:
    """Depth 0.167; `width` is the stem's number of channels (24), `norm` "bn" or "gn"."""
    return CSPNeXt((1, 1, 1, 1), width or 24, NORMS[norm])


def cspnext_s(width: int | None = None, norm: str = "bn") -> CSPNeXt:
    """Depth 0.33; `width` is the stem's number of channels (32), `norm` "bn" or "gn"."""
    return CSPNeXt((1, 2, 2, 1), width or 32, NORMS[norm])


def cspnext_m(width: int | None = None, norm: str = "bn") -> CSPNeXt:
    """Depth 0.67; `width` is the stem's number of channels (48), `norm` "bn" or "gn"."""
    return CSPNeXt((2, 4, 4, 2), width or 48, NORMS[norm])


def cspnext_l(width: int | None = None, norm: str = "bn") -> CSPNeXt:
    """Depth 1; `width` is the stem's number of channels (64), `norm` "bn" or "gn"."""
    return CSPNeXt((3, 6, 6, 3), width or 64, NORMS[norm])


CSPNEXTS = {"cspnext_tiny": cspnext_tiny, "cspnext_s": cspnext_s, "cspnext_m": cspnext_m, "cspnext_l": cspnext_l}
