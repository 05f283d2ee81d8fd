"""Pictures in the rows of Parquet files: ``FOLDER/train-00000.parquet/17/0001.jpg`` is the picture of row 17.

What stands behind the row is the picture's name, for people. The bytes are those of the column of pictures: a struct
of bytes and path, as Hugging Face's datasets writes it, or bytes alone. A picture is read with its row group, of which
the last few are kept; Parquet has no smaller part that can be read.
"""

from __future__ import annotations

import importlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import numpy as np

from directdet.common.errors import MissingLibraryError, UserError
from directdet.data.inside.files import state_of

KEPT_BYTES = 2**26  # of row groups in each process, but for the last one
_IMAGE_NAMES = ("image", "img", "picture")


def arrow(name: str) -> Any:
    """A module of pyarrow; MissingLibraryError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = "pip install 'directdet[parquet]'"
        raise MissingLibraryError(f"Parquet files need pyarrow, which cannot be imported ({error}); {remedy}") from None


class RowFile:
    """A Parquet file that is open.

    Attributes:
        names: its columns.
        features: what Hugging Face's datasets says of each column; empty if it did not write the file.
        starts: int64 [row groups + 1], the first row of each, and their number.

    Raises:
        UserError: it cannot be read, or is no Parquet file.
        MissingLibraryError: pyarrow is not installed.
    """

    def __init__(self, file: Path) -> None:
        self.path = file
        parquet = arrow("pyarrow.parquet")
        try:
            # Without threads of its own: those would be lost in a forked worker.
            self._file: Any = parquet.ParquetFile(str(file), pre_buffer=False)
            metadata, self._schema = self._file.metadata, self._file.schema_arrow
            counts = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        except Exception as error:  # of a damaged file almost any
            raise UserError(f"{file}: not a readable Parquet file: {_short(error)}") from None
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.names: list[str] = list(self._schema.names)
        self.features = _features(self._schema.metadata or {})
        self._image: str | None = None

    @property
    def image(self) -> str:
        """The column of pictures.

        Raises:
            UserError: there is none, or it is not clear which.
        """
        if self._image is None:
            self._image = self._find_image()
        return self._image

    def _find_image(self) -> str:
        possible = {field.name: self._holds_bytes(field.type) for field in self._schema}
        told = [name for name, feature in self.features.items() if isinstance(feature, dict) and _is_image(feature)]
        structs = [name for name, struct in possible.items() if struct]
        for names in (told, [name for name in _IMAGE_NAMES if name in possible], structs):
            found = [name for name in names if possible.get(name) is not None]
            if len(found) == 1 or (found and names is not structs):
                return found[0]
        raise UserError(
            f"{self.path}: no column of pictures: expected image, a struct of bytes and path; found "
            f"{', '.join(self.names)[:200]}"
        )

    def _holds_bytes(self, kind: Any) -> bool | None:
        """True for a struct with bytes, False for bytes, None for anything else."""
        types = arrow("pyarrow").types
        if types.is_struct(kind):
            index = kind.get_field_index("bytes")
            return True if index >= 0 and _is_binary(types, kind.field(index).type) else None
        return False if _is_binary(types, kind) else None

    @property
    def is_struct(self) -> bool:
        """Whether the column of pictures is a struct."""
        return bool(arrow("pyarrow").types.is_struct(self._schema.field(self.image).type))

    def has_path(self) -> bool:
        """Whether the column of pictures has their paths, too."""
        return self.is_struct and self._schema.field(self.image).type.get_field_index("path") >= 0

    def read(self, group: int, columns: list[str]) -> Any:
        """A row group as a table of these columns; a part of a struct is "image.bytes".

        Raises:
            UserError: it is damaged.
        """
        try:
            return self._file.read_row_group(group, columns=columns, use_threads=False)
        except Exception as error:  # of a damaged file almost any
            raise UserError(f"{self.path}: row group {group}: {', '.join(columns)}: {_short(error)}") from None

    def rows(self, group: int, columns: list[str]) -> list[dict[str, Any]]:
        """The rows of a group as values of Python; errors as :meth:`read`."""
        table = self.read(group, columns)
        try:
            return cast("list[dict[str, Any]]", table.to_pylist())
        except Exception as error:  # such as a text that is not UTF-8
            raise UserError(f"{self.path}: row group {group}: {', '.join(columns)}: {_short(error)}") from None

    def fields_of(self, column: str) -> list[str]:
        """The fields of a column that is a struct, or a list of structs; none if it is neither."""
        types, kind = arrow("pyarrow").types, self._schema.field(column).type
        while any(getattr(types, f"is_{name}")(kind) for name in ("list", "large_list", "fixed_size_list")):
            kind = kind.value_type
        return [kind.field(index).name for index in range(kind.num_fields)] if types.is_struct(kind) else []

    def holds_integers(self, column: str) -> bool:
        """Whether a column has integers."""
        return bool(arrow("pyarrow").types.is_integer(self._schema.field(column).type))

    def group_of(self, row: int) -> int | None:
        """The row group that a row lies in; None if there is no such row."""
        if not 0 <= row < self.starts[-1]:
            return None
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def pictures(self, group: int) -> Any:
        """The bytes of the pictures of a row group, as a column of pyarrow."""
        column = self.read(group, [f"{self.image}.bytes" if self.is_struct else self.image]).column(0)
        if not self.is_struct:
            return column
        return arrow("pyarrow.compute").struct_field(column, "bytes")


def row_file(file: Path) -> RowFile:
    """A Parquet file, opened once in each process as long as it stays what it was; errors as :class:`RowFile`."""
    state, known = state_of(file), _files.get(str(file))
    if known is None or known[0] != state:
        for key in [key for key in _groups if key[0] == str(file)]:
            del _groups[key]
        known = _files[str(file)] = (state, RowFile(file))
    return known[1]


def read_row(file: Path, name: str, most: int = -1) -> bytes:
    """The bytes of the picture of a row, or the first ``most``; ``name`` is the row, and a name behind it.

    Raises:
        UserError: the file cannot be read, has no such row, or that has no bytes.
        MissingLibraryError: pyarrow is not installed.
    """
    opened = row_file(file)
    row, group = _row(name), None
    if row is not None:
        group = opened.group_of(row)
    if row is None or group is None:
        raise UserError(f"{file}: no row {name.partition('/')[0]!r} in it: it has {opened.starts[-1]}")
    content = _group(opened, group)[row - int(opened.starts[group])].as_py()
    if content is None:
        where = f"{file}: row group {group}, row {row}: {opened.image}"
        raise UserError(f"{where}: no bytes; embed the pictures when the file is written")
    return content if most < 0 else content[:most]


def has_row(file: Path, name: str) -> bool:
    """Whether a Parquet file has a row; errors as :class:`RowFile`."""
    row = _row(name)
    return row is not None and row_file(file).group_of(row) is not None


# By file, with the state that it had; and by file and number, the last row groups that were read, and their bytes.
_files: dict[str, tuple[tuple[int, int, int], RowFile]] = {}
_groups: OrderedDict[tuple[str, int], Any] = OrderedDict()


def _forget() -> None:
    _files.clear()
    _groups.clear()


if hasattr(os, "register_at_fork"):  # a worker opens its own
    os.register_at_fork(after_in_child=_forget)


def _group(opened: RowFile, group: int) -> Any:
    key = (str(opened.path), group)
    found = _groups.pop(key, None)
    if found is None:
        found = opened.pictures(group)
        while _groups and sum(one.nbytes for one in _groups.values()) + found.nbytes > KEPT_BYTES:
            _groups.popitem(last=False)
    _groups[key] = found
    return found


def _row(name: str) -> int | None:
    first = name.partition("/")[0]
    return int(first) if first.isascii() and first.isdecimal() and len(first) < 19 else None


def _is_binary(types: Any, kind: Any) -> bool:
    return any(getattr(types, f"is_{name}")(kind) for name in ("binary", "large_binary", "binary_view"))


def _is_image(feature: dict[str, Any]) -> bool:
    return feature.get("_type") == "Image"


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What Hugging Face's datasets says of the columns."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return cast("dict[str, Any]", features) if isinstance(features, dict) else {}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
