"""Reading PASCAL VOC folders (VOCdevkit/VOC2007 and folders with the same layout)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from directdet.common.errors import UserError
from directdet.data.image import read_image
from directdet.data.picture_size import check_pixels
from directdet.data.records import AnnotatedObject, Dataset, Problem, clip_box, is_number, make_record, path_inside

MOST = 10**9  # pixels of an edge; no picture is so long

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def find_voc(root: Path) -> Path | None:
    """The folder that holds ImageSets/Main and Annotations: root itself, root/VOC* or root/VOCdevkit/VOC*."""
    if _is_voc(root):
        return root
    for parent in (root, root / "VOCdevkit"):
        found = sorted(folder for folder in parent.glob("VOC*") if _is_voc(folder))
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise UserError(
                f"{parent}: contains several VOC folders ({names}); give one of them, e.g. {found[0]}, or a "
                "dataset.toml that lists what to use of each"
            )
        if found:
            return found[0]
    return None


def voc_splits(folder: Path) -> dict[str, list[str]]:
    """Image names of each split.

    train is trainval.txt (or train.txt), val is test.txt (or val.txt). Names in val are removed from train: without a
    test.txt, trainval.txt contains the val images too.
    """
    splits: dict[str, list[str]] = {}
    for split, lists in (("train", ("trainval", "train")), ("val", ("test", "val"))):
        files = [_list_file(folder, name) for name in lists]
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            splits[split] = _read_names(file)
    if len(splits) == 2:
        held_out = set(splits["val"])
        splits["train"] = [name for name in splits["train"] if name not in held_out]
    return splits


def read_voc(root: Path, split: str, folder: Path) -> Dataset:
    """Read one split. VOC boxes are 1-based and inclusive; here they become 0-based (xmin-1, ymin-1, xmax, ymax).

    The classes are VOC's 20 if all names are among them, else the names found in all splits, sorted; ids are 1..C.

    Raises:
        UserError: a missing or invalid XML file; the message names it and the object.
    """
    splits = voc_splits(folder)
    return _read(root, split, "voc", {key: [(folder, name) for name in names] for key, names in splits.items()})


def read_voc_lists(root: Path, split: str, lists: dict[str, list[Path]]) -> Dataset:
    """Read one split of those that image lists define, each as FOLDER/LIST; lists of two years make VOC 07+12.

    Raises:
        UserError: as for read_voc(); also a missing list, or one image in two lists of the split.
    """
    images = {
        key: [(path.parent, name) for path in paths for name in _read_names(_list_file(path.parent, path.name))]
        for key, paths in lists.items()
    }
    seen: set[tuple[Path, str]] = set()
    for folder, name in images[split]:
        if (folder, name) in seen:
            raise UserError(f"{folder}: image {name!r} is in two lists of {split!r}; give lists without common images")
        seen.add((folder, name))
    return _read(root, split, "toml", images)


def _read(root: Path, split: str, layout: str, splits: dict[str, list[tuple[Path, str]]]) -> Dataset:
    """One split; ``splits`` gives the images of all of them as (VOC folder, image name)."""
    roots = {image: _parse(*image) for images in splits.values() for image in images}
    found = {_text(_xml(*image), item, "name") for image, tree in roots.items() for item in tree.findall("object")}
    classes = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
    reader = _ObjectReader({name: label for label, name in enumerate(classes)})
    records = []
    for image_id, (folder, name) in zip(_image_ids([name for _, name in splits[split]]), splits[split], strict=True):
        path, tree = _image_path(folder, name), roots[folder, name]
        file = _xml(folder, name)
        width, height = _image_size(file, tree, path)
        objects = []
        for index, item in enumerate(tree.findall("object")):
            # Unique in the split and the same on every read: evaluation needs ids, and VOC has none.
            annotation_id = image_id * 1000 + index + 1
            entry = reader.read(file, index, annotation_id, item, (width, height))
            if entry is not None:
                objects.append(entry)
        records.append(make_record(image_id, path, width, height, objects))
    category_ids = tuple(range(1, len(classes) + 1))
    return Dataset(root, split, layout, classes, category_ids, tuple(records), tuple(reader.problems))


class _ObjectReader:
    """Reads objects of all images, and collects the problems that do not stop it."""

    def __init__(self, labels: dict[str, int]) -> None:
        self.labels = labels
        self.problems: list[Problem] = []

    def read(
        self, file: Path, index: int, annotation_id: int, item: ElementTree.Element, size: tuple[int, int]
    ) -> AnnotatedObject | None:
        """One object of an image of ``size`` (width, height), or None if it is dropped."""
        where = f"{file}: object {index + 1}"
        bounds = item.find("bndbox")
        if bounds is None:
            raise UserError(f"{where}: bndbox is missing; add it or remove the object")
        xmin, ymin, xmax, ymax = (_number(where, bounds, key) for key in ("xmin", "ymin", "xmax", "ymax"))
        box, problem = clip_box((xmin - 1, ymin - 1, xmax, ymax), *size, str(file), annotation_id)
        if problem is not None:
            self.problems.append(problem)
        if box is None:
            return None
        label = self.labels[_text(file, item, "name")]
        difficult = (item.findtext("difficult") or "0").strip() == "1"
        return AnnotatedObject(annotation_id, label, box, (box[2] - box[0]) * (box[3] - box[1]), difficult=difficult)


def _is_voc(folder: Path) -> bool:
    return (folder / "ImageSets" / "Main").is_dir() and (folder / "Annotations").is_dir()


def _list_file(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def _read_names(file: Path) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: image list cannot be read: {error}") from None
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{file}: image {name!r} is listed twice; list every image once")
        seen.add(name)
    return names


def _image_ids(names: list[str]) -> list[int]:
    """VOC 2007 names are numbers and serve as ids; other names are numbered in the list's order."""
    if all(name.isascii() and name.isdigit() for name in names) and len({int(name) for name in names}) == len(names):
        return [int(name) for name in names]
    return list(range(1, len(names) + 1))


def _xml(folder: Path, name: str) -> Path:
    return path_inside(folder / "Annotations", f"{name}.xml", f"{folder / 'ImageSets' / 'Main'}: image list")


def _parse(folder: Path, name: str) -> ElementTree.Element:
    file = _xml(folder, name)
    try:
        return ElementTree.fromstring(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: annotation file not found, but an image list contains {name!r}") from None
    except OSError as error:
        raise UserError(f"{file}: annotation file cannot be read: {error.strerror or error}") from None
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: not valid XML: {error}") from None


def _image_path(folder: Path, name: str) -> Path:
    source = f"{folder / 'ImageSets' / 'Main'}: image list"
    candidates = [path_inside(folder / "JPEGImages", f"{name}{end}", source) for end in (".jpg", ".jpeg", ".png")]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _image_size(file: Path, tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """(width, height) from the XML file; some tools write none, or zeros: then from the image itself."""
    size = tree.find("size")
    if size is not None:
        values = [(size.findtext(key) or "0").strip() for key in ("width", "height")]
        if not all(value.isascii() and value.isdigit() for value in values):
            raise UserError(f"{file}: size: {values[0]!r} x {values[1]!r} are not integers; correct them")
        width, height = (int(value) if len(value) < 10 else MOST for value in values)
        if width and height:
            check_pixels(height, width, file)
            return width, height
    height, width = read_image(image).shape[:2]
    return width, height


def _text(file: Path, item: ElementTree.Element, key: str) -> str:
    text = (item.findtext(key) or "").strip()
    if not text:
        raise UserError(f"{file}: an object has no {key}; add it or remove the object")
    return text


def _number(where: str, bounds: ElementTree.Element, key: str) -> float:
    text = (bounds.findtext(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not is_number(value):
        raise UserError(f"{where}: bndbox: {key} {text!r} is not a finite number; correct it")
    return value
