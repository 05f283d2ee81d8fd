"""The static shapes that a batch is padded to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Padding:
    """The static shapes that images and targets are padded to.

    Attributes:
        divisor: height and width of the canvas, which a batch shares, are rounded up to a multiple of it.
        min_objects: the fewest rows of the padded targets. A batch has as many rows as the fullest of its images needs,
            those of other processes included, rounded up by :func:`target_rows`: objects are never cut off.
        masks: include masks; None includes them if every object has one.
        mask_size: height and width of a mask inside its box.

    Raises:
        ValueError: a value is out of range.
    """

    divisor: int = 32
    min_objects: int = 0
    masks: bool | None = None
    mask_size: int = 56

    def __post_init__(self) -> None:
        for name in ("divisor", "mask_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.min_objects < 0:
            raise ValueError(f"min_objects = {self.min_objects}: must not be negative")


def target_rows(objects: int) -> int:
    """Rows of targets that hold so many objects: 8, or a power of two from 16 on, or one and a half of it.

    One crowded image makes its own batch large and no other, and a training meets few shapes.
    """
    rows = 8
    while rows < objects:
        rows = rows * 4 // 3 if rows % 3 == 0 else rows * 3 // 2 if rows > 8 else 16
    return rows
