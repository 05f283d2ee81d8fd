"""Writing a whole dataset in another format, into a folder that is there entirely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from directdet.common.errors import UsageProblem, UserError
from directdet.common.files import require_writable, write_json_atomic, write_text_atomic
from directdet.data.dataset import Dataset, check_same_classes, find_splits, load_dataset
from directdet.data.formats.write.coco import write_coco
from directdet.data.formats.write.parquet import write_parquet
from directdet.data.formats.write.shards import SHARD_MB, write_shards
from directdet.data.formats.write.tiles import Cutting, Piece, cut_dataset, write_piece_files
from directdet.data.formats.write.voc import write_voc
from directdet.data.formats.write.yolo import write_yolo
from directdet.data.image import is_picture_file, read_bytes
from directdet.data.inside.paths import split_path
from directdet.data.pixels.format import RGB
from directdet.data.records import Record

# Each writes the annotations of all splits below a folder, and returns where each picture goes, by split, and counts
# of what the format cannot hold, in words. Shards and Parquet files hold the pictures, which go nowhere else.
Writer = Callable[[Path, Mapping[str, Dataset], Mapping[str, list[str]]], tuple[dict[str, str], Counter[str]]]
WRITERS: dict[str, Writer] = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
# These write several files of about so many millions of bytes.
PACKERS = {"shards": write_shards, "parquet": write_parquet}
MARKER = "directdet-convert.json"  # in folders that were written here, which may be written anew


def convert(
    root: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    link: bool = False,
    cutting: Cutting | None = None,
    shard_mb: int = SHARD_MB,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Write the dataset at ``root`` to the folder ``out``, and return what the format cannot hold, a line each.

    Args:
        root: a dataset as `load_dataset` reads it.
        to: one of `WRITERS` or `PACKERS`.
        out: a new or empty folder, or one that was written by this function before.
        link: make symbolic links to the pictures instead of copies; not with shards or Parquet, which hold them.
        cutting: cut large pictures into tiles; for "coco" alone, which can say what an edge leaves of an object.
        shard_mb: of a shard or Parquet file, in millions of bytes.
        say: called with a line about the tiles of each split.

    Raises:
        UsageProblem: tiles of another format, or links to them.
        UserError: the data cannot be read, the splits' classes differ, or ``out`` is not to be overwritten.
    """
    if cutting is not None and (link or to != "coco"):
        raise UsageProblem("tiles: " + ("are new pictures; leave out link" if link else "are written for coco alone"))
    if link and to in PACKERS:
        raise UsageProblem(f"--link: {to} files hold the pictures themselves; leave it out")
    target = Path(out)
    require_writable(target, folder=True)
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise UserError(f"{target}: is not empty and was not written by convert; give another folder")
    if _overlap(Path(root), target):
        raise UserError(f"{target}: holds the data at {root}; give another folder")
    splits = {split: load_dataset(root, split) for split in find_splits(root)}
    first = next(iter(splits.values()))
    for dataset in splits.values():
        check_same_classes(first, dataset)
    for folder in {record.path.parent for dataset in splits.values() for record in dataset.records}:
        if _overlap(folder, target):  # a set that the data at root names by an absolute path
            raise UserError(f"{target}: holds pictures of the data at {root}; give another folder")
    pieces: dict[str, tuple[Piece, ...]] = {}
    if cutting is not None:
        for split, dataset in splits.items():
            splits[split], pieces[split] = cut_dataset(dataset, cutting)
            say(_describe(dataset, splits[split]))
    target.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}.", suffix=".tmp", dir=target.parent))
    try:
        # VOC has one folder for the pictures of all splits, the others one for each.
        together = [splits] if to == "voc" else [{split: dataset} for split, dataset in splits.items()]
        names = {split: found for part in together for split, found in _names(part).items()}
        writer = partial(PACKERS[to], shard_mb=shard_mb) if to in PACKERS else WRITERS[to]
        folders, lost = writer(place, splits, names)
        for split, folder in folders.items():
            (place / folder).mkdir(parents=True, exist_ok=True)
            paths = [place / folder / name for name in names[split]]
            if cutting is not None:
                write_piece_files(pieces[split], paths)
                continue
            for record, path in zip(splits[split].records, paths, strict=True):
                _put(record, path, link)
        if first.pixels != RGB:
            write_text_atomic(place / "dataset.toml", "\n".join((f'format = "{to}"', *first.pixels.toml_lines(), "")))
        tiles = {} if cutting is None else {"tiles": asdict(cutting)}
        write_json_atomic(place / MARKER, {"from": str(root), "to": to, **tiles})
        os.chmod(place, 0o755)
        _swap(place, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return [f"{count} {what}" for what, count in lost.items() if count]


def _describe(before: Dataset, after: Dataset) -> str:
    aside = sum(int((record.weights == 0).sum()) for record in after.records)
    return (
        f"{after.split}: {len(before)} pictures in {len(after)} tiles; {aside} times an object is neither object nor "
        "background, since an edge leaves too little of it"
    )


def _overlap(root: Path, target: Path) -> bool:
    source, place = root.resolve(), target.resolve()
    if source.is_file():
        source = source.parent
    return source == place or place in source.parents


def _names(splits: Mapping[str, Dataset]) -> dict[str, list[str]]:
    """A file name for each picture of each split; no two have the same name but for the ending, whatever the case."""
    counts = Counter(record.path.stem.lower() for dataset in splits.values() for record in dataset.records)
    taken: set[str] = set()
    found: dict[str, list[str]] = {}
    for split, dataset in splits.items():
        found[split] = []
        for record in dataset.records:
            stem = record.path.stem
            if counts[stem.lower()] > 1:
                stem = f"{split}_{stem}"
            unique, number = stem, 1
            while unique.lower() in taken:
                number += 1
                unique = f"{stem}_{number}"
            taken.add(unique.lower())
            found[split].append(unique + record.path.suffix)
    return found


def _put(record: Record, place: Path, link: bool) -> None:
    if not is_picture_file(record.path):
        raise UserError(f"{record.path}: image file not found; check-data lists all that are missing")
    if split_path(record.path) is not None:
        if link:
            raise UserError(f"{record.path}: lies inside a file, to which there are no links; leave out --link")
        place.write_bytes(read_bytes(record.path))
    elif link:
        place.symlink_to(record.path.resolve())
    else:
        shutil.copyfile(record.path, place)


def _swap(place: Path, target: Path) -> None:
    """Put the finished folder where an older one may be, which is removed only then."""
    older = None
    if target.is_dir():
        older = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}.", suffix=".old", dir=target.parent))
        os.replace(target, older)
    os.replace(place, target)
    if older is not None:
        shutil.rmtree(older)
