"""Seconds and memory that opening large annotations takes: first, again, in another reader, and in a loader's workers.

It writes made-up COCO annotations without pictures: of the size of train2017 (118,287 images, 802,867 polygons), or
boxes alone, as many as Objects365 has (2 million images, 30 million boxes); or YOLO's labels, one file for each of
100,000 pictures, which are few under many names. Every figure is of a process of its own.

    python scripts/annotations_size.py --work FOLDER                      # writes results/annotations_size.json
    python scripts/annotations_size.py --work FOLDER --before CHECKOUT    # and what another checkout takes, first
    python scripts/annotations_size.py --work FOLDER --boxes              # 30 million boxes, 4 GB of json
    python scripts/annotations_size.py --work FOLDER --yolo --before CHECKOUT
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

SHAPES = {"polygons": (118_287, 802_867), "boxes": (2_000_000, 30_000_000)}  # images, objects
SHAPES["yolo"] = (100_000, 700_000)
CLASSES = 80
STARTS = ("fork", "spawn")  # of worker processes
BLOCK = 10_000  # objects that are drawn and written at once
WIDTH, HEIGHT = 640, 480


def write_annotations(
    file: Path,
    images: int,
    objects: int,
    polygons: bool,
    sizes: np.ndarray | None = None,
    owners: np.ndarray | None = None,
) -> None:
    """A COCO file as COCO's own are: no spaces but after commas and colons, objects in any order, categories last.

    Args:
        sizes: width and height of image 1, 2, ..., int64 [images, 2]; None: all WIDTH x HEIGHT.
        owners: the index of the image of each object, int64 [objects]; None draws them. Only with polygons.
    """
    rng = np.random.default_rng(0)
    sizes = np.broadcast_to([WIDTH, HEIGHT], (images, 2)) if sizes is None else sizes
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as stream:
        stream.write('{"info": {"description": "made up"}, "licenses": [], "images": [')
        for start in range(0, images, BLOCK):
            block = sizes[start : start + BLOCK].tolist()
            lines = (
                f'{{"license": 3, "file_name": "{number:012}.jpg", "height": {height}, "width": {width}, '
                f'"id": {number}, "date_captured": "2013-11-14 11:18:45", "coco_url": "http://images.example/{number:012}.jpg"}}'
                for number, (width, height) in enumerate(block, start + 1)
            )
            stream.write(("," if start else "") + ",".join(lines))
        stream.write('], "annotations": [')
        bodies: list[str] = []
        for start in range(0, objects, BLOCK):
            count = min(BLOCK, objects - start)
            own = rng.integers(0, images, count) if owners is None else owners[start : start + count]
            if polygons or not start:
                bodies = list(_bodies(rng, sizes[own], polygons))  # boxes alone are few different ones: they are many
            pictures, ids = (own + 1).tolist(), (rng.permutation(count) + start + 1).tolist()
            entries = zip(bodies, pictures, ids, strict=False)
            lines = (f'{{"image_id": {picture},"id": {one},{body}}}' for body, picture, one in entries)
            stream.write(("," if start else "") + ",".join(lines))
        names = ", ".join(
            f'{{"supercategory": "thing", "id": {n}, "name": "class {n}"}}' for n in range(1, CLASSES + 1)
        )
        stream.write(f'], "categories": [{names}]}}')


def _bodies(rng: np.random.Generator, sizes: np.ndarray, polygons: bool) -> Iterator[str]:
    """What is said of objects besides their ids, each in a picture of its own of ``sizes``, [objects, 2]."""
    count = len(sizes)
    classes = rng.integers(1, CLASSES + 1, count)
    sides = np.round(np.exp(rng.uniform(np.log(8), np.log(sizes.min(axis=1, keepdims=True) / 1.2), (count, 2))), 2)
    corners = np.round(rng.random((count, 2)) * (sizes - sides), 2)
    lengths = rng.integers(10, 41, count) if polygons else np.zeros(count, int)
    angles = np.split(rng.random(lengths.sum()), np.cumsum(lengths)[:-1])
    for one in range(count):
        x, y, width, height = *corners[one].tolist(), *sides[one].tolist()
        mask = ""
        if polygons:
            turns = 2 * np.pi * np.sort(angles[one])
            points = [x + width / 2, y + height / 2] + np.stack([np.cos(turns), np.sin(turns)], 1) * sides[one] / 2
            mask = f'"segmentation": [[{", ".join([f"{value:.2f}" for value in points.ravel().tolist()])}]],'
        yield (
            f'{mask}"area": {width * height * 0.785:.4f},"iscrowd": 0,'
            f'"bbox": [{x:.2f},{y:.2f},{width:.2f},{height:.2f}],"category_id": {classes[one]}'
        )


def write_yolo(root: Path, images: int, objects: int) -> None:
    """A YOLO folder: boxes of 80 classes, and pictures that are ten thousand hard links to each of a few files."""
    rng = np.random.default_rng(0)
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    names = ", ".join(f"class {number}" for number in range(CLASSES))
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nnames: [{names}]\n", encoding="utf-8")
    classes = rng.integers(0, CLASSES, objects)
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.8), (objects, 2)))
    middles = sides / 2 + rng.random((objects, 2)) * (1 - sides)
    lines = [
        f"{number} {x:.6f} {y:.6f} {width:.6f} {height:.6f}"
        for number, (x, y), (width, height) in zip(classes, middles.tolist(), sides.tolist(), strict=True)
    ]
    owners = np.sort(rng.integers(0, images, objects))
    ends = np.searchsorted(owners, np.arange(images + 1))
    first = root / "images" / "train" / f"{0:06}.jpg"
    for number in range(images):
        picture = root / "images" / "train" / f"{number:06}.jpg"
        if number % BLOCK == 0:
            cv2.imwrite(str(picture), rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
            first = picture
        else:
            os.link(first, picture)
        own = lines[ends[number] : ends[number + 1]]
        (root / "labels" / "train" / f"{number:06}.txt").write_text("\n".join(own), encoding="utf-8")


def kilobytes(what: str) -> int:
    """A sum over this process's memory, of /proc/self/smaps_rollup."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith(what))


def opened(root: str) -> dict:
    """Seconds and peak memory of load_dataset, without those of starting Python and importing it."""
    from directdet.data.dataset import load_dataset

    return _measured(lambda: len(load_dataset(root, "train")))


def pycocotools(root: str) -> dict:
    """The same of pycocotools' reader of the same file."""
    from pycocotools.coco import COCO

    return _measured(lambda: len(COCO(str(Path(root) / "annotations" / "instances_train2017.json")).imgs))


def _measured(read) -> dict:
    started, used = time.perf_counter(), time.process_time()
    images = read()
    times = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
    return {**times, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "images": images}


def workers(root: str, start: str) -> dict:
    """The memory that a worker of a DataLoader has written to, in MB, as it reads every record of an epoch."""
    from torch.utils.data import DataLoader

    from directdet.data.dataset import load_dataset

    pictures = _Pictures(load_dataset(root, "train").records)
    order = np.random.default_rng(0).permutation(len(pictures)).tolist()
    loader = DataLoader(
        cast("Any", pictures),
        batch_size=64,
        sampler=order,
        num_workers=1,
        multiprocessing_context=start,
        collate_fn=list,
    )
    readings: list[int] = []
    objects = 0
    for batch in loader:
        for private, count in batch:
            objects += count
            if private:
                readings.append(private)
    return {
        "objects": objects,
        "private_mb_tenth": readings[len(readings) // 10] / 1024,
        "private_mb_last": readings[-1] / 1024,
    }


class _Pictures:
    """Reads records as a loader does, but for the pictures; every 500th also tells the worker's private memory."""

    def __init__(self, records) -> None:
        self.records = records
        self.read = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, int]:
        record = self.records[index]
        objects = len(record.boxes[~record.crowd]) + 0 * sum(len(mask or ()) for mask in record.segmentations)
        self.read += 1
        private = 0
        if self.read % 500 == 0:
            private = kilobytes("Private_Dirty")
        return private, objects


def in_process(task: str, *arguments: str, package: Path, cache: Path) -> dict:
    """A task of this script in a process of its own, with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(package / "src"), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, __file__, "--task", task, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(task, *arguments, "of", package, json.dumps(found), flush=True)
    return found


def main() -> None:
    """Write the file, unless it is there; measure; write the results."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--work", type=Path, help="folder for the annotations and the cache; kept")
    arguments.add_argument("--boxes", action="store_true", help="30 million boxes instead of 802,867 polygons")
    arguments.add_argument("--yolo", action="store_true", help="YOLO's labels of 100,000 pictures instead")
    arguments.add_argument("--before", type=Path, help="another checkout of the repository to measure as well")
    arguments.add_argument("--write-only", action="store_true", help="write the annotations and measure nothing")
    arguments.add_argument("--results", type=Path, metavar="DIR", help="folder for the figures  [default: results]")
    arguments.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.task:
        task, *values = given.task
        print(json.dumps({"opened": opened, "pycocotools": pycocotools, "workers": workers}[task](*values)))
        return
    if given.work is None:
        arguments.error("--work is missing")
    from measure import ROOT, write_results

    kind = "yolo" if given.yolo else "boxes" if given.boxes else "polygons"
    images, objects = SHAPES[kind]
    root = given.work.resolve() / kind
    file = root / ("data.yaml" if given.yolo else "annotations/instances_train2017.json")
    if not file.is_file() and given.yolo:
        write_yolo(root, images, objects)
    elif not file.is_file():
        write_annotations(file, images, objects, not given.boxes)
    print(f"{file}: {file.stat().st_size / 1e6:.0f} MB", flush=True)
    if given.write_only:
        return
    cache, own = given.work.resolve() / "cache", ROOT
    rows: dict[str, dict] = {}
    settings: dict[str, object] = {"images": images, "objects": objects, "json_mb": file.stat().st_size / 1e6}
    name_of_results = "annotations_size" + ("" if kind == "polygons" else f"_{kind}")

    def measure(name: str, package: Path, *task: str) -> None:
        rows[name] = in_process(task[0], str(root), *task[1:], package=package, cache=cache)
        settings["cache_mb"] = sum(one.stat().st_size for one in cache.rglob("*.bin")) / 1e6
        write_results(name_of_results, settings, rows, given.results)

    shutil.rmtree(cache, ignore_errors=True)
    if given.before:
        measure("before", given.before, "opened")
    if kind == "polygons":
        measure("pycocotools", own, "pycocotools")
    measure("first", own, "opened")
    if given.yolo:  # there is no cache of it
        measure("worker, spawn", own, "workers", "spawn")
        if given.before:
            measure("worker, before", given.before, "workers", "spawn")
        return
    measure("later", own, "opened")
    for start in STARTS:
        measure(f"worker, {start}", own, "workers", start)
    if given.before:
        measure("worker, before", given.before, "workers", "fork")


if __name__ == "__main__":
    main()
