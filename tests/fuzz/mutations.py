"""Damage to files, as disks, editors, merges and strangers do it: to bytes, and to values inside JSON."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

LONG = "x" * 300
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**9, 2**31, 2**63, 10**20, 10**400, 0.5, -0.0, 1e-320, 1e308, -1e30,
    float("nan"), float("inf"), float("-inf"), "", " ", "a", "0", "1e999", LONG, "\ud800", "a\0b", "../../x",
    "/etc/passwd", "C:\\x", "\x1b[31m", "[bold]", "=1+1", "é", "日本", [], {}, [[]], [None], [1, 2], [1, 2, 3, 4],
    ["a"], {"a": 1},
    [[1, 2, 3, 4, 5, 6]], {"size": [1, 1], "counts": [1]}, {"size": [30000, 30000], "counts": "a"}, [1e9] * 4,
    [30000, 30000],
)  # fmt: skip
DIGITS = "1" + "0" * 5000  # more than Python turns into a number


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """The content with some of it changed, missing, doubled or foreign."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
        place = draw.randrange(len(data) + 1)
        kind = draw.randrange(9)
        if kind == 0:
            data = data[:place]
        elif kind == 1 and data:
            data[place % len(data)] ^= 1 << draw.randrange(8)
        elif kind == 2 and data:
            data[place % len(data)] = draw.randrange(256)
        elif kind == 3:
            data[place:place] = draw.randbytes(draw.choice((1, 2, 8, 64)))
        elif kind == 4:
            del data[place : place + draw.choice((1, 2, 8, 64, 1024))]
        elif kind == 5:
            data[place:place] = data[place : place + draw.choice((1, 8, 64))]
        elif kind == 6:
            data[place : place + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xef\xbb\xbf")
            )
        elif kind == 7:
            data[place:place] = draw.choice(
                (b"\0", b"\xff", b"[", b"{", b'"', b"\n", DIGITS.encode(), b"NaN", b"<!ENTITY a 'b'>")
            )
        else:
            start = draw.randrange(len(data) + 1)
            data[place:place] = data[start : start + 32]
    return bytes(data)


def damaged_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one to three of its parts replaced, removed, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return draw.choice(ODD)
        holder, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(key) + draw.choice(("", "x", " ", LONG))] = holder.pop(key)
        elif kind == 1 or kind == 2:
            one = copy.deepcopy(holder[key])
            if isinstance(holder, list):
                holder.insert(key, one)
            else:
                holder["new"] = one
        elif kind == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = draw.choice(
                (-holder[key], holder[key] + 1, holder[key] * 1000, str(holder[key]), [holder[key]])
            )
        elif kind == 4:
            other, name = draw.choice(places)
            holder[key] = copy.deepcopy(other[name]) if _has(other, name) else None
        else:
            holder[key] = copy.deepcopy(draw.choice(ODD))
    return value


def damaged_json(content: bytes, draw: random.Random, lines: bool = False) -> bytes:
    """A JSON file, or one with a value on each line, damaged in its values or its bytes."""
    if draw.random() < 0.35:
        return damaged_bytes(content, draw)
    if not lines:
        return _dumps(damaged_value(json.loads(content), draw), draw)
    rows = content.splitlines()
    row = draw.randrange(len(rows))
    rows[row] = _dumps(damaged_value(json.loads(rows[row]), draw), draw)
    return b"\n".join(rows) + draw.choice((b"\n", b"\n", b""))


def _dumps(value: Any, draw: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=draw.random() < 0.8)
    if draw.random() < 0.03:
        text = text.replace("1", DIGITS, 1)
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """(container, key) of every part."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from _places(one)


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)
