"""What a detector asks of its backbone, with answers that serve most."""

from collections.abc import Iterable

from torch import Tensor, nn

from directdet.common.settings import SettingError


class Backbone(nn.Module):
    """A network whose forward(images [N, 3, H, W], normalised) gives feature maps by name, finest first.

    A detector on a pyramid takes {"c2": [N, C, H/4, W/4], ..., "c5": [N, C, H/32, W/32]} and rounds sizes up; an SSD
    takes {"s8": ..., "s16": ...}.

    Attributes:
        channels, strides: of each map, by the same names.
        imagenet: the name of the ImageNet weights that torchvision publishes for it; None if there are none.
    """

    channels: dict[str, int]
    strides: dict[str, int]
    imagenet: str | None = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def stages(self) -> list[list[nn.Module]]:
        """The modules of stage 0 (stem), 1, ..., for freezing the first of them.

        Raises:
            SettingError: this backbone does not tell its stages apart.
        """
        raise SettingError(f"frozen_stages: {type(self).__name__} cannot be frozen in stages; use -1")

    def use_only(self, levels: Iterable[str]) -> None:
        """Drop what only other maps need: parameters that never learn stop training on several devices."""

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict of the published network by the names used here, without its classifier."""
        return state

    def unpublished(self) -> tuple[str, ...]:
        """Prefixes of the names of tensors that the published network does not have."""
        return ()
