"""Checking COCO run lengths before a decoder sees them: decoders turn any input into some mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from directdet.common.errors import UserError
from directdet.data.formats.values import whole
from directdet.data.records import RLE


def check_rle(where: str, value: dict[str, Any], height: int, width: int) -> RLE:
    """A run-length mask from a file, once it is known to fill its image exactly.

    Args:
        where: what to name in the error message.
        value: {"size": [height, width], "counts": list of run lengths, or a compressed string}.
        height, width: of the image.

    Raises:
        UserError: another size, counts that are neither, or counts that do not add up to height * width.
    """
    counts, size = value.get("counts"), value.get("size")
    if size != [height, width]:
        raise UserError(f"{where}: segmentation: size {size!r} is not the image's [{height}, {width}]; correct it")
    runs: Sequence[int | None] | None = None
    if isinstance(counts, str):
        runs = unpack_counts(counts)
    elif isinstance(counts, list):
        runs = [whole(run) for run in counts]
    lengths = [run for run in runs or () if run is not None and run >= 0]
    if runs is None or len(lengths) < len(runs):
        raise UserError(f"{where}: segmentation: counts are neither run lengths nor a compressed string; correct it")
    if sum(lengths) != height * width:
        raise UserError(f"{where}: segmentation: counts add up to {sum(lengths)}, not {height} * {width}; correct it")
    return {"size": [height, width], "counts": counts if isinstance(counts, str) else lengths}


def unpack_counts(text: str) -> list[int] | None:
    """The run lengths in a compressed string, or None if it is not one.

    A number is a sequence of characters, each "0" plus 6 bits: 5 bits of the number, lowest first, and a sixth that is
    set if more follow; the highest of the last 5 bits is the sign. From the fourth run on, the number is the difference
    to the run two before.
    """
    if not text.isascii():
        return None
    digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((digits & 32) == 0)
    if not len(ends) or ends[-1] != len(digits) - 1 or digits.min() < 0 or digits.max() > 63:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:  # larger than any image, and than 64 bits
        return None
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * places), starts)
    runs -= ((digits[ends] & 16) != 0) * (np.int64(1) << (5 * lengths))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()
