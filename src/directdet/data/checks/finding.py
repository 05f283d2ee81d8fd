"""What a finding is: where in the pictures it can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from directdet.data.records import Record

MOST_EXAMPLES = 100  # kept of a finding; the report has all
Worth: TypeAlias = Literal["error", "doubt", "warning"]
Box: TypeAlias = tuple[float, float, float, float]  # xyxy, pixels of the image


@dataclass(frozen=True, eq=False)
class Example:
    """A picture in which something is to be seen.

    Attributes:
        record: the picture.
        objects: those of its objects that are in question.
        boxes: boxes in question that are not among its objects, as the file gives them.
        caption: what is in question here.
        like: another picture, to be shown beside it.
    """

    record: Record
    objects: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    caption: str = ""
    like: Record | None = None


@dataclass(frozen=True, eq=False)
class Doubt:
    """A reason why annotations can hardly be meant as they stand, in one line; how many it is about, and some of it."""

    kind: str
    text: str
    count: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, eq=False)
class Finding:
    """Something that check-data found.

    Attributes:
        kind: a word for it, such as "outside-box".
        worth: how bad it is.
        title: it in a few words, with the split and the number.
        text: more about it, in one line.
        count: of pictures, objects or lines.
        examples: pictures that show it, at most MOST_EXAMPLES.
        lines: it in words where there are no pictures; all of them.
    """

    kind: str
    worth: Worth
    title: str
    text: str
    count: int
    examples: tuple[Example, ...] = ()
    lines: tuple[str, ...] = ()
