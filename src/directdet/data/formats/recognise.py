"""Which layout a folder has, by what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.formats.coco import coco_splits, roboflow_splits
from directdet.data.formats.coco_files import open_coco
from directdet.data.formats.folders import PICTURES, Found, subfolders
from directdet.data.formats.packed.parquet import open_parquet
from directdet.data.formats.packed.shards import open_shards
from directdet.data.formats.tools.cvat import open_cvat
from directdet.data.formats.tools.imagefolder import open_imagefolder
from directdet.data.formats.tools.label_studio import open_label_studio
from directdet.data.formats.tools.labelme import open_labelme
from directdet.data.formats.tools.open_images import open_open_images
from directdet.data.formats.voc import find_voc, open_voc
from directdet.data.formats.voc_flat import open_voc_flat
from directdet.data.formats.yolo import open_yolo

# What `format` in a dataset.toml may be: each opens a folder, or says that it is none of its kind.
LAYOUTS: dict[str, Callable[[Path], Found | None]] = {
    "coco": open_coco,
    "voc": lambda folder: open_voc(folder) or open_voc_flat(folder),
    "yolo": open_yolo,
    "labelme": open_labelme,
    "cvat": open_cvat,
    "label-studio": open_label_studio,
    "open-images": open_open_images,
    "imagefolder": open_imagefolder,
    "shards": open_shards,
    "parquet": open_parquet,
}


def recognise(folder: Path) -> Found:
    """The one reading of ``folder``, or of an annotation file that is given itself (COCO's json, YOLO's yaml).

    The layouts of COCO 2017, of Roboflow's COCO export and of VOC's development kit are taken as such, whatever else
    lies there.

    Raises:
        UserError: there is none, or more than one: what was found, and the dataset.toml to write.
    """
    if not coco_splits(folder) and not roboflow_splits(folder) and find_voc(folder) is None:
        found = [reading for open_layout in LAYOUTS.values() if (reading := open_layout(folder)) is not None]
    else:
        reading = LAYOUTS["coco"](folder) or LAYOUTS["voc"](folder)  # VOC's lists folders of many pictures
        found = [] if reading is None else [reading]
    if len(found) == 1:
        return found[0]
    if found:
        what = " and ".join(reading.what for reading in found)
        raise UserError(
            f"{folder}: can be read in {len(found)} ways: {what}; say which is meant, in "
            f"{folder / 'dataset.toml'}, with the line "
            + " or ".join(f'format = "{reading.layout}"' for reading in found)
        )
    raise UserError(
        f"{folder}: no known dataset layout here (found {_contents(folder)}); the layouts are in docs/data.md, and for "
        f"COCO annotations anywhere write {folder / 'dataset.toml'} with a line for each split: "
        'train = {images = "FOLDER_OF_PICTURES", annotations = "FILE.json"}'
    )


def _contents(folder: Path) -> str:
    """What lies in a folder and those in it, in words: "12 .jpg, 3 .csv"."""
    if not folder.is_dir():
        return f"a {folder.suffix or 'nameless'} file"
    counts: dict[str, int] = {}
    for place in (folder, *subfolders(folder)):
        for file in place.iterdir():
            if file.is_file() and not file.name.startswith("."):
                kind = "pictures" if file.suffix.lower() in PICTURES else file.suffix.lower() or "files without ending"
                counts[kind] = counts.get(kind, 0) + 1
    shown = sorted(counts.items(), key=lambda item: -item[1])[:6]
    return ", ".join(f"{count} {kind}" for kind, count in shown) or "nothing"
