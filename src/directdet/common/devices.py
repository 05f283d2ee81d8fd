"""Names of devices: auto, cpu, cuda, cuda:N, or N alone for the GPU of that number."""

from __future__ import annotations

import re


def device_name(value: str | int, *others: str) -> str | None:
    """The device as torch names it, or auto; None if it is none of these. `others`: further names that are taken."""
    text = str(value).strip().lower()
    if re.fullmatch(r"\d{1,3}", text):
        return f"cuda:{int(text)}"
    known = text in ("auto", "cpu", "cuda", *others) or re.fullmatch(r"cuda:\d{1,3}", text)
    return text if known else None


def no_device(value: object) -> str:
    """What to say where a name is none."""
    return f"{value!r} is none; give auto, cpu, cuda, or the number of a GPU"
