"""A dry run of the papers' rows at COCO's full size, without a GPU: does anything stall, and what does it take?

It makes data of the size of COCO 2017: 118,287 train pictures, of which 117,266 have objects, 5,000 val pictures,
860,001 and 36,781 objects with polygons of 80 classes. The pictures are a few dozen JPEGs of 150 KB, each under
thousands of names (hard links). Then, each in a process of its own: the annotations are opened for the first time and
again; what every process of a run does before its first step; the order of an epoch, as each of 8 processes gets it; a
part of its batches, really read; a checkpoint, written and resumed; an evaluation of 5,000 pictures with 100 detections
each; and the plan of the papers' rows for 8 GPUs.

    python scripts/full_size.py --work FOLDER                      # writes results/full_size.json; 1 GB in FOLDER
    python scripts/full_size.py --work FOLDER --only order loader  # these figures alone, into the same file
    python scripts/full_size.py --work FOLDER --share 0.01         # to try the script; its figures stay in FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from full_size_data import PICTURES, make
from measure import ROOT, write_results

if TYPE_CHECKING:
    from directdet.infer.detections import Detections

GPUS = 8
DETECTIONS = 100  # of a picture, as COCO counts them
READ = 8  # batches that each of 8 processes really reads of a phase
RECIPE = "mask_rcnn_r50_fpn"
ROWS = (RECIPE, f"{RECIPE}_p3x_1x", "retinanet_r50_fpn", "cascade_rcnn_r50_fpn", "ssd300_root_resnet34_coco")


def opened(data: str) -> dict[str, Any]:
    """What the first and every later process waits for: train and val, read."""
    from directdet.data.dataset import load_dataset

    return {f"{split}_pictures": len(load_dataset(data, split)) for split in PICTURES}


def start(data: str) -> dict[str, Any]:
    """What each process of a run does before its first step besides opening the data."""
    import torch

    from directdet.data.digest import describe_content
    from directdet.recipes.by_name import get_recipe
    from directdet.train.data import load_splits
    from directdet.train.processes.agreement import facts_of

    seconds: dict[str, float] = {}
    train, val = load_splits(data)
    recipe = get_recipe(RECIPE)
    assert val is not None
    _timed(seconds, "agreement", lambda: facts_of(recipe, [], train, val, 0, "cpu", []))
    _timed(seconds, "description", lambda: [describe_content(split) for split in (train, val)])
    trainer = _timed(seconds, "trainer", lambda: _trainer(data, Path("unused"), (train, val)))
    iterator = iter(trainer.loader)
    _timed(seconds, "batch", lambda: next(iterator))
    assert isinstance(trainer.device, torch.device)
    return {f"{name}_cpu_seconds": value for name, value in seconds.items()}


def _timed(seconds: dict[str, float], name: str, run: Callable[[], Any]) -> Any:
    used = time.process_time()
    found = run()
    seconds[name] = time.process_time() - used
    return found


def _trainer(data: str, out: Path, splits: Any = None) -> Any:
    """The pre-training phase of Mask R-CNN R50 as a run begins it."""
    from directdet.models.build import build_model
    from directdet.recipes.by_name import get_recipe
    from directdet.train.data import load_splits
    from directdet.train.loop import Trainer

    recipe = get_recipe(RECIPE)
    train, val = splits or load_splits(data)
    model = build_model({"detector": recipe.detector, "num_classes": len(train.classes), **recipe.model})
    return Trainer(model, recipe.phases[0], train, val, out, recipe.name, 0)


def order(data: str) -> dict[str, Any]:
    """Whether the batches of 8 processes hold every picture of an epoch once, phase by phase, simulated in turn."""
    from directdet.data.flat.arrays import image_sizes
    from directdet.data.sampling import BatchSampler, Sampling, drawn
    from directdet.recipes.by_name import get_recipe
    from directdet.train.data import load_splits

    train, _ = load_splits(data)
    found: dict[str, Any] = {}
    for phase in get_recipe(RECIPE).phases:
        shares: list[np.ndarray] = []
        usable = steps = 0  # the same for every process
        for rank in range(GPUS):
            sampling = Sampling(
                phase.batch_size,
                group_aspect=phase.resize == "edges",
                skip_empty=phase.skip_empty,
                rank=rank,
                world_size=GPUS,
            )
            records, drawing = drawn(train, sampling)
            width, height = image_sizes(records).T
            sampler = BatchSampler(sampling, drawing, height > width)
            shares.append(np.array([entry[2] for batch in sampler for entry in batch]))
            usable, steps = len(records), sampler.batches_per_epoch
        together = np.concatenate(shares)
        assert len(set(map(len, shares))) == 1
        found[phase.name] = {
            "usable": usable,
            "steps": steps,
            "read": len(together),
            "different": len(np.unique(together)),
            "left_out": usable - len(together),  # they do not fill a batch of all processes
        }
        images = steps * GPUS * phase.batch_size
        if not found[phase.name]["read"] == found[phase.name]["different"] == images:
            raise SystemExit(f"{phase.name}: not every picture once: {found[phase.name]}")
    return found


def loader(data: str) -> dict[str, Any]:
    """The first batches of each of 8 processes in turn, really read: pictures a second of one core."""
    from directdet.data.loader import make_loader
    from directdet.data.padding import Padding
    from directdet.data.sampling import Sampling
    from directdet.recipes.by_name import get_recipe
    from directdet.train.data import load_splits, transform_of

    train, _ = load_splits(data)
    found: dict[str, Any] = {}
    for phase in get_recipe(RECIPE).phases:
        pictures, used = 0, 0.0
        for rank in range(GPUS):
            grouped = phase.resize == "edges"
            sampling = Sampling(phase.batch_size, 0, grouped, phase.skip_empty, rank=rank, world_size=GPUS)
            batches = iter(make_loader(train, transform_of(phase), sampling, Padding(masks=True)))
            next(batches)
            began = time.process_time()
            for _ in range(READ):
                pictures += len(next(batches)[0])
            used += time.process_time() - began
        found[phase.name] = {"pictures": pictures, "pictures_per_second": pictures / used}
    return found


def checkpoint(data: str) -> dict[str, Any]:
    """Writing and resuming the whole state of Mask R-CNN R50 in pre-training: weights, momentum, generators."""
    import torch

    folder = Path(data).parent / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    trainer, other = _trainer(data, folder), _trainer(data, folder)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3) if parameter.requires_grad else None
    trainer.stepper.optimizer.step()
    trainer.position.step = 1000
    seconds: dict[str, float] = {}
    walls = {}
    for name, run in (
        ("write", lambda: trainer.save("last.pt")),
        ("resume", lambda: other.resume(folder / "checkpoints" / "last.pt")),
    ):
        began = time.perf_counter()
        _timed(seconds, name, run)
        walls[name] = time.perf_counter() - began
    states = [
        [*one.model.state_dict().values(), *(kept["momentum_buffer"] for kept in one.stepper.optimizer.state.values())]
        for one in (trainer, other)
    ]
    if not all(torch.equal(a, b) for a, b in zip(*states, strict=True)) or other.position.step != 1000:
        raise SystemExit("the state that is resumed is not the one that was written")
    file_mb = (folder / "checkpoints" / "last.pt").stat().st_size / 1e6
    shutil.rmtree(folder)
    return {
        "file_mb": file_mb,
        **{f"{name}_cpu_seconds": value for name, value in seconds.items()},
        **{f"{name}_seconds": value for name, value in walls.items()},
    }


def evaluation(data: str, masks: str) -> dict[str, Any]:
    """AP of made-up detections, 100 in each val picture: some of them objects, moved a little."""
    from directdet.data.dataset import load_dataset
    from directdet.infer.accuracy.evaluate import scored

    val = load_dataset(data, "val")
    rng = np.random.default_rng(0)
    found = [(record.image_id, _detections(record, len(val.classes), rng, masks == "masks")) for record in val.records]
    before = _peak_mb()
    began, used = time.perf_counter(), time.process_time()
    metrics = scored(found, val).metrics
    return {
        "detections": sum(len(one) for _, one in found),
        "score_seconds": time.perf_counter() - began,
        "score_cpu_seconds": time.process_time() - used,
        "detections_mb": before,
        "box_ap": metrics.bbox["AP"],
        "mask_ap": None if metrics.segm is None else metrics.segm["AP"],
    }


def _detections(record: Any, classes: int, rng: np.random.Generator, masks: bool) -> Detections:
    from directdet.infer.detections import Detections

    objects = len(record.boxes)
    count = max(DETECTIONS, objects)
    size = np.array([record.width, record.height], np.float32)
    corners = rng.random((count, 2)) * 0.9
    sides = np.minimum(np.exp(rng.uniform(np.log(0.02), np.log(0.6), (count, 2))), 0.98 - corners)
    boxes = np.concatenate([corners, corners + sides], axis=1) * np.tile(size, 2)
    labels, scores = rng.integers(0, classes, count), rng.uniform(0.05, 0.6, count)
    moved = record.boxes + rng.normal(0, 0.06, (objects, 4)) * np.tile(record.boxes[:, 2:] - record.boxes[:, :2], 2)
    ordered = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:] - 1), moved[:, 2:]], axis=1)
    boxes[:objects] = np.clip(ordered, 0, np.tile(size, 2))
    labels[:objects], scores[:objects] = record.labels, rng.uniform(0.3, 1.0, objects)
    best = np.argsort(-scores)[:DETECTIONS]
    probabilities = None
    if masks:  # ellipses in their boxes
        middle = (np.arange(28) + 0.5) / 14 - 1
        ellipse = 1 / (1 + np.exp(8 * (middle[:, None] ** 2 + middle**2 - 1)))
        probabilities = np.clip(ellipse + rng.normal(0, 0.05, (len(best), 28, 28)), 0, 1)
    image_size = record.height, record.width
    return Detections(boxes[best], scores[best], labels[best], probabilities, image_size)


def plan(data: str) -> dict[str, Any]:
    """Batch, learning rate, iterations and memory of the papers' rows on 8 GPUs, from shapes alone."""
    from dataclasses import replace

    from directdet.data.dataset import load_dataset
    from directdet.data.padding import target_rows
    from directdet.recipes.by_name import get_recipe
    from directdet.recipes.derived import accumulated, images_per_step, passes_per_epoch
    from directdet.train.data import images_per_pass
    from directdet.train.optim import learning_rate
    from directdet.train.planning.memory import step_cost
    from directdet.train.planning.plan import PAPER_SECONDS, paper_costs

    train = load_dataset(data, "train")
    rows = target_rows(train.most_objects())
    speed = paper_costs()[448].flops / PAPER_SECONDS
    found: dict[str, Any] = {}
    for name in ROWS:
        recipe = get_recipe(name)
        for phase in recipe.phases:
            if phase.fixed_batch:  # a step's images are given: 8 GPUs share them
                phase = replace(phase, batch_size=phase.base_batch // GPUS)
            network = {"detector": recipe.detector, "num_classes": len(train.classes), **recipe.model}
            images, passes = images_per_step(phase, GPUS), images_per_pass(phase, train)
            # Pictures of one orientation share a batch, so that its canvas is that of the recipe, to multiples of 32.
            height, width = phase.size
            size = (-(-height // 32) * 32, -(-width // 32) * 32) if phase.resize == "edges" else (height, width)
            cost = step_cost(network, phase, size, phase.batch_size, GPUS, objects=rows)
            steps = phase.iterations or phase.epochs * round(passes // images * passes_per_epoch(phase))
            found[f"{name} {phase.name}"] = {
                "recipe": name,
                "phase": phase.name,
                "size": list(size),
                "images_per_gpu": phase.batch_size,
                "images_per_step": images,
                "learning_rate": learning_rate(phase, images),
                "iterations": steps,
                "memory_gib": cost.peak / 2**30,
                "paper_days": steps * accumulated(phase, GPUS) * cost.flops / speed / 86_400,
            }
    return found


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "opened": opened,
    "start": start,
    "order": order,
    "loader": loader,
    "checkpoint": checkpoint,
    "evaluation": evaluation,
    "plan": plan,
}
# What is measured, in this order: the task and its arguments.
STEPS = {
    "first": ("opened",),
    "later": ("opened",),
    "start": ("start",),
    "order": ("order",),
    "loader": ("loader",),
    "checkpoint": ("checkpoint",),
    "boxes": ("evaluation", "boxes"),
    "masks": ("evaluation", "masks"),
    "plan": ("plan",),
}


def _peak_mb() -> float:
    """The highest resident memory of this process: what getrusage tells of a child begins with its parent's."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def run_task(task: str, *arguments: str) -> None:
    """A task in this process; its figures, its time and its memory, as a line of JSON."""
    began, used = time.perf_counter(), time.process_time()
    found = TASKS[task](*arguments)
    times = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}
    print(json.dumps({**found, **times, "peak_mb": _peak_mb()}))


def in_process(cache: Path, *words: str) -> dict[str, Any]:
    """A task in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DIRECTDET_CACHE": str(cache)}
    command = [sys.executable, __file__, "--task", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Make the data, measure, write the results."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--work", type=Path, help="folder for data, cache and a checkpoint; the data is kept")
    arguments.add_argument("--share", type=float, default=1.0, help="of COCO's size  [default: 1]")
    arguments.add_argument("--only", nargs="+", choices=STEPS, help="measure these alone")
    arguments.add_argument(
        "--results", type=Path, metavar="DIR", help="for the figures  [default: results; of a share: --work]"
    )
    arguments.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.task:
        run_task(*given.task)
        return
    if given.work is None:
        arguments.error("--work is missing")
    whole, work = given.share == 1, given.work.resolve()
    data, cache = work / ("data" if whole else f"data-{given.share:g}"), work / "cache"
    folder = given.results or (ROOT / "results" if whole else work)  # what is tried is no result
    file = folder / "full_size.json"
    before = json.loads(file.read_text(encoding="utf-8")) if given.only and file.is_file() else {"rows": {}}
    began = time.perf_counter()
    sizes = make(data, given.share)
    settings = {**sizes, "share": given.share, "gpus": GPUS, "recipe": RECIPE, "detections": DETECTIONS}
    print(f"data: {sizes}, {time.perf_counter() - began:.0f} s", flush=True)
    rows: dict[str, Any] = before["rows"]
    for name, (task, *words) in STEPS.items():
        if given.only and name not in given.only:
            continue
        if name == "first":
            shutil.rmtree(cache, ignore_errors=True)
        rows[name] = in_process(cache, task, str(data), *words)
        print(name, json.dumps(rows[name]), flush=True)
        write_results("full_size", settings, {one: rows[one] for one in STEPS if one in rows}, folder)


if __name__ == "__main__":
    main()
