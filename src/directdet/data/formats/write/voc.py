"""Writing a folder of PASCAL VOC's kind."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from directdet.common.files import write_bytes_atomic, write_text_atomic
from directdet.data.records import Dataset, Record


def write_voc(
    root: Path, splits: Mapping[str, Dataset], names: Mapping[str, list[str]]
) -> tuple[dict[str, str], Counter[str]]:
    """Annotations, JPEGImages and ImageSets/Main. Boxes count from 1 and include their last pixel, with fractions."""
    lost: Counter[str] = Counter()
    used: set[str] = set()
    for split, dataset in splits.items():
        for record, name in zip(dataset.records, names[split], strict=True):
            tree = _picture(record, name, dataset.classes, lost)
            used |= {item.text or "" for item in tree.iterfind("object/name")}
            ElementTree.indent(tree)
            file = root / "Annotations" / f"{Path(name).stem}.xml"
            write_bytes_atomic(file, ElementTree.tostring(tree, encoding="utf-8") + b"\n")
        lines = "".join(f"{Path(name).stem}\n" for name in names[split])
        write_text_atomic(root / "ImageSets" / "Main" / f"{split}.txt", lines)
    first = next(iter(splits.values()))
    lost["classes without objects"] = len(set(first.classes) - used)
    lost["category ids, which become those of the sorted names"] = len(first.classes)
    return {split: "JPEGImages" for split in splits}, lost


def _picture(record: Record, name: str, classes: tuple[str, ...], lost: Counter[str]) -> ElementTree.Element:
    tree = ElementTree.Element("annotation")
    _add(tree, "filename", name)
    size = ElementTree.SubElement(tree, "size")
    for key, value in (("width", record.width), ("height", record.height), ("depth", record.pixels.channels)):
        _add(size, key, str(value))
    for index, box in enumerate(record.boxes.astype(np.float64).tolist()):
        if record.crowd[index]:
            lost["crowd regions, which are left out"] += 1
            continue
        lost["masks"] += record.segmentations[index] is not None
        lost["scores of objects, which count fully"] += bool(record.weights[index] != 1)
        item = ElementTree.SubElement(tree, "object")
        _add(item, "name", classes[int(record.labels[index])])
        _add(item, "difficult", str(int(record.difficult[index])))
        bounds = ElementTree.SubElement(item, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, *box[2:]), strict=True):
            _add(bounds, key, f"{value:.15g}")
    return tree


def _add(parent: ElementTree.Element, key: str, text: str) -> None:
    ElementTree.SubElement(parent, key).text = text
