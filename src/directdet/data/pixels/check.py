"""What check-data says about pictures that are not 8-bit RGB: what they hold, and the table [pixels] to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from directdet.common.errors import UserError
from directdet.common.settings import MOST_CHANNELS
from directdet.data.pixels.format import DTYPES, PixelFormat, describe
from directdet.data.pixels.reading import Measured, measure
from directdet.data.records import Dataset

Kind = tuple[int, str]  # channels, dtype


def pixel_lines(dataset: Dataset, kinds: Mapping[Kind, int]) -> tuple[str, ...]:
    """Lines about a split's pictures: nothing where they are 8-bit pictures in grey or colour and read as that.

    Args:
        kinds: how many of its files hold what.
    """
    pixels, where = dataset.pixels, f"{dataset.split}: pictures"
    paths = [record.path for record in dataset.records]
    if not pixels.is_rgb:
        try:
            found = measure(pixels, paths)
        except UserError as error:
            return (f"{where} are read as {pixels.kind}: {error}",)
        about = f"{where} hold {pixels.kind}, values {_range(found)}"
        if pixels.mean:
            return (f"{about}, mean {_numbers(found.pixels.mean)}, std {_numbers(found.pixels.std)}",)
        return (f"{about}; write into {dataset.root}'s dataset.toml what was measured:", *found.pixels.toml_lines())
    if len(kinds) != 1:
        return ()
    ((channels, dtype),) = kinds
    if (dtype == "uint8" and channels <= 4) or dtype not in DTYPES or not 1 <= channels <= MOST_CHANNELS:
        return ()
    try:
        found = measure(PixelFormat(channels, dtype), paths)
    except UserError as error:
        return (f"{where} hold {describe(channels, dtype)}: {error}",)
    layout = "coco" if dataset.layout == "roboflow" else dataset.layout
    own = () if layout == "toml" else (f'format = "{layout}"',)
    return (
        f"{where} hold {describe(channels, dtype)}, values {_range(found)}, not 8-bit RGB; to train on what they hold, "
        f"write into {'a' if own else 'the'} dataset.toml there:",
        *own,
        *found.pixels.toml_lines(),
    )


def _range(found: Measured) -> str:
    return ", ".join(f"{low:g}..{high:g}" for low, high in zip(found.low, found.high, strict=True))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(map(repr, values))
