"""What a loaded network takes: checked once against meta.json, by every backend alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from directdet.common.errors import UserError
from directdet.infer.artefact import LAYOUTS, Artefact


@dataclass(frozen=True)
class NetworkInput:
    """The input of one network.

    Attributes:
        dtype: "float32", normalised planes [B, 3, H, W] (RGB), or "uint8", canvases [B, H, W, 3] (BGR).
        batch: the only batch size it takes, or None.
        min_batch, max_batch: fewest and most images of a run; max_batch None: no limit.
        canvas: the only (H, W) it takes, or None for any.
    """

    dtype: str = "float32"
    batch: int | None = None
    min_batch: int = 1
    max_batch: int | None = None
    canvas: tuple[int, int] | None = None

    @property
    def channels_last(self) -> bool:
        return LAYOUTS[self.dtype] == "NHWC"

    def empty(self, count: int, canvas: tuple[int, int]) -> np.ndarray:
        """An array for `count` images, not filled."""
        shape = (count, *canvas, 3) if self.channels_last else (count, 3, *canvas)
        return np.empty(shape, self.dtype)

    def canvas_of(self, batch: np.ndarray) -> tuple[int, int]:
        """(H, W) of a batch."""
        height, width = batch.shape[1:3] if self.channels_last else batch.shape[2:4]
        return height, width


def check_input(
    artefact: Artefact,
    found: Sequence[tuple[str, str]],
    types: Mapping[str, str],
    shape: Sequence[int | None],
) -> NetworkInput:
    """The network's input, which must be the one that meta.json tells of.

    Args:
        found: names and types of the network's inputs.
        types: the runtime's names of types -> dtypes.
        shape: of the first input; None for a size that is left open.

    Raises:
        UserError: another name, number, type or shape.
    """
    wanted = (artefact.input_name, artefact.dtype)
    here = [(name, types.get(kind, kind)) for name, kind in found]
    if here != [wanted]:
        shown = ", ".join(f"{name!r} {kind}" for name, kind in here)
        raise UserError(
            f"{artefact.model_file}: inputs {shown}; meta.json says {wanted[0]!r} {wanted[1]}; export again"
        )
    edges = shape[1:3] if LAYOUTS[artefact.dtype] == "NHWC" else shape[2:4]
    canvas = None if None in edges else (edges[0], edges[1])
    least, _, most = artefact.batch or (1, 1, None)
    fixed = shape[0]
    if fixed is not None:
        least = most = fixed
    return NetworkInput(artefact.dtype, fixed, least, most, canvas)  # type: ignore[arg-type]
