"""How large the objects of a training set are to a phase of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

SIDES = (1, 4, 8, 16, 32)  # pixels, in which the sizes are told; 8 is the finest stride of most detectors here


@dataclass(frozen=True, eq=False)
class Seen:
    """Objects at the size that a phase resizes to.

    Attributes:
        phase: its name, and how it resizes, in words.
        sides: [N, 2], width and height of the objects in pixels.
        unseen: how many of them are never a pixel wide and high.
        difficult: how many others of the set are left out as difficult.
    """

    phase: str
    sides: np.ndarray
    unseen: int
    difficult: int = 0

    def below(self, limit: float) -> int:
        """How many are narrower or lower than so many pixels."""
        return int((self.sides.min(axis=1) < limit).sum())

    def in_words(self) -> str:
        """One line."""
        told = ", ".join(f"{self.below(limit)} below {limit}" for limit in SIDES)
        return f"{self.phase}: of {len(self.sides)} objects, shorter sides in pixels: {told}; {self.unseen} never seen"

    def to_dict(self) -> dict[str, Any]:
        """The numbers, without the sides."""
        below = {str(limit): self.below(limit) for limit in SIDES}
        numbers = {"objects": len(self.sides), "unseen": self.unseen, "difficult": self.difficult}
        return {"phase": self.phase, **numbers, "below": below}
