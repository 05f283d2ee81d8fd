"""Seconds and memory that scoring takes: COCO's AP by hotcoco and by pycocotools, and what a report adds.

5000 pictures are made up, without pixels: about seven objects on each, with polygons, some of them crowd regions, and
36 detections that are objects moved a little, doubled or of another class, or nothing, with masks of 28x28 cells. Every
row is of a process of its own, on one core; seconds are of the processor, medians of the rounds in which all rows take
turns. Memory is what scoring adds to that of objects and detections at most.

    taskset -c 0 python scripts/accuracy_speed.py          # writes results/accuracy_speed.json
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from measure import in_process, parser, write_results

from directdet.data.records import Dataset, Record
from directdet.infer.accuracy import coco_ap
from directdet.infer.accuracy.analysis import analyse
from directdet.infer.accuracy.ap_difference import compare
from directdet.infer.accuracy.coco_ap import score
from directdet.infer.detections import Detections

PICTURES, DETECTIONS, OBJECTS, CLASSES = 5000, 36, 7, 80
WIDTH, HEIGHT, CELLS = 640, 480, 28
Found = list[tuple[int, Detections]]


def made(pictures: int = PICTURES) -> tuple[Dataset, Found]:
    """The same pictures and detections every time."""
    rng = np.random.default_rng(0)
    cells = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    radius = np.hypot(cells[:, None], cells[None])
    records, found = [], []
    for number in range(1, pictures + 1):
        count = 1 + rng.poisson(OBJECTS - 1)
        boxes, labels = _boxes(rng, count), rng.integers(0, CLASSES, count)
        shapes = tuple(_ellipse(box, rng) for box in boxes)
        records.append(_record(number, boxes, labels, shapes, rng.random(count) < 0.01))
        chosen, nothing = rng.integers(0, count, DETECTIONS), rng.random(DETECTIONS) < 0.3
        sizes = np.tile(boxes[chosen, 2:] - boxes[chosen, :2], 2)
        moved = boxes[chosen] + rng.normal(0, 0.1, sizes.shape) * sizes
        moved[nothing] = _boxes(rng, int(nothing.sum()))
        moved = np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        other = nothing | (rng.random(DETECTIONS) < 0.1)
        named = np.where(other, rng.integers(0, CLASSES, DETECTIONS), labels[chosen])
        masks = np.clip(0.5 + 2 * (rng.normal(1.0, 0.1, (DETECTIONS, 1, 1)) - radius), 0, 1)
        scores = np.sort(rng.random(DETECTIONS).round(3))[::-1]  # some are equal
        found.append((number, Detections(moved, scores, named, masks, (HEIGHT, WIDTH))))
    names = tuple(f"class {number}" for number in range(CLASSES))
    return Dataset(Path("made"), "val", "coco", names, tuple(range(1, CLASSES + 1)), tuple(records)), found


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Float32 [count, 4] xyxy in the picture, of all sizes."""
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    corners = rng.random((count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corners, corners + sides], 1).astype(np.float32)


def _ellipse(box: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A polygon of 10 to 40 points in a box."""
    turns = 2 * np.pi * np.sort(rng.random(rng.integers(10, 41)))
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return ((middle + np.stack([np.cos(turns), np.sin(turns)], 1) * half).ravel().round(2),)


def _record(number: int, boxes: np.ndarray, labels: np.ndarray, shapes: tuple, crowd: np.ndarray) -> Record:
    count = len(boxes)
    return Record(
        image_id=number,
        path=Path(f"{number:06}.jpg"),
        width=WIDTH,
        height=HEIGHT,
        boxes=boxes,
        labels=labels,
        crowd=crowd,
        difficult=np.zeros(count, bool),
        segmentations=shapes,
        annotation_ids=tuple(range(count)),
    )


def _ap(kind: Literal["bbox", "segm"], library: str) -> dict[str, Any]:
    """AP of boxes or masks by a library; how masks become run lengths is not measured."""
    dataset, found = made()
    if kind == "bbox":
        found = [(image, one.without_masks()) for image, one in found]
    results = [entry for image, one in found for entry in one.to_coco(image, dataset.category_ids)]
    if library == "pycocotools":
        setattr(coco_ap, "hotcoco", None)  # noqa: B010
    scores, figures = _measured(lambda: score(results, dataset, dataset.records, kind))
    return {**figures, "numbers": [*scores.twelve, *scores.per_class]}


def _run_lengths() -> dict[str, float]:
    """The detections as COCO's results, with their masks."""
    dataset, found = made()
    return _measured(lambda: [one.to_coco(image, dataset.category_ids) for image, one in found])[1]


def _report() -> dict[str, float]:
    """What the page of `eval --report` shows of a model, without its pictures."""
    dataset, found = made()
    return _measured(lambda: analyse(found, dataset).to_dict(dataset, dataset.records))[1]


def _comparison() -> dict[str, float]:
    """What `eval A --against B` says of two models' boxes."""
    dataset, found = made()
    found = [(image, one.without_masks()) for image, one in found]
    others = [(image, one[::2]) for image, one in found]
    return _measured(lambda: compare(found, others, dataset, dataset.records))[1]


def _measured(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `run` returns, and its seconds and memory."""
    before, started = _peak_mb(), time.process_time()
    found = run()
    return found, {"seconds": time.process_time() - started, "added_mb": _peak_mb() - before}


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "boxes, pycocotools": lambda: _ap("bbox", "pycocotools"),
    "boxes, hotcoco": lambda: _ap("bbox", "hotcoco"),
    "masks, pycocotools": lambda: _ap("segm", "pycocotools"),
    "masks, hotcoco": lambda: _ap("segm", "hotcoco"),
    "run lengths": _run_lengths,
    "report": _report,
    "comparison": _comparison,
}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every row in turns, compare the libraries' numbers, write the results."""
    given = parser(__doc__).parse_args()
    if given.cell:
        print(json.dumps(ROWS[given.cell]()))
        return
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    for _ in range(given.rounds):
        for name, found in rounds.items():
            found.append(in_process(__file__, name))
            print(name, f"{found[-1]['seconds']:.1f} s, {found[-1]['added_mb']:.0f} MB", flush=True)
    rows = {
        name: {key: statistics.median(one[key] for one in found) for key in ("seconds", "added_mb")}
        for name, found in rounds.items()
    }
    for kind in ("boxes", "masks"):
        numbers = [np.array(rounds[f"{kind}, {library}"][0]["numbers"]) for library in ("hotcoco", "pycocotools")]
        rows[f"{kind}, hotcoco"]["largest_difference"] = float(np.abs(numbers[0] - numbers[1]).max())
    settings = {"pictures": PICTURES, "detections": DETECTIONS, "classes": CLASSES, "rounds": given.rounds}
    libraries = ("hotcoco", "pycocotools", "numpy")
    write_results("accuracy_speed", settings, rows, given.results, libraries)


if __name__ == "__main__":
    main()
