"""Which other files an ONNX file names for its weights, read without a library and without loading the weights.

A runtime reads those files without a question, so that they have to be among those that meta.json lists and hashes. The
numbers are the fields' in onnx.proto; `directdet export` writes none of this.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from directdet.common.errors import UserError

Buffer = bytes | mmap.mmap
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)
# Of each message, the fields that lead to a tensor, and what they hold.
_WAYS = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _TENSOR: {13: _ENTRY},
    _ENTRY: {},
}
_NAME, _VALUE = 1, 2  # of an entry of TensorProto.external_data
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # protobuf's wire types


def external_files(path: Path) -> set[str]:
    """The names that tensors of an ONNX file give for the files with their values.

    Raises:
        UserError: it is no ONNX file, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                raise UserError(f"{path}: is empty; export again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _external(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError):
        raise UserError(f"{path}: cannot be read as an ONNX file; export again") from None


def _external(content: Buffer) -> set[str]:
    found: set[str] = set()
    waiting = [(_MODEL, 0, len(content))]
    while waiting:
        kind, start, end = waiting.pop()
        name = value = b""
        for field, low, high in _fields(content, start, end):
            if kind == _ENTRY:
                name = content[low:high] if field == _NAME else name
                value = content[low:high] if field == _VALUE else value
            elif field in _WAYS[kind]:
                waiting.append((_WAYS[kind][field], low, high))
        if name == b"location":
            found.add(value.decode("utf-8", "replace"))
    return found


def _fields(content: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of the fields of a message that have a length; ValueError if it is none."""
    while start < end:
        key, start = _varint(content, start, end)
        wire = key & 7
        if wire == _VARINT:
            start = _varint(content, start, end)[1]
        elif wire in (_EIGHT, _FOUR):
            start += 8 if wire == _EIGHT else 4
        elif wire == _BYTES:
            size, start = _varint(content, start, end)
            if size > end - start:
                raise ValueError
            yield key >> 3, start, start + size
            start += size
        else:
            raise ValueError
    if start != end:
        raise ValueError


def _varint(content: Buffer, start: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while start < end and shift < 70:
        byte = content[start]
        value |= (byte & 127) << shift
        start, shift = start + 1, shift + 7
        if byte < 128:
            return value, start
    raise ValueError
