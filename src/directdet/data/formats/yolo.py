"""Reading YOLO labels: a text file for each picture, with a class and a box or polygon on each line, and data.yaml.

Lines are ``class x y width height`` (the centre and size of a box) or ``class x1 y1 x2 y2 ...`` (a polygon), all as
shares of the picture's width and height (docs.ultralytics.com, "Object detection datasets", "Instance segmentation").
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml

from directdet.common.errors import UserError
from directdet.data.formats.folders import (
    PICTURES,
    Found,
    files_in,
    pictures_below,
    plain_path,
    split_folders,
    within,
)
from directdet.data.formats.pictures import Picture, Shape, assemble
from directdet.data.formats.reading import IMAGE, OBJECT, Faults, read_text
from directdet.data.formats.values import is_integer, name_text, whole
from directdet.data.records import Dataset

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names", "labels/classes.txt", "train/classes.txt", "train/labels/classes.txt")
# No share of a picture that is meant: pixels were taken for shares.
_FARTHEST = 2.0


@dataclass(frozen=True)
class YoloSet:
    """What a YOLO folder says: classes, and the folders or lists of pictures of each split."""

    root: Path
    names: tuple[str, ...]
    splits: dict[str, list[Path]]
    box_numbers: int = 5  # on the lines of boxes; more where key points follow
    notes: tuple[str, ...] = ()


def find_yolo(root: Path) -> YoloSet | None:
    """What is at ``root``, a folder or a yaml file; None if it does not look like YOLO.

    Raises:
        UserError: data.yaml cannot be read, or names folders that are not there; or nothing names the classes.
    """
    if root.suffix in (".yaml", ".yml"):
        return _from_yaml(root)
    found = [root / name for name in _YAML if os.path.isfile(root / name)]
    if not found:  # any other name, such as coco128.yaml
        found = [file for file in files_in(root, ".yaml", ".yml") if _is_description(file)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{root}: several YOLO descriptions ({names}); give the one that you mean, e.g. {found[0]}")
    if found:
        return _from_yaml(found[0])
    splits = _splits_by_folders(root)
    if not splits:
        return None
    for name in _NAMES:
        if os.path.isfile(root / name):
            lines = [line.strip() for line in read_text(root / name, "list of classes").splitlines()]
            return YoloSet(root, tuple(line for line in lines if line), splits)
    paths = "".join(f"{split}: {_shown(root, places[0])}, " for split, places in splits.items())
    raise UserError(
        f"{root}: YOLO labels (text files beside the pictures or in labels), but nothing names the classes; write "
        f"classes.txt with a name a line, or {root / 'data.yaml'} with {{{paths}names: [first, second]}}"
    )


def open_yolo(root: Path) -> Found | None:
    """The reading of a folder or yaml file as YOLO, or None; errors as :func:`find_yolo`."""
    found = find_yolo(root)
    if found is None:
        return None
    return Found("yolo", "YOLO labels", tuple(found.splits), lambda split: read_yolo(root, split, found))


def read_yolo(root: Path, split: str, found: YoloSet, layout: str = "yolo") -> Dataset:
    """Read one split. A picture without a label file has no objects. Category ids are YOLO's, 0..C-1.

    Raises:
        UserError: none of the pictures has a label file, or a list cannot be read.
    """
    faults = Faults()
    paths: list[Path] = []
    for source in found.splits[split]:
        paths += _listed(source, found.root, faults) if source.suffix == ".txt" else pictures_below(source)
    paths = list(dict.fromkeys(paths))
    if not paths and not faults.errors():
        raise UserError(f"{found.splits[split][0]}: holds no picture; correct the path of {split!r}")
    unlabelled: list[Path] = []
    pictures = _pictures(paths, split, found, faults, unlabelled)
    dataset = assemble(root, split, layout, pictures, dict(enumerate(found.names)), 0, faults, found.notes)
    if not unlabelled:
        return dataset
    note = f"{split}: {len(unlabelled)} of {len(paths)} pictures have no label file: no objects there"
    return replace(dataset, notes=(*dataset.notes, note))


def _pictures(
    paths: list[Path], split: str, found: YoloSet, faults: Faults, unlabelled: list[Path]
) -> Iterator[Picture]:
    """The pictures and their shapes, one at a time; those without a label file are added to ``unlabelled``."""
    for path in paths:
        picture = Picture(path, shares=True)
        file = label_file(path)
        if not os.path.isfile(file):
            unlabelled.append(path)
            yield picture
            continue
        try:
            text = read_text(file, "label file")
        except UserError as error:
            faults.add(IMAGE, error)
            continue
        for number, line in enumerate(text.splitlines(), 1):
            try:
                shape = _read_line(f"{file}: line {number}", line, found)
            except UserError as error:
                faults.add(OBJECT, error)
                continue
            if shape is not None:
                picture.shapes.append(shape)
        yield picture
    if paths and len(unlabelled) == len(paths):
        raise UserError(
            f"{label_file(paths[0])}: label file not found, nor one for any of the {len(paths)} pictures of {split!r}; "
            "labels lie beside the pictures, or in a folder labels where the pictures are in images"
        )


def label_file(picture: Path) -> Path:
    """Where the labels of a picture are: the last folder called images becomes labels; without one, beside it.

    A folder of that name may lie outside the dataset, so labels beside the picture count where there are no others.
    """
    beside = picture.with_suffix(".txt")
    parts = list(beside.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            return beside if not os.path.isfile(Path(*parts)) and os.path.isfile(beside) else Path(*parts)
    inner = beside.parent / "labels" / beside.name
    return inner if not os.path.isfile(beside) and os.path.isfile(inner) else beside


def _read_line(where: str, line: str, found: YoloSet) -> Shape | None:
    words = line.split()
    if not words:
        return None
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise UserError(f"{where}: {line.strip()[:80]!r} is not a list of finite numbers; correct it")
    label = whole(values[0])
    if label is None or not 0 <= label < len(found.names):
        raise UserError(
            f"{where}: class {words[0]} is not one of the {len(found.names)} classes (0 to {len(found.names) - 1}); "
            "correct it or add its name"
        )
    if any(abs(value) > _FARTHEST for value in values[1:5] if len(values) >= 5):
        raise UserError(
            f"{where}: {' '.join(words[1:5])} are no shares of the picture's width and height, from 0 to 1; "
            "divide pixels by them"
        )
    if len(values) == found.box_numbers:
        x, y, width, height = values[1:5]
        return Shape(where, label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    if found.box_numbers == 5 and len(values) >= 7 and len(values) % 2:
        return Shape(where, label, (), (values[1:],))
    more = f" and key points, {found.box_numbers} in all" if found.box_numbers > 5 else ", or at least three points"
    raise UserError(f"{where}: {len(values)} numbers; expected a class and x, y, width, height{more}; correct it")


def _is_description(file: Path) -> bool:
    try:
        content = _load(file)
    except UserError:
        return False
    return isinstance(content, dict) and "names" in content and "train" in content


def _load(file: Path) -> Any:
    try:
        return yaml.safe_load(read_text(file, "file"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{file}: not readable YAML: {' '.join(str(error).split())}") from None


def _from_yaml(file: Path) -> YoloSet:
    loaded = _load(file)
    if not isinstance(loaded, dict):
        raise UserError(f"{file}: expected names, train and val; is this YOLO's data.yaml?")
    content = cast("dict[Any, Any]", loaded)
    names = _names(file, content.get("names"))
    count = content.get("nc")
    if count is not None and count != len(names):
        raise UserError(f"{file}: nc is {count!r}, but there are {len(names)} names; correct one of them")
    notes: list[str] = []
    bases = _bases(file, content.get("path"))
    splits: dict[str, list[Path]] = {}
    for split, keys in (("train", ("train",)), ("val", ("val", "valid", "validation")), ("test", ("test",))):
        key = next((key for key in keys if content.get(key)), None)
        if key is None:
            continue
        given = content[key] if isinstance(content[key], list) else [content[key]]
        try:
            splits[split] = [_place(file, bases, key, name, notes) for name in cast("list[Any]", given)]
        except UserError:
            # Roboflow names a test set in data.yaml whether it was exported or not.
            if split != "test":
                raise
            notes.append(f"{file}: test: {content[key]!r} is not there; this split is left out")
    if not splits:
        raise UserError(f"{file}: train and val are missing; add them, as folders of pictures relative to path")
    shape = content.get("kpt_shape")
    numbers = 5
    if (
        isinstance(shape, list)
        and len(cast("list[Any]", shape)) == 2
        and all(map(is_integer, cast("list[Any]", shape)))
    ):
        numbers += int(shape[0] * shape[1])
        notes.append(f"{file}: key points (kpt_shape) are not used; the boxes are")
    return YoloSet(bases[0], names, splits, numbers, tuple(dict.fromkeys(notes)))


def _names(file: Path, value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        entries = dict(enumerate(cast("list[Any]", value)))
    elif isinstance(value, dict):
        entries = {
            whole(int(k) if isinstance(k, str) and k.isdecimal() and len(k) < 9 else k): v for k, v in value.items()
        }
        if sorted(key for key in entries if key is not None) != list(range(len(value))):
            raise UserError(f"{file}: names: the keys are not 0, 1, 2, ... without gaps; correct them")
    else:
        raise UserError(f"{file}: names: expected a list of the classes, or number: name; got {value!r}")
    names = [name_text(entries[label]) for label in range(len(entries))]
    if not names or None in names:
        raise UserError(f"{file}: names: {value!r} are not the names of classes; give one text for each")
    return tuple(name for name in names if name is not None)


def _bases(file: Path, path: Any) -> list[Path]:
    """The folders that paths may be relative to, the likeliest first."""
    home = file.parent
    if path is None:
        return [home]
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{file}: path: {path!r} is not a folder; give one, or leave it out")
    place = Path(path) if Path(path).is_absolute() else home / plain_path(path)
    inside = Path(path).is_absolute() or within(home, place)
    # Many files hold the author's own path; what lies beside them is meant then.
    return [place, home] if inside and os.path.isdir(place) and place.resolve() != home.resolve() else [home]


def _place(file: Path, bases: list[Path], key: str, name: Any, notes: list[str]) -> Path:
    """The folder or list of a split; absolute ones are the user's own choice, and told."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UserError(f"{file}: {key}: {name!r} is not a path; give a folder of pictures or a list of them")
    if Path(name).is_absolute():
        tried = [Path(name)]
    else:
        path = plain_path(name)
        # Roboflow writes ../train/images for the folder train beside data.yaml, and Ultralytics reads it so.
        shorter = path.relative_to("..") if path.parts[:1] == ("..",) else path
        tried = [base / part for part in dict.fromkeys((path, shorter)) for base in bases if within(base, base / part)]
    found = next((place for place in tried if os.path.isdir(place) or os.path.isfile(place)), None)
    if found is None:
        places = " or ".join(map(str, tried)) if tried else f"outside {bases[0]}"
        raise UserError(f"{file}: {key}: {name!r} not found ({places}); correct it")
    if not within(file.parent, found):
        notes.append(f"{file}: {found} is outside the folder of this file, as it says itself")
    if os.path.isfile(found) and found.suffix != ".txt":
        raise UserError(f"{file}: {key}: {name!r} is neither a folder nor a .txt list of pictures; correct it")
    inner = found / "images"  # train: train, where pictures and labels lie below it
    return inner if os.path.isdir(inner) and os.path.isdir(found / "labels") else found


def _listed(file: Path, root: Path, faults: Faults) -> list[Path]:
    """The pictures that a list names, each inside ``root`` or the list's folder."""
    found: list[Path] = []
    for number, line in enumerate(read_text(file, "list of pictures").splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        path = plain_path(name)
        places = [Path(path)] if path.is_absolute() else [file.parent / path, root / path]
        kept = [place for place in places if "\0" not in name and (within(root, place) or within(file.parent, place))]
        if not kept or path.suffix.lower() not in PICTURES:
            why = "may point outside" if not kept else "is no picture in"
            faults.add(IMAGE, UserError(f"{file}: line {number}: {name!r} {why} {root}; give a picture inside it"))
            continue
        found.append(next((place for place in kept if os.path.isfile(place)), kept[0]))
    return found


def _splits_by_folders(root: Path) -> dict[str, list[Path]]:
    """Splits of a folder without data.yaml; none if there is no label file that is one of YOLO's."""
    splits = {
        name: folder / "images" for name, folder in split_folders(root).items() if os.path.isdir(folder / "images")
    }
    splits = splits or split_folders(root / "images") or split_folders(root)
    if not splits:
        splits = {"train": root / "images" if os.path.isdir(root / "images") else root}
    for folder in splits.values():
        for picture in pictures_below(folder)[:1000] if folder != root else files_in(root, *PICTURES)[:1000]:
            if os.path.isfile(label_file(picture)) and _is_label(label_file(picture)):
                return {name: [place] for name, place in splits.items()}
    return {}


def _is_label(file: Path) -> bool:
    """Whether the first line of a text file is one of a label file."""
    with open(file, "rb") as stream:
        words = stream.readline(4096).removeprefix(b"\xef\xbb\xbf").split()
    try:
        return len(words) >= 5 and all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False


def _shown(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
