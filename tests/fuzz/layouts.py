"""Small sets in the layouts of annotation tools, as (name, file to damage, how it is damaged, the set's folder)."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2

from directdet.data.formats.write.convert import convert
from directdet.infer.preprocess import fixture_image

Kind = Literal["bytes", "json", "json lines"]
CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image id="0" name="a.png" subset="Train" width="40" height="20">
<box label="bolt" xtl="4" ytl="5" xbr="14" ybr="9" rotation="90.0"></box>
<polygon label="nut" points="20.0,2.0;30.0,2.0;30.0,12.0"></polygon>
<mask label="nut" rle="1, 2, 3" left="3" top="4" width="3" height="2"></mask></image></annotations>"""
OPEN_IMAGES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf
a,xclick,/m/01,1,0.1,0.35,0.25,0.65,0
"""
XML = """<annotation><filename>a.png</filename><size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>dog</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>18</ymax></bndbox></object>
</annotation>"""
YAML = "path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames:\n  0: bolt\n  1: nut\n"


def make_layouts(folder: Path) -> Iterator[tuple[str, Path, Kind, Path]]:
    """Write each set and yield it."""

    def write(name: str, content: str | list | dict, *pictures: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        for picture in pictures:
            (folder / picture).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / picture), fixture_image(20, 40))
        return path

    root = folder / "yolo"
    labels = write("yolo/labels/train/a.txt", "1 0.5 0.5 0.5 0.5\n0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n")
    yield "YOLO's data.yaml", write("yolo/data.yaml", YAML, "yolo/images/train/a.png"), "bytes", root
    yield "YOLO's labels", labels, "bytes", root

    shapes = [
        {"label": "bolt", "points": [[14, 13], [4, 5]], "shape_type": "rectangle", "group_id": None, "flags": {}},
        {"label": "nut", "points": [[20, 2], [30, 2], [30, 12]], "shape_type": "polygon", "group_id": 1, "flags": {}},
        {"label": "nut", "points": [[10, 10], [13, 14]], "shape_type": "circle", "group_id": 1, "flags": {}},
    ]
    content = {"version": "5.4", "shapes": shapes, "imagePath": "a.png", "imageHeight": 20, "imageWidth": 40}
    yield "labelme", write("labelme/a.json", content, "labelme/a.png"), "json", folder / "labelme"

    yield "CVAT", write("cvat/annotations.xml", CVAT, "cvat/images/Train/a.png"), "bytes", folder / "cvat"

    value = {"x": 10, "y": 25, "width": 25, "height": 40, "rotation": 30, "rectanglelabels": ["bolt"]}
    points = {"points": [[50, 10], [75, 10], [75, 60]], "polygonlabels": ["nut"]}
    size = {"original_width": 40, "original_height": 20}
    results = [
        {"type": "rectanglelabels", "value": value, **size},
        {"type": "polygonlabels", "value": points, **size},
    ]
    tasks = [{"id": 1, "data": {"image": "/data/upload/1/a.png"}, "annotations": [{"result": results}]}]
    path = write("studio/tasks.json", tasks, "studio/images/a.png")
    yield "Label Studio", path, "json", folder / "studio"

    write("open/class-descriptions-boxable.csv", "/m/01,Tortoise\n")
    path = write("open/train-annotations-bbox.csv", OPEN_IMAGES, "open/train/a.png")
    yield "Open Images", path, "bytes", folder / "open"

    line = {"file_name": "a.png", "objects": {"bbox": [[4, 5, 10, 8]], "categories": ["nut"]}}
    path = write("hub/train/metadata.jsonl", json.dumps(line) + "\n", "hub/train/a.png")
    yield "metadata.jsonl", path, "json lines", folder / "hub"

    yield "flat VOC", write("flat/a.xml", XML, "flat/a.png"), "bytes", folder / "flat"

    anno = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 5, 10, 8], "area": 80, "iscrowd": 0}]
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 20}
    content = {"images": [image], "annotations": anno, "categories": [{"id": 1, "name": "x"}]}
    path = write("any/labels.json", content, "any/data/a.png")
    yield "COCO of any name", path, "json", folder / "any"

    convert(folder / "any", "shards", folder / "shards")
    yield "a shard", folder / "shards" / "train-000000.tar", "bytes", folder / "shards"
    yield "shards.json", folder / "shards" / "shards.json", "json", folder / "shards"
    shutil.copytree(folder / "shards", folder / "unlisted")
    (folder / "unlisted" / "shards.json").unlink()
    yield "a shard without a list", folder / "unlisted" / "train-000000.tar", "bytes", folder / "unlisted"
    yield "classes.json", folder / "unlisted" / "classes.json", "json", folder / "unlisted"

    if importlib.util.find_spec("pyarrow") is not None:
        convert(folder / "any", "parquet", folder / "parquet")
        yield "Parquet", folder / "parquet" / "data" / "train-00000.parquet", "bytes", folder / "parquet"
