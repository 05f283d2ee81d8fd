"""The XML files of PASCAL VOC: how one is opened, its objects, and the size that it gives its picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.formats.reading import OBJECT, Faults, read_file
from directdet.data.formats.values import finite, whole
from directdet.data.image import read_size
from directdet.data.picture_size import check_pixels
from directdet.data.records import AnnotatedObject, Record, make_record

# What files that declare an encoding really hold: the set of characters that Windows adds to it.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}


def parse_xml(file: Path) -> ElementTree.Element:
    """The root element of an XML file in any encoding that it declares; UserError if it cannot be read."""
    content = read_file(file, "annotation file")
    try:
        try:
            return ElementTree.fromstring(content)
        except (ValueError, LookupError):  # expat knows no encodings of several bytes but UTF-8 and UTF-16
            return ElementTree.fromstring(_decode_declared(file, content))
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: not valid XML: {error}") from None


def _decode_declared(file: Path, content: bytes) -> str:
    """The text of an XML file in the encoding that its first line declares, such as gb2312 or shift_jis."""
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", content)
    name = declared[1].decode("ascii", "replace") if declared else "utf-8"
    wide = _SUPERSETS.get(name.lower().replace("-", "_"), name)
    try:
        return content.decode(wide)
    except (LookupError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not readable in its encoding {name}: {error}; save it as UTF-8") from None


def object_names(trees: Iterable[ElementTree.Element]) -> set[str]:
    """What the objects of these files are called."""
    return {name for tree in trees for item in tree.findall("object") if (name := element_text(item, "name"))}


class ObjectReader:
    """Reads the objects of a split image by image, and collects the problems that it deals with."""

    def __init__(self, labels: dict[str, int], faults: Faults) -> None:
        self.labels = labels
        self.faults = faults
        self.count = 0  # objects so far; their ids, which evaluation needs and VOC has not

    def record(self, image_id: int, path: Path, file: Path, tree: ElementTree.Element) -> Record:
        """The image ``path`` with the objects of its XML file; UserError if the image or its size cannot be used."""
        size = image_size(file, tree, path)
        self.faults.picture = path
        objects: list[AnnotatedObject] = []
        for index, item in enumerate(tree.findall("object")):
            self.count += 1
            try:
                entry = self._read(file, index, self.count, item, size)
            except UserError as error:
                self.faults.add(OBJECT, error)
                continue
            if entry is not None:
                objects.append(entry)
        return make_record(image_id, path, *size, objects)

    def _read(
        self, file: Path, index: int, annotation_id: int, item: ElementTree.Element, size: tuple[int, int]
    ) -> AnnotatedObject | None:
        """One object of an image of ``size`` (width, height), or None if it is dropped; UserError if it is broken."""
        where = f"{file}: object {index + 1}"
        name = element_text(item, "name")
        if not name:
            raise UserError(f"{where}: name is missing; add it or remove the object")
        bounds = item.find("bndbox")
        if bounds is None:
            raise UserError(f"{where}: bndbox is missing; add it or remove the object")
        xmin, ymin, xmax, ymax = (_number(where, bounds, key) for key in ("xmin", "ymin", "xmax", "ymax"))
        box = self.faults.clip((xmin - 1, ymin - 1, xmax, ymax), size, str(file), annotation_id)
        if box is None:
            return None
        difficult = element_text(item, "difficult").lower() in ("1", "1.0", "true")
        area = (box[2] - box[0]) * (box[3] - box[1])
        return AnnotatedObject(annotation_id, self.labels[name], box, area, difficult=difficult)


def image_size(file: Path, tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """(width, height) from the XML file; some tools write none, or zeros: then from the image itself."""
    size = tree.find("size")
    if size is not None:
        texts = [element_text(size, key) or "0" for key in ("width", "height")]
        try:
            values = [whole(float(text)) for text in texts]
        except (ValueError, OverflowError):
            values = [None, None]
        width, height = values
        if width is None or height is None or min(width, height) < 0:
            raise UserError(f"{file}: size: {texts[0]!r} x {texts[1]!r} are not integers; correct them")
        if width and height:
            check_pixels(height, width, file)
            return width, height
    return read_size(image)


def element_text(item: ElementTree.Element, key: str) -> str:
    """The text of the element ``key`` in ``item``, without spaces around it; empty if there is none."""
    return (item.findtext(key) or "").strip()


def _number(where: str, bounds: ElementTree.Element, key: str) -> float:
    text = element_text(bounds, key)
    value = finite(text)
    if value is None:
        raise UserError(f"{where}: bndbox: {key} {text!r} is not a finite number; correct it")
    return value
