"""The interface between a detector and its backbone, with defaults that suit most backbones."""

from collections.abc import Iterable

from torch import Tensor, nn

from directdet.common.settings import SettingError


class Backbone(nn.Module):
    """A network whose forward(images [N, C, H, W], normalised) returns feature maps by name, finest first.

    Detectors with a feature pyramid take {"c2": [N, C, H/4, W/4], ..., "c5": [N, C, H/32, W/32]}, sizes rounded up; an
    SSD takes {"s8": ..., "s16": ...}.

    Attributes:
        channels: number of channels of each map, by name.
        strides: stride of each map in pixels, by name.
        imagenet: the torchvision model whose ImageNet weights fit this backbone; None if there is none.
    """

    channels: dict[str, int]
    strides: dict[str, int]
    imagenet: str | None = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (stem), 1, ..., used to freeze the first stages.

        Raises:
            SettingError: this backbone does not define stages.
        """
        raise SettingError(f"frozen_stages: {type(self).__name__} does not define stages to freeze; use -1")

    def keep_levels(self, levels: Iterable[str]) -> None:
        """Drop the layers that only other maps need: unused parameters break training on several devices."""

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state_dict of torchvision's network to the names used here, without its classifier."""
        return state

    def unpublished(self) -> tuple[str, ...]:
        """Name prefixes of the tensors that torchvision's network does not have."""
        return ()
