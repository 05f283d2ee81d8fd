"""Shards: tar files that hold pictures and, for each, a json of the same name, as WebDataset groups them.

``train-000000.tar`` and so on, and ``classes.json`` beside them: {"categories": [{"id": 1, "name": "cat"}, ...]}. The
json of a picture holds its width, its height and "annotations" as COCO's are; image_id and the ids of annotations are
optional.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from directdet.common.errors import UserError
from directdet.data.flat.coco_objects import Images, ObjectReader
from directdet.data.flat.json_lists import Piece
from directdet.data.formats.coco import Measured, read_categories, read_image_entry, read_json
from directdet.data.formats.folders import PICTURES, SPLIT_NAMES, Found, split_of
from directdet.data.formats.reading import IMAGE, Faults
from directdet.data.formats.values import whole
from directdet.data.records import Dataset, Records
from directdet.data.tars.members import Member, list_members, read_member

CLASSES = "classes.json"
_SHARD = re.compile(r"(?P<split>[A-Za-z0-9]+)-\d+\.tar")
_LARGEST_JSON = 2**26  # bytes, of one picture


@dataclass(frozen=True)
class _Sample:
    """A picture and what its json holds."""

    file: Path  # the tar
    text: Member  # the json
    picture: str  # path below the folder of the shards

    @property
    def where(self) -> str:
        """The json in its tar, for messages."""
        return f"{self.file}: {self.text.name}"


def open_shards(root: Path) -> Found | None:
    """The reading of a folder with classes.json and tar files that are called like a split; None if there are none."""
    if not (root / CLASSES).is_file():
        return None
    tars: dict[str, list[Path]] = {}
    for file in sorted(root.glob("*.tar")):
        found = _SHARD.fullmatch(file.name)
        split = split_of(found["split"]) if found else None
        if split is not None:
            tars.setdefault(split, []).append(file)
    splits = tuple(split for split in SPLIT_NAMES if split in tars)
    if not splits:
        return None
    what = f"shards ({tars[splits[0]][0].name}, ...)"
    return Found("shards", what, splits, lambda split: read_shards(root, split, tars[split]))


def read_shards(root: Path, split: str, tars: list[Path]) -> Dataset:
    """Read the annotations of one split; its pictures stay in the order of the tars.

    Raises:
        UserError: a tar is damaged or hostile, or classes.json holds no class.
    """
    faults = Faults()
    entries = read_json(root / CLASSES).get("categories")
    if not isinstance(entries, list):
        raise UserError(
            f'{root / CLASSES}: no list of classes; write {{"categories": [{{"id": 1, "name": "..."}}, ...]}}'
        )
    names, lost = read_categories(root / CLASSES, entries, faults)
    category_ids = sorted(names)
    images = Images(root, {}, [], [], [], [])
    measured = Measured()
    samples: list[_Sample] = []
    for sample in (one for file in tars for one in _samples(root, file, faults)):
        if _add_image(sample, images, measured, faults):
            samples.append(sample)
    labels = {category: label for label, category in enumerate(category_ids)}
    reader = ObjectReader(root, labels, images, (set(), lost), faults)

    def pieces() -> Iterator[Piece]:
        for image_id, sample in zip(images.ids, samples, strict=True):
            reader.file = sample.where
            objects = _objects(sample, image_id)
            yield Piece(objects, lambda objects=objects: objects)

    gathered = reader.read_all(pieces)
    notes: tuple[str, ...] = ()
    if measured.done:
        notes = (f"{root}: {len(measured.done)} images have no width or height; theirs are those of the image files",)
    return Dataset(
        root,
        split,
        "shards",
        tuple(names[category] for category in category_ids),
        tuple(category_ids),
        Records(gathered.finish(images.ids, images.widths, images.heights, images.names), root),
        tuple(faults.problems),
        notes,
        tuple(faults.errors()),
    )


def _samples(root: Path, file: Path, faults: Faults) -> Iterator[_Sample]:
    """The pictures of a tar with their json. Members of one name up to the first dot belong together."""
    pictures: dict[str, list[str]] = {}
    texts: dict[str, Member] = {}
    for member in list_members(file):
        path = PurePosixPath(member.name)
        base, _, suffix = path.name.partition(".")
        key = str(path.parent / base)
        if f".{suffix.lower()}" in PICTURES:
            pictures.setdefault(key, []).append(member.name)
        elif suffix.lower() == "json":
            texts[key] = member
    for key in dict.fromkeys((*pictures, *texts)):
        try:
            found = pictures.get(key, [])
            if len(found) != 1:
                what = "holds no picture for it" if not found else f"holds {' and '.join(found)} for one name"
                named = texts[key].name if key in texts else key
                raise UserError(
                    f"{file}: {named}: the tar {what}; give each picture its own name and a json of that name"
                )
            if key not in texts:
                raise UserError(
                    f"{file}: {found[0]}: has no {key}.json beside it; write one, without objects: "
                    '{"width": W, "height": H, "annotations": []}'
                )
            yield _Sample(file, texts[key], f"{file.relative_to(root).as_posix()}/{found[0]}")
        except UserError as error:
            faults.add(IMAGE, error)


def _content(sample: _Sample) -> dict[str, Any]:
    where, member = sample.where, sample.text
    if member.size > _LARGEST_JSON:
        raise UserError(f"{where}: {member.size} bytes are too many for the json of one picture; correct it")
    try:
        content = json.loads(read_member(sample.file, member.name))
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
    images.places[image_id] = len(images.ids)
    images.ids.append(image_id)
    images.names.append(name)
    images.widths.append(width)
    images.heights.append(height)
    return True


def _objects(sample: _Sample, image_id: int) -> list[Any]:
    """A sample's annotations, each with the id of its image, whatever the json says of that."""
    entries = _content(sample)["annotations"]  # read anew: of a large set all of them would take gigabytes
    return [{**entry, "image_id": image_id} if isinstance(entry, dict) else entry for entry in entries]
