"""The interface of a detector's network: the forward pass, and what training and export need to know about it."""

from typing import Any

from torch import Tensor, nn

from directdet.models.backbones.backbone import Backbone


class Network(nn.Module):
    """A detector's network: forward(images [N, C, H, W], normalised) returns raw maps.

    Attributes:
        config: the dataclass it was built from.
        backbone: its backbone.
        fewest_live_images: smallest batch size for training with live batch normalisation: 2 if a map is a single cell.
        narrowest: stride of the smallest map that a strided convolution takes, if it is beyond that of the last stage;
            on canvases of at most as many pixels width, that map has a width of one.
    """

    config: Any
    backbone: Backbone
    fewest_live_images = 1
    narrowest = 0

    @property
    def in_channels(self) -> int:
        """C, the channels of its images: 3 where its configuration has no such setting."""
        return getattr(self.config, "in_channels", 3)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The child modules of each part whose weights can be loaded separately (see recipes.recipe.PARTS).

        Children that are not listed belong to "box", the box head.
        """
        return {"backbone": ("backbone",)}

    def class_layers(self) -> tuple[str, ...]:
        """Names of the layers with one output per class; of other classes, only those of the same name are of use."""
        return ()

    def class_rows(self, name: str) -> tuple[int, int]:
        """How a tensor of the class_layers() is divided: (b, n) of its [P * (b + classes) * n, ...].

        Each of P priors has b outputs before the first class, 1 for a background, and each output n rows: 4 for a box
        of each class. n is 0 where the tensor is of all classes together.
        """
        return 0, 1

    def input_size(self) -> tuple[int, int] | None:
        """The only input size (height, width) that the network accepts; None: any multiples of 32."""
        return None

    def at_size(self, size: tuple[int, int]) -> "Network":
        """This network, with these weights, for inputs of `size` (height, width): itself, where it takes any.

        Raises:
            ValueError: it can take no such size.
        """
        self.check_size(size)
        return self

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError, stating the accepted sizes, unless the network accepts images of `size` (height, width)."""
        own = self.input_size()
        if own is not None and tuple(size) != own:
            name = type(self).__name__
            raise ValueError(f"this {name} takes {own[0]}x{own[1]} inputs only, not {size[0]}x{size[1]}")
        if own is None and (size[0] % 32 or size[1] % 32):
            raise ValueError(f"height and width must be multiples of 32, not {size[0]} and {size[1]}")

    def from_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state_dict of a classifier of torchvision's by our names, most of which are the same: the backbone's."""
        return {f"backbone.{name}": value for name, value in (self.backbone.from_torchvision(state) or state).items()}

    def part_of(self, name: str) -> str:
        """The part that a tensor of the state_dict belongs to, by name."""
        child = name.partition(".")[0]
        return next((part for part, children in self.parts().items() if child in children), "box")

    def is_of_classes(self, name: str) -> bool:
        """Whether a tensor of the state_dict belongs to one of the class_layers(), by name."""
        return any(name.startswith(f"{layer}.") for layer in self.class_layers())
