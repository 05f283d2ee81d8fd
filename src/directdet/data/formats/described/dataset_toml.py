"""dataset.toml: a short file that says where the images and annotations of any other folder layout are.

Either one table per split::

    [train]
    images = "photos"
    annotations = "train.json"
    [val]
    images = "photos"
    annotations = "val.json"

or one set, which is split the same way every time::

    images = "photos"
    annotations = "all.json"
    val_fraction = 0.3  # or val_count = 50, val_list = "val.txt", or folds = 5 and fold = 0
    seed = 0

In place of images and annotations either may say ``format = "yolo"`` and the ``folder`` to read so.

A table may instead name image lists of VOC folders, each as FOLDER/LIST (VOC 07+12)::

    [train]
    voc = ["VOC2007/trainval", "VOC2012/trainval"]
    [val]
    voc = ["VOC2007/test"]

Several sets are joined by a table ``[[sets]]`` for each, see joined.py; classes are renamed, merged and left out by
``[classes]`` and ``keep_classes``, see classes.py. With pictures of other sensors, a table says what they hold; see
pixels/format.py::

    [pixels]
    channels = 1
    dtype = "uint16"  # or "uint8", "float32"
    mean = [20312.0]  # of each channel; check-data measures and prints both
    std = [4711.0]
    show = [0]  # the channel to draw as grey, or three as red, green and blue
    upright = true  # turn pictures as EXIF says; by default they are taken as stored
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from directdet.common.errors import UserError
from directdet.data.formats.described.classes import KEEP, class_rules, with_classes
from directdet.data.formats.described.classes import TABLE as CLASSES
from directdet.data.formats.described.joined import SETS, joined_splits, read_joined
from directdet.data.formats.described.sets import (
    COCO_KEYS,
    DATA,
    FORMAT_KEYS,
    SINGLE_KEYS,
    SPLITS,
    VOC,
    Finder,
    check_keys,
    hold_out,
    in_a_format,
    is_divided,
    opened,
    read_set,
    voc_lists,
)
from directdet.data.formats.described.splits import KEYS as SPLIT_KEYS
from directdet.data.formats.reading import read_text
from directdet.data.formats.voc import read_voc_lists
from directdet.data.pixels.format import pixel_format
from directdet.data.records import Dataset, with_pixels

_PIXELS = "pixels"
_PIXEL_KEYS = ("channels", "dtype", "mean", "std", "show", "upright")
_WHOLE_FILE = (_PIXELS, CLASSES, KEEP)


def toml_splits(file: Path, find: Finder) -> list[str]:
    """Names of the splits that ``file`` describes; ``find`` opens the datasets that it names."""
    content = _read(file)
    if SETS in content:
        return joined_splits(file, content, find)
    if in_a_format(content) and not is_divided(content):  # as it is, with the splits that it has
        return list(opened(file, content, str(file)).splits)
    if _is_one_set(content):
        return ["train", "val"]
    return [split for split in SPLITS if split in content]


def read_toml(file: Path, split: str, find: Finder) -> Dataset:
    """Read one split. Paths are relative to the folder of ``file`` and stay inside it, or absolute, which is told.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing or wrong value, or anything that
            :func:`directdet.data.formats.coco.read_coco` refuses.
    """
    content = _read(file)
    pixels, table, keep = (content.pop(key, None) for key in _WHOLE_FILE)
    rules = class_rules(table, keep, f"{file}: [{CLASSES}]", f"{file}: {KEEP}")
    if SETS in content:
        dataset = read_joined(file, content, split, find, rules)
    else:
        dataset = _read_split(file, content, split)
        dataset = dataset if rules is None else with_classes(dataset, rules)
    if pixels is None:
        if SETS in content and len({record.pixels for record in dataset.records}) > 1:
            raise UserError(
                f"{file}: its sets hold pictures of different formats; say how all are read, in [{_PIXELS}]"
            )
        return dataset
    format_ = pixel_format(pixels, f"{file}: [{_PIXELS}]")
    return replace(dataset, records=with_pixels(dataset.records, format_))


def _read_split(file: Path, content: dict[str, Any], split: str) -> Dataset:
    if _is_one_set(content):
        if in_a_format(content) and not is_divided(content):
            return read_set(file, content, split, str(file))
        return hold_out(file, content, split, str(file))
    if VOC in content[split]:
        # All of them, whichever split is read: they share one set of classes.
        lists = {key: voc_lists(file, table, f"{file}: [{key}]") for key, table in content.items() if VOC in table}
        return read_voc_lists(file.parent, split, lists)
    return read_set(file, content[split], split, f"{file}: [{split}]", _other_files(file, content, split))


def _other_files(file: Path, content: dict[str, Any], split: str) -> list[Path]:
    """The annotation files of the other splits; what is wrong with one is told when that split is read."""
    names = [table.get("annotations") for key, table in content.items() if key != split]
    return [file.parent / name for name in names if isinstance(name, str)]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(read_text(file, "file"))
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        raise UserError(f"{file}: not readable TOML: {error}") from None
    tables = [split for split in SPLITS if isinstance(content.get(split), dict)]
    single = [key for key in content if key in SINGLE_KEYS]
    if SETS in content:
        known = (SETS, *SPLIT_KEYS)
        wrong = next((key for key in content if key in (*SPLITS, *COCO_KEYS, *FORMAT_KEYS, VOC, DATA)), None)
        if wrong is not None:
            raise UserError(f"{file}: {wrong}: belongs into one of the tables [[{SETS}]]")
    elif tables and single:
        raise UserError(f"{file}: {single[0]}: give either [train] and [val] tables or one set, not both")
    else:
        known = SPLITS if tables else (*SINGLE_KEYS, *SPLITS, SETS)
    check_keys(str(file), content, (*known, *_WHOLE_FILE))
    for split in SPLITS:
        if split in content and split not in tables:
            raise UserError(f"{file}: {split}: expected a table [{split}] with images and annotations, or with voc")
    if _PIXELS in content:
        if not isinstance(content[_PIXELS], dict):
            raise UserError(f"{file}: {_PIXELS}: expected a table [{_PIXELS}] with channels and dtype")
        check_keys(f"{file}: [{_PIXELS}]", content[_PIXELS], _PIXEL_KEYS, above=(*SPLIT_KEYS, KEEP))
    for split in tables:
        known = (*COCO_KEYS, *FORMAT_KEYS, VOC)
        check_keys(f"{file}: [{split}]", content[split], known, above=(*SPLIT_KEYS, KEEP))
    if not tables and not single and SETS not in content:
        raise UserError(f"{file}: images and annotations are missing; add them, or [train] and [val] tables")
    return content


def _is_one_set(content: dict[str, Any]) -> bool:
    return "images" in content or "annotations" in content or in_a_format(content)
