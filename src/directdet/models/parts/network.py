"""What every detector's network provides besides its arithmetic: what training and export ask of it."""

from typing import Any

from torch import nn

from directdet.models.backbones.backbone import Backbone


class Network(nn.Module):
    """A detector's network: forward(images [N, 3, H, W], normalised) gives raw maps.

    Attributes:
        config: the dataclass that it was made from.
        backbone: its first part.
        fewest_live_images: how many images a batch needs while batch normalisation is live: 2 where a map is one cell.
    """

    config: Any
    backbone: Backbone
    fewest_live_images = 1

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The names of the children that make up each part that can be loaded alone (see recipes.recipe.PARTS).

        A child that is named nowhere belongs to "box", the head.
        """
        return {"backbone": ("backbone",)}

    def class_layers(self) -> tuple[str, ...]:
        """Names of the layers that have outputs for each class: their weights are worth nothing for other classes."""
        return ()

    def input_size(self) -> tuple[int, int] | None:
        """The only (height, width) of images that it takes; None for any multiples of 32."""
        return None

    def check_size(self, size: tuple[int, int]) -> None:
        """ValueError, saying what would do, unless the network takes images of `size` (height, width)."""
        own = self.input_size()
        if own is not None and tuple(size) != own:
            name = type(self).__name__
            raise ValueError(f"this {name} takes {own[0]}x{own[1]} inputs only, not {size[0]}x{size[1]}")
        if own is None and (size[0] % 32 or size[1] % 32):
            raise ValueError(f"height and width must be multiples of 32, not {size[0]} and {size[1]}")

    def part_of(self, name: str) -> str:
        """The part that a tensor of the network's state belongs to."""
        child = name.partition(".")[0]
        return next((part for part, children in self.parts().items() if child in children), "box")

    def is_of_classes(self, name: str) -> bool:
        """Whether a tensor of the network's state is of a layer with outputs for each class."""
        return any(name.startswith(f"{layer}.") for layer in self.class_layers())
