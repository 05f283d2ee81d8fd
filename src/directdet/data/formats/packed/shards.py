"""Shards: tar files that hold pictures and, for each, a json of the same name, as WebDataset groups them.

``train-000000.tar`` and so on, and ``classes.json`` beside them: {"categories": [{"id": 1, "name": "cat"}, ...]}; and a
list of the tars, if the set was written here. The json of a picture holds its width, its height and "annotations" as
COCO's are; image_id and the ids of annotations are optional.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from directdet.common.errors import UserError
from directdet.common.urls import shown, url_of
from directdet.data.flat.annotations import about_split
from directdet.data.flat.coco_objects import Images, ObjectReader
from directdet.data.flat.columns import Columns
from directdet.data.flat.json_lists import Piece
from directdet.data.formats.coco import Measured, read_categories, read_image_entry, read_json
from directdet.data.formats.folders import PICTURES, SPLIT_NAMES, Found
from directdet.data.formats.packed.kept import kept_split, states_of
from directdet.data.formats.packed.shard_list import LIST, Shard, check_samples, check_tars, read_list, split_of_tar
from directdet.data.formats.reading import IMAGE, Faults
from directdet.data.formats.values import whole
from directdet.data.inside.files import is_there, names_in
from directdet.data.inside.members import Member, list_members
from directdet.data.records import Dataset

CLASSES = "classes.json"
_LARGEST_JSON = 2**26  # bytes, of one picture


@dataclass(frozen=True)
class _Text:
    """A json in a tar."""

    name: str
    size: int
    packed: bytes


@dataclass(frozen=True)
class _Sample:
    """A picture and its json."""

    where: str  # the json in its tar, for messages
    packed: bytes  # the json, by zlib: of a large set all of them are hundreds of MB
    picture: str  # path below the folder of the shards


def open_shards(root: Path) -> Found | None:
    """The reading of a folder with classes.json and tar files that are called like a split; None if there are none.

    Raises:
        UserError: there is a list of its tars that cannot be read.
    """
    if not is_there(root / CLASSES):
        return None
    listed = read_list(root)
    if listed is None or url_of(root) is None:
        names = names_in(root, ".tar")
    else:  # most servers can list nothing
        names = sorted(name for shards in listed.values() for name in shards)
    tars: dict[str, list[Path]] = {}
    for name in names:
        split = split_of_tar(name)
        if split is not None:
            tars.setdefault(split, []).append(root / name)
    splits = tuple(split for split in SPLIT_NAMES if split in tars or split in (listed or ()))
    if not splits:
        return None
    first = splits[0]
    own = [file.name for file in tars.get(first, ())] or list((listed or {}).get(first, ()))
    what = f"shards ({own[0]}, ...)"
    return Found("shards", what, splits, lambda split: read_shards(root, split, tars.get(split, []), listed))


def read_shards(
    root: Path, split: str, tars: list[Path], listed: Mapping[str, Mapping[str, Shard]] | None = None
) -> Dataset:
    """Read the annotations of one split; its pictures stay in the order of the tars.

    What was read of large tars is kept, see kept.py.

    Raises:
        UserError: a tar is damaged or hostile, or not as it is listed, or classes.json holds no class.
    """
    own = None if listed is None else listed.get(split, {})
    states = states_of(tars)
    if own is not None:
        check_tars(root, own, {file.name: size for file, (size, *_) in states.items()})
    return kept_split(root, split, "shards", states, (CLASSES, LIST), lambda: _read(root, tars, own or {}))


def _read(root: Path, tars: list[Path], listed: Mapping[str, Shard]) -> tuple[Columns, dict[str, Any]]:
    """The columns of a split, and what else is known of it."""
    faults = Faults()
    entries = read_json(root / CLASSES, "a list of classes", "categories").get("categories")
    if not isinstance(entries, list):
        raise UserError(
            f'{shown(root / CLASSES)}: no list of classes; write {{"categories": [{{"id": 1, "name": "..."}}, ...]}}'
        )
    names, lost = read_categories(root / CLASSES, entries, faults)
    images = Images(root)
    measured = Measured()
    samples: list[_Sample] = []
    for file in tars:
        for sample in _samples(root, file, listed, faults):
            if _add_image(sample, images, measured, faults):
                samples.append(sample)
    labels = {category: label for label, category in enumerate(sorted(names))}
    reader = ObjectReader(root, labels, images, (set(), lost), faults)

    def pieces() -> Iterator[Piece]:
        for image_id, sample in zip(images.ids, samples, strict=True):
            reader.file = sample.where
            objects = _objects(sample, image_id)
            yield Piece(objects, lambda objects=objects: objects)

    gathered = reader.read_all(pieces)
    notes: list[str] = []
    if measured.done:
        notes = [
            f"{shown(root)}: {len(measured.done)} images have no width or height; theirs are those of the image files"
        ]
    about = about_split(names, faults.problems, notes, faults.errors())
    return gathered.finish(images.ids, images.widths, images.heights, images.names), about


def _samples(root: Path, file: Path, listed: Mapping[str, Shard], faults: Faults) -> Iterator[_Sample]:
    """The pictures of a tar with their json. Members of one name up to the first dot belong together."""
    pictures: dict[str, list[str]] = {}
    texts: dict[str, _Text] = {}
    for member in list_members(file, _is_json):
        path = PurePosixPath(member.name)
        base, _, suffix = path.name.partition(".")
        key = str(path.parent / base)
        if f".{suffix.lower()}" in PICTURES:
            pictures.setdefault(key, []).append(member.name)
        elif suffix.lower() == "json":
            texts[key] = _Text(member.name, member.size, zlib.compress(member.content or b"", 1))
    keys = dict.fromkeys((*pictures, *texts))
    check_samples(file, listed, len(keys))
    for key in keys:
        try:
            found = pictures.get(key, [])
            if len(found) != 1:
                what = "holds no picture for it" if not found else f"holds {' and '.join(found)} for one name"
                named = texts[key].name if key in texts else key
                raise UserError(
                    f"{shown(file)}: {named}: the tar {what}; give each picture its own name and a json of that name"
                )
            if key not in texts:
                raise UserError(
                    f"{shown(file)}: {found[0]}: has no {key}.json beside it; write one, without objects: "
                    '{"width": W, "height": H, "annotations": []}'
                )
            where, text = f"{shown(file)}: {texts[key].name}", texts[key]
            if text.size > _LARGEST_JSON:
                raise UserError(f"{where}: {text.size} bytes are too many for the json of one picture; correct it")
            yield _Sample(where, text.packed, f"{file.relative_to(root).as_posix()}/{found[0]}")
        except UserError as error:
            faults.add(IMAGE, error)


def _is_json(member: Member) -> bool:
    return PurePosixPath(member.name).name.partition(".")[2].lower() == "json" and member.size <= _LARGEST_JSON


def _content(sample: _Sample) -> dict[str, Any]:
    where = sample.where
    try:
        content = json.loads(zlib.decompress(sample.packed))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}; correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise UserError(f'{where}: expected an object with a list "annotations"; write {{"annotations": [], ...}}')
    return content


def _add_image(sample: _Sample, images: Images, measured: Measured, faults: Faults) -> bool:
    """Add a sample's picture; False if it cannot be read."""
    try:
        content = _content(sample)
        image_id = whole(content["image_id"]) if "image_id" in content else len(images.ids) + 1
        if image_id is None or image_id in images.places:
            shown = content.get("image_id", image_id)
            raise UserError(f"{sample.where}: image_id {shown!r} is no integer, or used twice; correct it")
        size = {key: content.get(key) for key in ("width", "height")}
        entry = {"file_name": sample.picture, **size}
        name, width, height = read_image_entry(sample.where, image_id, entry, images.folder, measured)
    except UserError as error:
        faults.add(IMAGE, error)
        return False
    images.add(image_id, name, width, height)
    return True


def _objects(sample: _Sample, image_id: int) -> list[Any]:
    """A sample's annotations, each with the id of its image, whatever the json says of that."""
    entries = _content(sample)["annotations"]  # parsed anew: of a large set all of them would take gigabytes
    return [{**entry, "image_id": image_id} if isinstance(entry, dict) else entry for entry in entries]
