"""Keeping the annotations of files that also hold the pictures: reading them again would be reading those.

What was kept counts as long as every file has the size and times that it had, and the files of classes and lists beside
them have their content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from directdet.common.urls import url_of
from directdet.data.flat.annotations import dataset_about
from directdet.data.flat.cache import cache_file, digest_of, find, keep
from directdet.data.flat.columns import Columns
from directdet.data.inside.files import State, is_there, read_all, state_of
from directdet.data.picture_size import most_pixels
from directdet.data.records import Dataset, Records

LARGE = 64_000_000  # bytes of a split from which on its annotations are kept: less is read in a second


def states_of(files: Iterable[Path]) -> dict[Path, State]:
    """The state of each file.

    Raises:
        UserError: one cannot be found.
    """
    return {file: state_of(file) for file in files}


def kept_split(
    root: Path,
    split: str,
    layout: str,
    states: Mapping[Path, State],
    beside: Sequence[str],
    read: Callable[[], tuple[Columns, dict[str, Any]]],
    how: str = "",
) -> Dataset:
    """A split as it was kept, or as ``read`` gives it, which is kept then if it is large or far away.

    Args:
        root: the dataset's folder, which the paths of pictures are relative to.
        split: its name.
        layout: for people.
        states: of the files that hold pictures and annotations.
        beside: names of files in the folder that say more, which need not be there.
        read: returns the columns, and what :func:`about_split` says.
        how: any setting of reading.
    """
    large = url_of(root) is not None or sum(size for size, *_ in states.values()) >= LARGE
    file = cache_file(layout, root, split, how) if large else None
    if file is None:
        columns, about = read()
        return dataset_about(root, split, layout, Records(columns, root), about)
    state = {
        "files": [[str(name), *one] for name, one in states.items()],
        "beside": [_digest(root / name) for name in beside],
        "most_pixels": most_pixels(),
    }
    kept = find(file)
    if kept is not None and kept.about.get("state") == state:
        return dataset_about(root, split, layout, Records(kept, root), kept.about)
    columns, about = read()
    columns = keep(file, {**about, "state": state}, columns) or columns
    return dataset_about(root, split, layout, Records(columns, root), about)


def _digest(file: Path) -> str | None:
    if url_of(file) is None:
        return digest_of(file)
    return hashlib.sha256(read_all(file)).hexdigest() if is_there(file) else None
