"""Pictures that belong to a dataset: their results have the data's own ids, so that others can score them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.dataset import find_splits, load_dataset
from directdet.data.records import Dataset, Record
from directdet.infer.accuracy.evaluate import match_classes, require_format
from directdet.infer.predict.sources import Images
from directdet.infer.predictor import Predictor

_UP = 3  # a dataset's root lies at most so many folders above its pictures, as VOCdevkit/VOC2007/JPEGImages


@dataclass(frozen=True)
class Labelled:
    """The dataset that pictures belong to.

    Attributes:
        name: for messages.
        category_ids: the dataset's id of each of the detector's labels.
        records: by the real path of their picture.
    """

    name: str
    category_ids: tuple[int, ...]
    records: dict[str, Record]

    def record(self, path: Path) -> Record:
        """The record of one of the pictures."""
        return self.records[os.path.realpath(path)]

    @property
    def digest(self) -> str:
        """What tells these ids from others."""
        ids = [(record.path.name, record.image_id) for record in self.records.values()]
        return hashlib.sha256(json.dumps([ids, self.category_ids]).encode()).hexdigest()


def labelled_split(detector: Predictor, root: str | Path, split: str) -> tuple[Images, Labelled]:
    """The pictures of one split of a dataset, in its order, each once.

    Raises:
        UserError: no such dataset or split, no pictures in it, or other classes or another format than the detector's.
    """
    dataset = load_dataset(root, split)
    records = _firsts(dataset)
    paths = tuple(record.path for record in records.values())
    if not paths:
        raise UserError(f"{root}: {split}: no images to detect on")
    require_format(detector, dataset)
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return Images(str(root), folder, len(paths), paths=paths), _labelled(detector, dataset, records)


def without_labelled(images: Images, root: str | Path) -> Images:
    """The images that are in no split of a dataset.

    Raises:
        UserError: there is no such dataset, or none are left.
    """
    known = {
        os.path.realpath(record.path) for split in find_splits(root) for record in load_dataset(root, split).records
    }
    paths = tuple(path for path in images if os.path.realpath(path) not in known)
    if not paths:
        raise UserError(f"{images.source}: all of its {len(images)} images are in {root}; give others")
    gone = len(images) - len(paths)
    words = [images.left_out] * bool(images.left_out) + [f"{gone} images that are in {root}"] * bool(gone)
    return replace(images, count=len(paths), left_out=", ".join(words), paths=paths)


def find_labelled(detector: Predictor, images: Images, note: Callable[[str], None]) -> Labelled | None:
    """The split of a dataset that holds all of a folder's pictures; None if there is none, or it is another model's.

    Args:
        note: called with a line if there is such a dataset, but its ids cannot be used.
    """
    folder = Path(os.path.abspath(images.source))
    if not folder.is_dir():
        return None
    own = {os.path.realpath(path) for path in images}
    for root in (folder, *folder.parents[:_UP]):
        for dataset in _splits(root):
            records = _firsts(dataset)
            known = records.keys()
            if not own & known:
                continue
            name = f"{dataset.root} {dataset.split}"
            if not own <= known:
                note(f"{len(own - known)} of {len(own)} pictures are not in {name}: the results do not have its ids")
                continue
            try:
                return _labelled(detector, dataset, records)
            except UserError:
                note(f"the pictures are those of {name}, which has other classes: the results do not have its ids")
                return None
    return None


def _splits(root: Path) -> list[Dataset]:
    """The splits of a folder that can be read; none if it is no dataset."""
    found = []
    try:
        for split in find_splits(root):
            found.append(load_dataset(root, split))
    except UserError:
        pass
    return found


def _labelled(detector: Predictor, dataset: Dataset, records: dict[str, Record]) -> Labelled:
    order = match_classes(detector, dataset)
    ids = tuple(dataset.category_ids[int(label)] for label in order)
    return Labelled(f"{dataset.root} {dataset.split}", ids, records)


def _firsts(dataset: Dataset) -> dict[str, Record]:
    """The records by the real path of their picture; of those of one picture, as joined sets may have, the first."""
    found: dict[str, Record] = {}
    for record in dataset.records:
        found.setdefault(os.path.realpath(record.path), record)
    return found
