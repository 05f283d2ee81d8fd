"""The input of a loaded network, which every backend checks against meta.json."""

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
        dtype: "float32": normalised images [B, C, H, W]; "uint8": images [B, H, W, C].
        batch: the fixed batch size, or None.
        min_batch, max_batch: limits of the batch size; max_batch None: no limit.
        canvas: the fixed (H, W), or None.
        channels: C.
    """

    dtype: str = "float32"
    batch: int | None = None
    min_batch: int = 1
    max_batch: int | None = None
    canvas: tuple[int, int] | None = None
    channels: int = 3

    @property
    def channels_last(self) -> bool:
        return LAYOUTS[self.dtype] == "NHWC"

    def empty(self, count: int, canvas: tuple[int, int]) -> np.ndarray:
        """An uninitialised array for `count` images."""
        shape = (count, *canvas, self.channels) if self.channels_last else (count, self.channels, *canvas)
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
    """The network's input, which must be as described in meta.json.

    Args:
        found: names and types of the network's inputs.
        types: the runtime's type names -> dtypes.
        shape: of the first input; None for a dynamic size.

    Raises:
        UserError: the number of inputs, a name, a type or the number of channels differs.
    """
    wanted = (artefact.input_name, artefact.dtype)
    here = [(name, types.get(kind, kind)) for name, kind in found]
    if here != [wanted]:
        shown = ", ".join(f"{name!r} {kind}" for name, kind in here)
        raise UserError(
            f"{artefact.model_file}: inputs {shown}; meta.json says {wanted[0]!r} {wanted[1]}; export again"
        )
    last, wanted_channels = LAYOUTS[artefact.dtype] == "NHWC", len(artefact.preprocess.mean)
    height, width = shape[1:3] if last else shape[2:4]
    if shape[3 if last else 1] not in (None, wanted_channels):
        raise UserError(
            f"{artefact.model_file}: an input of {shape[3 if last else 1]} channels; meta.json says {wanted_channels}; "
            "export again"
        )
    canvas = None if height is None or width is None else (height, width)
    least, _, most = artefact.batch or (1, 1, None)
    fixed = shape[0]
    if fixed is not None:
        least = most = fixed
    return NetworkInput(artefact.dtype, fixed, least, most, canvas, wanted_channels)
