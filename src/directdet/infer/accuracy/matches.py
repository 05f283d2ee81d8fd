"""Which detection found which object at IoU 0.5, by COCO's rules, and what lies next to the others.

The rules are those of COCOeval: in each picture and class, detections choose in the order of their scores, at most a
hundred of them; each takes the free object with the highest IoU; objects that do not count (crowd regions, difficult
ones) are taken last, and what takes them is ignored. A crowd region may be taken often, and its IoU is the share of the
detection that lies in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from directdet.data.masks import coco_mask
from directdet.data.records import Record
from directdet.infer.detections import Detections

IOU = 0.5
MOST = 100  # detections of a class in a picture that count


@dataclass(frozen=True, eq=False)
class Matches:
    """D detections and G objects of all pictures, picture by picture in the order of the image ids; in each picture,
    detections are in the order of their scores, highest first.

    Attributes:
        picture: int64 [D], the place of its picture among the records.
        box, score, label: float64 [D, 4] xyxy, float64 [D], int64 [D].
        target: int64 [D], the object that the detection took, or -1.
        same, same_object: float64 [D], int64 [D]: the highest IoU with an object of its class that counts, and which
            that is (-1: none).
        other, other_object: the same for objects of other classes.
        touched: float64 [D], the highest IoU with any object, those that do not count included.
        object_picture, object_box, object_label: as of the detections, [G].
        object_counts: bool [G], False for crowd regions and difficult objects.
        object_row: int64 [G], its place among its record's objects.
    """

    picture: np.ndarray
    box: np.ndarray
    score: np.ndarray
    label: np.ndarray
    target: np.ndarray
    same: np.ndarray
    same_object: np.ndarray
    other: np.ndarray
    other_object: np.ndarray
    touched: np.ndarray
    object_picture: np.ndarray
    object_box: np.ndarray
    object_label: np.ndarray
    object_counts: np.ndarray
    object_row: np.ndarray

    @property
    def ignored(self) -> np.ndarray:
        """Detections that took an object that does not count, bool [D]."""
        return self._took() & ~self._target_counts()

    @property
    def correct(self) -> np.ndarray:
        """True positives, bool [D]."""
        return self._took() & self._target_counts()

    def counts(self, classes: int) -> np.ndarray:
        """Objects of each class that count, int64 [C]."""
        return np.bincount(self.object_label[self.object_counts], minlength=classes)

    def of(self, pictures: np.ndarray) -> Matches:
        """What is in some of the pictures, bool [N] by their place among the records."""
        rows, objects = pictures[self.picture], pictures[self.object_picture]
        number = np.append(np.cumsum(objects) - 1, -1)  # of each object that stays; -1, for none, is the last
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        left = {name: value[objects if name.startswith("object_") else rows] for name, value in values.items()}
        return Matches(**left | {name: number[left[name]] for name in ("target", "same_object", "other_object")})

    def taken(self, rows: np.ndarray) -> np.ndarray:
        """Whether each object was found by one of the detections `rows` (bool [D]), bool [G].

        Detections choose in the order of their scores, so those above a score choose the same without the others.
        """
        found = np.zeros(len(self.object_label), bool)
        found[self.target[rows & self._took()]] = True
        return found

    def _took(self) -> np.ndarray:
        return self.target >= 0

    def _target_counts(self) -> np.ndarray:
        return np.append(self.object_counts, False)[self.target]  # -1, for none, is the last


def match(found: Iterable[tuple[int, Detections]], records: Sequence[Record]) -> Matches:
    """The matches of detections, given as (image id, detections with the dataset's labels).

    Args:
        found: at most one entry per image; an image without entry has no detections.
        records: the images that were processed; detections on others are left out.
    """
    by_image = dict(found)
    columns: list[dict[str, np.ndarray]] = [_nothing()]
    first = 0
    for place in sorted(range(len(records)), key=lambda number: records[number].image_id):
        record = records[place]
        columns.append(_match(by_image.get(record.image_id), record, place, first))
        first += len(record.boxes)
    return Matches(**{one.name: np.concatenate([column[one.name] for column in columns]) for one in fields(Matches)})


def _nothing() -> dict[str, np.ndarray]:
    """The columns without rows, which give their types."""
    whole = (
        "picture",
        "label",
        "target",
        "same_object",
        "other_object",
        "object_picture",
        "object_label",
        "object_row",
    )
    empty: dict[str, np.ndarray] = {one.name: np.zeros(0) for one in fields(Matches)}
    empty |= {name: np.zeros(0, np.int64) for name in whole}
    return empty | {"box": np.zeros((0, 4)), "object_box": np.zeros((0, 4)), "object_counts": np.zeros(0, bool)}


def _match(found: Detections | None, record: Record, place: int, first: int) -> dict[str, np.ndarray]:
    """The columns of one picture, whose objects are numbered from `first`."""
    objects = record.boxes.astype(np.float64)
    counts = ~(record.crowd | record.difficult)
    columns = {
        "object_picture": np.full(len(objects), place),
        "object_box": objects,
        "object_label": record.labels,
        "object_counts": counts,
        "object_row": np.arange(len(objects)),
    }
    if found is None:
        return {**_nothing(), **columns}
    rows = _considered(found)
    boxes, labels = found.boxes[rows].astype(np.float64), found.labels[rows]
    iou = box_iou(boxes, objects, record.crowd)
    equal = labels[:, None] == record.labels[None]
    target = np.full(len(rows), -1)
    for label in np.intersect1d(labels, record.labels):
        takers, goals = np.flatnonzero(labels == label), np.flatnonzero(record.labels == label)
        goals = goals[np.argsort(~counts[goals], kind="mergesort")]
        chosen = _choose(iou[np.ix_(takers, goals)].tolist(), counts[goals].tolist(), record.crowd[goals].tolist())
        target[takers] = np.append(goals, -1)[chosen]
    same, same_object = _nearest(iou, equal & counts)
    other, other_object = _nearest(iou, ~equal & counts)
    return {
        **columns,
        "picture": np.full(len(rows), place),
        "box": boxes,
        "score": found.scores[rows].astype(np.float64),
        "label": labels,
        "target": _numbered(target, first),
        "same": same,
        "same_object": _numbered(same_object, first),
        "other": other,
        "other_object": _numbered(other_object, first),
        "touched": iou.max(axis=1, initial=0.0),
    }


def _considered(found: Detections) -> np.ndarray:
    """The rows that COCO looks at, highest score first: at most MOST of a class."""
    rows = np.argsort(-found.scores, kind="mergesort")
    if len(rows) <= MOST:
        return rows
    kept = np.zeros(len(rows), bool)
    for label in np.unique(found.labels):
        kept[np.flatnonzero(found.labels[rows] == label)[:MOST]] = True
    return rows[kept]


def box_iou(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[K, 4], [G, 4] xyxy -> [K, G], by pycocotools, so that what lies at 0.5 is decided as there."""
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)))
    ours, theirs = (np.concatenate([value[:, :2], value[:, 2:] - value[:, :2]], axis=1) for value in (boxes, objects))
    return np.asarray(coco_mask().iou(ours, theirs, crowd.astype(np.uint8).tolist()))


def _choose(iou: list[list[float]], counts: list[bool], crowd: list[bool]) -> list[int]:
    """The column that each row takes, or -1; columns that do not count are last."""
    taken = [False] * len(counts)
    choices = []
    for row in iou:
        best, choice = IOU, -1
        for column, value in enumerate(row):
            if taken[column] and not crowd[column]:
                continue
            if choice >= 0 and counts[choice] and not counts[column]:
                break
            if value >= best:  # of equal ones the last, as in pycocotools
                best, choice = value, column
        if choice >= 0:
            taken[choice] = True
        choices.append(choice)
    return choices


def _nearest(iou: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest IoU of each row among the allowed columns and its column; 0 and -1 where none is above 0."""
    if not iou.size:
        return np.zeros(len(iou)), np.full(len(iou), -1)
    values = np.where(allowed, iou, 0.0)
    column = values.argmax(axis=1)
    best = values[np.arange(len(values)), column]
    return best, np.where(best > 0, column, -1)


def _numbered(columns: np.ndarray, first: int) -> np.ndarray:
    return np.where(columns >= 0, columns + first, -1)
