"""Writing Parquet files with pictures and annotations, as Hugging Face's datasets has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from directdet.data.formats.write.coco import coco_objects
from directdet.data.image import read_bytes
from directdet.data.inside.rows import arrow
from directdet.data.records import Dataset, Record

ROWS = 8  # of a row group: a picture is read with its group
_MB = 10**6
_VALUES = {"id": "int64", "category": "int64", "area": "float64", "iscrowd": "int8", "difficult": "int8"}


def write_parquet(
    root: Path, splits: Mapping[str, Dataset], names: Mapping[str, list[str]], shard_mb: int
) -> tuple[dict[str, str], Counter[str]]:
    """data/train-00000.parquet and so on, in the order of the records, each of about ``shard_mb`` million bytes.

    Classes become 0, 1, ..., named in the schema. Polygons are kept, run lengths are not.

    Raises:
        MissingLibraryError: pyarrow is not installed.
    """
    schema = _schema(next(iter(splits.values())).classes)
    lost: Counter[str] = Counter()
    (root / "data").mkdir(parents=True)
    for split, dataset in splits.items():
        ids = [number for record in dataset.records for number in record.annotation_ids]
        anew = len(set(ids)) < len(ids)
        lost["ids of annotations, which become 1, 2, ... as joined sets share some"] += len(ids) * anew
        lost["category ids, which become 0, 1, ..."] = sum(n != label for label, n in enumerate(dataset.category_ids))
        numbers = iter(range(1, 2**62)) if anew else None
        rows = (_row(record, name, numbers, lost) for record, name in zip(dataset.records, names[split], strict=True))
        _write_split(root / "data", split, rows, schema, shard_mb * _MB)
    return {}, lost


def _write_split(folder: Path, split: str, rows: Iterator[dict[str, Any]], schema: Any, most: int) -> None:
    table, parquet = arrow("pyarrow").Table, arrow("pyarrow.parquet")
    row, files = next(rows, None), 0
    while row is not None or not files:  # a split without pictures is one empty file
        size = 0
        # Pictures are compressed already, and no two are the same.
        with parquet.ParquetWriter(
            folder / f"{split}-{files:05d}.parquet", schema, compression="NONE", use_dictionary=False
        ) as writer:
            group: list[dict[str, Any]] = []
            while row is not None and (not size or size + len(row["image"]["bytes"]) <= most):
                size += len(row["image"]["bytes"])
                group.append(row)
                row = next(rows, None)
                if len(group) == ROWS:
                    writer.write_table(table.from_pylist(group, schema))
                    group = []
            if group:
                writer.write_table(table.from_pylist(group, schema))
        files += 1


def _row(record: Record, name: str, numbers: Iterator[int] | None, lost: Counter[str]) -> dict[str, Any]:
    objects = coco_objects(record, tuple(range(int(record.labels.max(initial=0)) + 1)))
    for entry in objects:
        entry["category"] = entry["category_id"]
        entry["id"] = entry["id"] if numbers is None else next(numbers)
        entry.setdefault("difficult", 0)
        entry.setdefault("score", 1.0)
        if isinstance(entry["segmentation"], dict):
            lost["masks of run lengths: their boxes are kept"] += 1
            entry["segmentation"] = []
    fields = (*_VALUES, "bbox", "score", "segmentation")
    return {
        "image": {"bytes": read_bytes(record.path), "path": name},
        "image_id": record.image_id,
        "width": record.width,
        "height": record.height,
        "objects": {field: [entry[field] for entry in objects] for field in fields},
    }


def _schema(classes: Sequence[str]) -> Any:
    """The columns, with what Hugging Face's datasets wants to know of them."""
    pa = arrow("pyarrow")
    numbers = {name: pa.list_(getattr(pa, kind)()) for name, kind in _VALUES.items()}
    numbers |= {"bbox": pa.list_(pa.list_(pa.float64(), 4)), "score": pa.list_(pa.float32())}
    numbers["segmentation"] = pa.list_(pa.list_(pa.list_(pa.float64())))
    columns = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        **{name: pa.int64() for name in ("image_id", "width", "height")},
        "objects": pa.struct(numbers),
    }

    def value(kind: str) -> dict[str, str]:
        return {"dtype": kind, "_type": "Value"}

    def listed(inner: Any, length: int = -1) -> dict[str, Any]:
        return {"feature": inner, "length": length, "_type": "Sequence"}

    objects = {name: listed(value(kind)) for name, kind in _VALUES.items()}
    objects["category"] = listed({"names": list(classes), "_type": "ClassLabel"})
    objects |= {"bbox": listed(listed(value("float64"), 4)), "score": listed(value("float32"))}
    objects["segmentation"] = listed(listed(listed(value("float64"))))
    features = {
        "image": {"_type": "Image"},
        **{name: value("int64") for name in ("image_id", "width", "height")},
        "objects": objects,
    }
    return pa.schema(columns).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
