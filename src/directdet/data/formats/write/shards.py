"""Writing shards: tar files of pictures, each followed by a json of its annotations; classes and a list beside them."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from directdet.common.files import write_json_atomic
from directdet.data.formats.packed.shard_list import LIST, Shard
from directdet.data.formats.packed.shards import CLASSES
from directdet.data.formats.write.coco import coco_objects
from directdet.data.image import read_bytes
from directdet.data.records import Dataset, Record

SHARD_MB = 256
_MB = 10**6


def write_shards(
    root: Path, splits: Mapping[str, Dataset], names: Mapping[str, list[str]], shard_mb: int = SHARD_MB
) -> tuple[dict[str, str], Counter[str]]:
    """train-000000.tar and so on, in the order of the records, each of about ``shard_mb`` million bytes.

    Ids of annotations that several objects of a split have, as those of joined sets may, are numbered anew.
    """
    lost: Counter[str] = Counter()
    first = next(iter(splits.values()))
    shards: list[Shard] = []
    for split, dataset in splits.items():
        ids = [number for record in dataset.records for number in record.annotation_ids]
        anew = len(set(ids)) < len(ids)
        lost["ids of annotations, which become 1, 2, ... as joined sets share some"] += len(ids) * anew
        shards += _write_split(root, split, dataset, _with_keys(names[split]), anew, shard_mb * _MB)
    categories = [{"id": number, "name": name} for number, name in zip(first.category_ids, first.classes, strict=True)]
    write_json_atomic(root / CLASSES, {"categories": categories})
    write_json_atomic(root / LIST, {"shards": [asdict(shard) for shard in shards]})
    return {}, lost


def _write_split(
    root: Path, split: str, dataset: Dataset, names: Sequence[tuple[str, str]], anew: bool, most: int
) -> list[Shard]:
    root.mkdir(parents=True, exist_ok=True)
    numbers = iter(range(1, 2**62)) if anew else None
    samples = (
        (record, key, suffix, read_bytes(record.path))
        for record, (key, suffix) in zip(dataset.records, names, strict=True)
    )
    sample = next(samples, None)
    shards: list[Shard] = []
    while sample is not None or not shards:  # a split without pictures is one empty shard
        file, count = root / f"{split}-{len(shards):06d}.tar", 0
        with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
            # A picture's json is far shorter than it: its bytes do not count.
            while sample is not None and (not tar.offset or tar.offset + len(sample[3]) <= most):
                record, key, suffix, picture = sample
                text = json.dumps(_annotations(record, dataset, numbers), ensure_ascii=False)
                for name, content in (
                    (key + suffix, picture),
                    (f"{key}.json", text.encode("utf-8", "surrogatepass")),
                ):
                    info = tarfile.TarInfo(name)  # of no user and no time: the same data are the same bytes
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                sample = next(samples, None)
                count += 1
        shards.append(Shard(file.name, count, file.stat().st_size))
    return shards


def _with_keys(names: Sequence[str]) -> list[tuple[str, str]]:
    """(name without a dot, ending) of each picture: what stands before the first dot is what a sample goes by."""
    taken: set[str] = set()
    found: list[tuple[str, str]] = []
    for name in names:
        path = Path(name)
        key = unique = path.stem.replace(".", "_")
        number = 1
        while unique.lower() in taken:
            number += 1
            unique = f"{key}_{number}"
        taken.add(unique.lower())
        found.append((unique, path.suffix))
    return found


def _annotations(record: Record, dataset: Dataset, numbers: Iterator[int] | None) -> dict[str, Any]:
    objects = coco_objects(record, dataset.category_ids)
    for entry in objects:
        del entry["image_id"]
        if numbers is not None:
            entry["id"] = next(numbers)
    size = {"width": record.width, "height": record.height}
    return {"image_id": record.image_id, **size, "annotations": objects}
