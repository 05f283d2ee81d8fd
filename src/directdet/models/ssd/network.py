"""The SSD network, as trained from scratch by ScratchDet, from images to raw maps.

Zhu et al., "ScratchDet: Training Single-Shot Object Detectors from Scratch", and Liu et al., "SSD: Single Shot MultiBox
Predictor"; ScratchDet changes the normalisation, backbones and extra layers of SSD.
"""

import torch
from torch import Tensor, nn

from directdet.common.settings import SettingError
from directdet.models.backbones.builders import build_backbone
from directdet.models.parts.layers import L2Norm
from directdet.models.parts.network import Network
from directdet.models.parts.pyramid import RawMaps
from directdet.models.parts.start import init_xavier
from directdet.models.ssd.config import SSDConfig
from directdet.models.ssd.extras import EXTRAS
from directdet.models.ssd.head import SSDHead
from directdet.models.ssd.priors import FIRST_SIDES, map_steps, prior_boxes, priors_per_cell

SMALLEST, LARGEST_SIZE = 193, 768  # pixels: where the map of stride 16 takes four or five steps to a single cell


class SSD(Network):
    """Backbone, extra layers, and a head on six maps of 38, 19, 10, 5, 3 and 1 cells a side at 300 pixels.

    The number of maps follows from the size: seven of 64, 32, 16, 8, 4, 2 and 1 cells at 512 pixels.

    forward(images [N, 3, size, size], normalised) -> RawMaps with logits [N, A, 1 + classes], class 0 being background,
    and deltas divided by the variances 0.1, 0.1, 0.2, 0.2; A is 8732 at 300 pixels and 24564 at 512.

    With live batch normalisation a batch needs at least two images, because the last map is a single cell.
    """

    config: SSDConfig
    priors: Tensor
    fewest_live_images = 2  # see above

    def __init__(self, config: SSDConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(("ssd",), config.backbone, config.width, config.norm, config.in_channels)
        fine, coarse = (self.backbone.channels[level] for level in ("s8", "s16"))
        coarsest = -(-config.size // self.backbone.strides["s16"])
        self.extras = EXTRAS[config.extras](coarse, config.width, config.norm, config.last_map_3x3, coarsest)
        sizes = self._map_sizes(config.size)
        if min(sizes) < 1 or (config.priors, len(sizes)) not in FIRST_SIDES:
            raise SettingError(
                f"model.size: {config.size} would make {sum(side > 0 for side in sizes)} maps with extras="
                f"{config.extras}, and prior boxes are published for 6 and 7; give {SMALLEST} to {LARGEST_SIZE}"
            )
        per_cell = self.per_cell = priors_per_cell(len(sizes))
        head_norm = "none" if not config.head_norm else "gn" if config.norm == "gn" else "bn"
        channels = [fine, coarse, *self.extras.channels]
        self.l2_norm = nn.Identity()
        if config.l2_norm:  # of all maps, or of the finest
            norms = [L2Norm(count, config.l2_scale) for count in channels]
            self.l2_norm = nn.ModuleList(norms) if config.extras == "dsod" else norms[0]
        self.head = SSDHead(channels, per_cell, config.num_classes, head_norm)
        self.register_buffer("priors", torch.empty(0), persistent=False)
        self._lay_priors(config.size, sizes)
        init_xavier(self)

    def _map_sizes(self, size: int) -> list[int]:
        """Sides of all maps of an input of `size`; below 1 where no cell is left."""
        sizes = [-(-size // self.backbone.strides[level]) for level in ("s8", "s16")]
        return sizes + self.extras.map_sizes(sizes[-1])

    def _lay_priors(self, size: int, sizes: list[int]) -> None:
        """Priors for an input of `size` and maps of these sides, of as many pixels as at the size of training."""
        self.size, self.strides = size, map_steps(size, sizes)
        self.level_sizes = [side * side * count for side, count in zip(sizes, self.per_cell, strict=True)]
        priors = prior_boxes(self.config.priors, size, sizes, self.config.size)
        self.priors = priors.to(self.priors.device)

    def at_size(self, size: tuple[int, int]) -> Network:
        """The same layers on another square input: the maps have more cells or fewer, the priors as many pixels.

        Raises:
            ValueError: the input is not square, or so small that no cell is left of a map.
        """
        sizes = self._map_sizes(size[0])
        if size[0] != size[1] or min(sizes) < 1:
            raise ValueError(f"an SSD takes squares, of pixels enough for {len(sizes)} maps; not {size[0]}x{size[1]}")
        with torch.device("meta"):  # its own layers are not used
            other = SSD(self.config)
        for name, module in self.named_children():
            setattr(other, name, module)
        other.priors = self.priors
        other._lay_priors(size[0], sizes)
        other.training = self.training  # and not train(), which would reach into the shared layers
        return other

    def forward(self, images: Tensor, anchors: Tensor | None = None) -> RawMaps:
        self.check_size((images.shape[2], images.shape[3]))
        levels = self.backbone(images)
        features = [levels["s8"], levels["s16"], *self.extras(levels["s16"])]
        if isinstance(self.l2_norm, nn.ModuleList):
            features = [norm(x) for norm, x in zip(self.l2_norm, features, strict=True)]
        else:
            features[0] = self.l2_norm(features[0])
        logits, deltas = self.head(features)
        return RawMaps(features, logits, deltas, self.priors if anchors is None else anchors, self.level_sizes)

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"backbone": ("backbone",), "fpn": ("extras", "l2_norm"), "box": ("head",)}

    def class_layers(self) -> tuple[str, ...]:
        return ("head.classes",)

    def class_rows(self, name: str) -> tuple[int, int]:
        return 1, 1

    def input_size(self) -> tuple[int, int]:
        return self.size, self.size
