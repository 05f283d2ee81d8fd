"""What is known of a split besides its columns, as the JSON values that are kept with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from directdet.data.picture_size import most_pixels
from directdet.data.records import Dataset, Problem, Record


def about_split(
    names: dict[int, str], problems: Iterable[Problem], notes: Sequence[str], errors: Sequence[str]
) -> dict[str, Any]:
    """JSON values of a split: its classes (``names`` by category id), and as in :class:`Dataset`."""
    category_ids = sorted(names)
    return {
        "classes": [names[category] for category in category_ids],
        "category_ids": category_ids,
        "problems": [asdict(problem) for problem in problems],
        "notes": list(notes),
        "errors": list(errors),
        "most_pixels": most_pixels(),  # larger images are refused, so what is read depends on it
    }


def dataset_about(root: Path, split: str, layout: str, records: Sequence[Record], about: dict[str, Any]) -> Dataset:
    """The dataset with these records and what :func:`about_split` says."""
    return Dataset(
        root,
        split,
        layout,
        tuple(about["classes"]),
        tuple(about["category_ids"]),
        records,
        tuple(_problem(**problem) for problem in about["problems"]),
        tuple(about["notes"]),
        tuple(about["errors"]),
    )


def _problem(box: Sequence[float] | None, **about: Any) -> Problem:
    """A problem of its JSON values, in which a box is a list."""
    corners = None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return Problem(**about, box=corners)
