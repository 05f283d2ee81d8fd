"""AP of a row on draws of the val pictures, which its claims are judged by, kept in its folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from directdet.common.files import write_json_atomic
from directdet.common.json_files import read_json
from directdet.data.records import Dataset
from directdet.infer.accuracy.ap_difference import Found, drawn_pictures, weighted_ap
from directdet.infer.accuracy.voc_ap import voc_precision

DRAWS_FILE = "draws.json"  # in a row's folder
FIX = "remove it, and run the same command again"


@dataclass(frozen=True)
class _DrawsFile:
    """What is read of DRAWS_FILE: AP on all pictures, then on each draw; and how many pictures there are."""

    ap: list[float]
    pictures: int


def write_draws(folder: Path, found: Found, dataset: Dataset, metric: str) -> None:
    """Write FOLDER/draws.json for "coco", the box AP, or "voc", the mAP by the 11-point rule.

    Args:
        found: (image id, detections with the dataset's labels) of all its pictures.
    """
    count = len(dataset.records)
    weights = np.concatenate([np.ones((1, count)), drawn_pictures(count)])
    if metric == "coco":
        values = weighted_ap(found, dataset, dataset.records, "box", weights).tolist()
    else:
        values = [_voc(found, dataset, row) for row in weights.astype(int)]
    write_json_atomic(folder / DRAWS_FILE, {"ap": values, "pictures": count}, indent=None)


def _voc(found: Found, dataset: Dataset, times: np.ndarray) -> float:
    """VOC's mAP with each picture as often as `times` [N] says."""
    drawn = [record for record, count in zip(dataset.records, times, strict=True) for _ in range(count)]
    return voc_precision(found, drawn, len(dataset.classes)).means()["mAP_11point"]


def read_draws(folder: Path) -> tuple[np.ndarray, int] | None:
    """(AP [1 + DRAWS], pictures); None without the file.

    Raises:
        UserError: it is damaged.
    """
    path = folder / DRAWS_FILE
    if not path.is_file():
        return None
    found = read_json(path, _DrawsFile, FIX)[1]
    return np.array(found.ap), found.pictures
