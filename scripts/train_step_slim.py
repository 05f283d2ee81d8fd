"""A training step of the small recipes on one core of a CPU, by memory format and precision, eager and compiled.

The first phase of each recipe, on its own batches of a made dataset: forward and backward pass and the optimiser,
without reading. The forms take turns in one process, from the same weights and on the same batches; ratios are of steps
of the same turn. And by how much the losses of the first 20 steps differ from those in fp32, channels last: their
mean, and the largest of a single step.

    taskset -c 0 python scripts/train_step_slim.py
"""

import argparse
import copy
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from measure import parser, quantiles, write_results

from directdet.data.pixels.format import RGB
from directdet.data.synthetic import CLASSES, make_synthetic
from directdet.models.build import build_model
from directdet.models.parts.network import Network
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Phase
from directdet.train.data import load_splits, make_phase_loader, phase_preprocess
from directdet.train.optim import learning_rate
from directdet.train.prepare import apply_norm, safe_format
from directdet.train.step import Batch, Stepper

RECIPES = ("mask_rcnn_r18_slim", "retinanet_r18_slim", "rtmdet_nano")
BASE = "channels last, fp32"
FORMS = {
    "fp32": {"channels_last": False, "precision": "fp32"},
    BASE: {"channels_last": True, "precision": "fp32"},
    "bf16": {"channels_last": False, "precision": "bf16"},
    "channels last, bf16": {"channels_last": True, "precision": "bf16"},
    "compiled, channels last, fp32": {"channels_last": True, "precision": "fp32", "compiled": True},
    "compiled, channels last, bf16": {"channels_last": True, "precision": "bf16", "compiled": True},
}
STEPS, BATCHES = 20, 4


def prepare(name: str, data: Path, images: int) -> tuple[Phase, list[Batch], Network]:
    """The first phase of a recipe with `images` a batch, some of its batches, and its network with random weights."""
    recipe = get_recipe(name)
    phase = replace(recipe.phases[0], batch_size=images, workers=0)
    torch.manual_seed(0)
    model = build_model({"detector": recipe.detector, "num_classes": len(CLASSES), **recipe.model}).train()
    apply_norm(model, phase, trained=False)
    train, _ = load_splits(data)
    loader = make_phase_loader(phase, train, model.config.masks, 0, False)
    return phase, list(islice(loader, BATCHES)), model


def in_form(model: Network, phase: Phase, form: str) -> Stepper:
    """A copy of the network that trains in a form, as the loop of a run sets it up."""
    own = copy.deepcopy(model)
    phase = safe_format(own, replace(phase, **FORMS[form]))
    if phase.channels_last:
        own.to(memory_format=torch.channels_last)
    stepper = Stepper(own, phase, phase_preprocess(phase, RGB), learning_rate(phase, phase.batch_size), 0)
    stepper.compile(phase.compiled)
    return stepper


def measure(name: str, data: Path, images: int, turns: int) -> dict[str, dict]:
    """Seconds of a step, its speed relative to BASE, and the difference of the losses, by form."""
    phase, batches, model = prepare(name, data, images)
    forms = list(FORMS) if torch.cpu._is_avx512_bf16_supported() else [f for f in FORMS if "bf16" not in f]
    steppers = {form: in_form(model, phase, form) for form in forms}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    losses: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(max(STEPS, turns + 1)):
        for form, stepper in steppers.items():
            start = time.perf_counter()
            found, _ = stepper.step([batches[number % len(batches)]], number, len(batches))
            if number:  # the first turn warms up
                seconds[form].append(time.perf_counter() - start)
            losses[form].append(float(sum(found.values())))
    rows = {}
    for form in forms:
        pairs = zip(losses[form][:STEPS], losses[BASE][:STEPS], strict=True)
        rows[f"{name}, {form}"] = {
            **quantiles([1e3 * one for one in seconds[form]]),
            "images_per_step": images,
            "speedup": statistics.median(a / b for a, b in zip(seconds[BASE], seconds[form], strict=True)),
            "losses": losses[form][:STEPS],
            "loss_difference": abs(sum(losses[form][:STEPS]) / sum(losses[BASE][:STEPS]) - 1),
            "largest_loss_difference": max(abs(a / b - 1) for a, b in pairs),
        }
    return rows


def main() -> None:
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--images", type=int, default=4, help="pictures of a step")
    made.set_defaults(threads=1)
    given = made.parse_args()
    torch.set_num_threads(given.threads)
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = make_synthetic(Path(folder) / "data", 32, 2, (160, 320))
        for name in RECIPES:
            rows |= measure(name, data, given.images, given.runs)
            for form, row in rows.items():
                if form.startswith(name):
                    mean, single = row["loss_difference"], row["largest_loss_difference"]
                    print(
                        f"{form:44s} {row['median_ms'] / 1e3:6.2f} s a step   {row['speedup']:.2f} times as fast   "
                        f"mean loss differs by {mean:.1%}, one by {single:.1%}",
                        flush=True,
                    )
    settings = {"steps": STEPS, "images_per_step": given.images, "threads": given.threads}
    print(write_results("train_step_slim_cpu", settings, rows, given.results))


if __name__ == "__main__":
    main()
