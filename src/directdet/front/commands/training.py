"""The verbs about training: recipes, plan, train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from directdet.common.errors import Stopped, UsageProblem
from directdet.front.options import (
    PATH,
    Numbers,
    code_option,
    require_one_process,
    score_option,
    settings_option,
    torch_device_option,
)
from directdet.front.say import say

if TYPE_CHECKING:
    from directdet.train.run import RunResult

PHASES = ("montage", "pretrain", "finetune", "scratch")
# What the recipes' best_by chooses by, in words.
MEASURES = {"AP": "box AP", "mAP_11point": "VOC mAP (11-point)", "mAP_area": "VOC mAP (area)"}


@click.command("recipes")
@click.argument("name", required=False)
@click.option("--papers", is_flag=True, help="List every recipe, by the tables of the two papers.")
@code_option
def recipes(name: str | None, papers: bool) -> None:
    """List the training recipes, or show every setting of one."""
    from directdet.common.plugins import load_plugins
    from directdet.common.terminal import terminal
    from directdet.recipes.by_name import get_recipe
    from directdet.recipes.show import choices, describe_recipe, recipe_groups

    load_plugins()
    if name is not None:
        terminal().print(describe_recipe(get_recipe(name)))
    else:
        terminal().print(recipe_groups() if papers else choices())


@click.command("plan")
@click.argument("recipe")
@click.option("--memory", required=True, metavar="SIZE", help="Limit of each GPU: 11GB, 24GiB.")
@click.option("--lengths", type=Numbers(), default="224,320,448,640", show_default=True, help="Sides to try.")
@click.option("--batches", type=Numbers(), default="2,4,8,16", show_default=True, help="Images per GPU to try.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many there are.")
@click.option("--data", type=PATH, metavar="DATA", help="Count classes, images and objects here.  [default: COCO's]")
@click.option("--classes", type=click.IntRange(min=1), help="Classes of the data.  [default: COCO's 80]")
@click.option("--images", type=click.IntRange(min=1), help="Images of the training set.  [default: COCO's 117266]")
@click.option("--measure", is_flag=True, help="Measure on the GPU here as well.")
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the plan as JSON.")
@settings_option
@code_option
def plan(
    recipe: str,
    memory: str,
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    gpus: int,
    data: Path | None,
    classes: int | None,
    images: int | None,
    measure: bool,
    json_file: Path | None,
    settings: tuple[str, ...],
) -> int:
    """Find the batch and resolution that fit a GPU.

    For pre-training RECIPE, equation (1) of the paper. Peak memory and arithmetic of every setting are estimated from
    shapes, without a GPU. Exit code 1 if nothing fits.
    """
    from directdet.common.files import require_writable, write_json_atomic
    from directdet.common.terminal import terminal
    from directdet.recipes.by_name import get_recipe
    from directdet.recipes.settings import apply_settings

    if json_file is not None:
        require_writable(json_file)
    chosen = apply_settings(get_recipe(recipe), list(settings))
    from directdet.train.planning.plan import Grid, Workload, parse_memory, plan

    limit = parse_memory(memory)
    grid, workload, own_classes = Grid(lengths, batches), Workload(gpus), 80
    if data is not None:
        from directdet.data.dataset import load_dataset
        from directdet.train.data import images_per_pass
        from directdet.train.objects import fitted

        dataset = load_dataset(data, "train")
        chosen, _ = fitted(chosen, dataset)
        own_classes = len(dataset.classes)
        count = images_per_pass(chosen.phases[0], dataset)
        workload = replace(workload, images=count, objects=max(1, dataset.most_objects()))
    if images is not None:
        workload = replace(workload, images=images)
    model = {"detector": chosen.detector, "num_classes": classes or own_classes, **chosen.model}
    found = plan(model, chosen.phases[0], limit, grid, workload, on_gpu=measure)
    terminal().print(found.table())
    if json_file is not None:
        write_json_atomic(json_file, found.to_dict())
        say(f"written: {json_file}")
    return int(found.chosen is None)


class _Train(click.Command):
    """RECIPE, --data and --out are needed, unless a run goes on from its folder."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What is missing is told where the arguments are read."""
        rest = super().parse_args(ctx, args)
        given = ctx.params
        if given["resume"] and given["recipe"] is not None and given["out"] is None:
            given["recipe"], given["out"] = None, Path(given["recipe"])
        if given["epochs"] is not None and (not given["resume"] or given["recipe"] is not None):
            raise click.UsageError("--epochs is for --resume RUN; give a new run's by --set PHASE.epochs=N", ctx)
        from directdet.front.api import check_call

        try:
            check_call(*(given[name] for name in ("recipe", "data", "out", "init", "resume")))
        except UsageProblem as error:
            raise click.UsageError(str(error), ctx) from None
        return rest


@click.command("train", cls=_Train)
@click.argument("recipe", required=False)
@click.option("--data", type=PATH, metavar="DATA", help="Dataset folder.")
@click.option("--out", type=PATH, metavar="RUN", help="Folder of the run.")
@click.option("--phase", type=click.Choice(PHASES), help="Only this phase.  [default: all]")
@click.option("--init", metavar="FILE", help="Start from this run, checkpoint or backbone file, imagenet or random.")
@click.option("--resume", is_flag=True, help="Go on with a run: `train --resume RUN` needs nothing else.")
@click.option(
    "--epochs", type=click.IntRange(min=1), metavar="N", help="With --resume: make the phase it is in so long."
)
@torch_device_option
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0]")
@settings_option
@click.option(
    "--log",
    multiple=True,
    metavar="NAME",
    help="tensorboard, wandb, mlflow or none; may be given again.  [default: tensorboard]",
)
@click.option("--dry-run", is_flag=True, help="Check recipe, data and model, time three steps, write nothing.")
@code_option
def train(
    recipe: str | None,
    data: Path | None,
    out: Path,
    phase: str | None,
    init: str | None,
    resume: bool,
    epochs: int | None,
    device: str,
    seed: int | None,
    settings: tuple[str, ...],
    log: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train RECIPE from scratch on DATA.

    Direct pre-training at low resolution with live batch normalisation, then fine-tuning at high resolution with batch
    normalisation fixed. `directdet train --resume RUN` goes on with a run as it was started.
    """
    from directdet.front.api import run_training

    with _told_how_to_go_on(out):
        result = run_training(
            recipe, data, out, settings, phase, init, resume=resume, epochs=epochs, device=device, seed=seed,
            dry_run=dry_run, log=log or None, warn=_warn,
        )  # fmt: skip
    if not dry_run:
        _say_result(result)
    elif result.phases:  # the main process's, where there are several
        say("dry run: nothing was written")


def _warn(line: str) -> None:
    say(line, "warning:", error=True)


@contextlib.contextmanager
def _told_how_to_go_on(out: Path) -> Iterator[None]:
    """A run that is stopped says the command that goes on with it."""
    try:
        yield
    except Stopped as stop:
        if stop.saved:
            raise Stopped(stop.number, stop.where, f"{stop.saved}; go on: directdet train --resume {out}") from None
        raise


def _say_result(result: RunResult) -> None:
    for row in result.phases:
        best = "-" if row.get("best_ap") is None else f"{100 * row['best_ap']:.1f}"
        found = "a backbone" if row["name"] == "montage" else f"best {MEASURES[row['best_by']]} {best}"
        say(f"{row['name']}: {found}, {row['seconds']:.0f} s, {row['checkpoint']}")
    if result.report is not None:
        say(f"report: {result.report}")
    if result.phases and result.phases[-1]["name"] == "montage":
        say(f"next: directdet train RECIPE --init {result.phases[-1]['checkpoint']}")
    elif result.phases:
        say(f"next: directdet export {result.out} --out ARTEFACT")  # it knows the run's data


@click.command("self-train")
@click.argument("model", type=PATH)
@click.argument("pictures")
@click.option("--data", type=PATH, metavar="DATA", help="The labelled dataset.  [default: that of a run folder]")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder for pseudo-labels and the new run.")
@click.option("--recipe", metavar="RECIPE", help="What to train.  [default: that of a run folder]")
@score_option
@click.option("--phase", type=click.Choice(PHASES), help="Only this phase.  [default: all]")
@click.option("--init", metavar="FILE", help="Start from this run, checkpoint or backbone file, imagenet or random.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted call left in DIR.")
@torch_device_option
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0]")
@settings_option
@code_option
def self_train(model: Path, pictures: str, out: Path, **options: Any) -> None:
    """Train anew with the help of unlabelled PICTURES.

    MODEL detects on them; what it finds becomes a training set beside DATA, in which the losses of an object count by
    its score; RECIPE is trained on both. Pictures that are in DATA are left out. Says the commands that do the same
    one by one, which is how to train on several GPUs.
    """
    require_one_process("self-train")
    from directdet.front.self_training import RUN, self_train

    with _told_how_to_go_on(out / RUN):
        _say_result(self_train(model, pictures, out=out, warn=_warn, say=say, **options))
