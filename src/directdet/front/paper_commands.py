"""The verbs that have to do with the papers: recipes, plan, reproduce, landscape."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from directdet.front.options import PATH, check_settings, data_option, require_one_process


class Minutes(click.ParamType):
    """A time such as 90s, 20m or 2h, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds from "20m"."""
        if isinstance(value, float):
            return value
        units = {"s": 1.0, "m": 60.0, "h": 3600.0}
        try:
            seconds = float(value[:-1]) * units[value[-1]]
        except (KeyError, ValueError, IndexError):
            seconds = 0.0
        if not 0 < seconds < 1e9:
            self.fail(f"{value!r} is not a time; write it as 90s, 20m or 2h", param, ctx)
        return seconds


class Numbers(click.ParamType):
    """Whole numbers, as 224,320."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """A tuple from "224,320"."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of whole numbers such as 224,320", param, ctx)
        return tuple(int(part) for part in parts)


@click.command("recipes")
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the training recipes, or show every setting of one."""
    from rich.console import Console

    from directdet.recipes.by_name import get_recipe
    from directdet.recipes.show import describe_recipe, recipe_groups

    Console().print(recipe_groups() if name is None else describe_recipe(get_recipe(name)))


@click.command("plan")
@click.argument("recipe")
@click.option("--memory", required=True, metavar="SIZE", help="Limit of each GPU: 11GB, 24GiB.")
@click.option("--lengths", type=Numbers(), default="224,320,448,640", show_default=True, help="Sides to try.")
@click.option("--batches", type=Numbers(), default="2,4,8,16", show_default=True, help="Images per GPU to try.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many there are.")
@click.option("--classes", type=click.IntRange(min=1), default=80, show_default=True, help="Classes of the data.")
@click.option("--images", type=click.IntRange(min=1), help="Images of the training set.  [default: COCO's 117266]")
@click.option("--measure", is_flag=True, help="Measure on the GPU here as well.")
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the plan as JSON.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=check_settings, help="Change a setting."
)
def plan(
    recipe: str,
    memory: str,
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    gpus: int,
    classes: int,
    images: int | None,
    measure: bool,
    json_file: Path | None,
    settings: tuple[str, ...],
) -> int:
    """Find the batch and resolution that fit a GPU.

    For pre-training RECIPE, equation (1) of the paper. Peak memory and arithmetic of every setting are estimated from
    shapes, without a GPU. Exit code 1 if nothing fits.
    """
    from rich.console import Console

    from directdet.common.files import require_writable, write_json_atomic
    from directdet.recipes.by_name import get_recipe
    from directdet.recipes.settings import apply_settings

    if json_file is not None:
        require_writable(json_file)
    chosen = apply_settings(get_recipe(recipe), list(settings))
    from directdet.train.plan import COCO_IMAGES, parse_memory, plan

    limit = parse_memory(memory)
    model = {"detector": chosen.detector, "num_classes": classes, **chosen.model}
    found = plan(model, chosen.phases[0], limit, lengths, batches, gpus, images or COCO_IMAGES, on_gpu=measure)
    Console().print(found.table())
    if json_file is not None:
        write_json_atomic(json_file, found.to_dict())
        click.echo(f"written: {json_file}")
    return int(found.chosen is None)


@click.command("reproduce")
@click.argument("comparison")
@data_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder of the comparison.")
@click.option("--budget", type=Minutes(), default="20m", show_default=True, help="Time for all rows together.")
@click.option("--steps", type=click.IntRange(min=1), help="Of each phase of each row, instead of --budget.")
@click.option("--scale", help="smoke, tiny, small, medium or paper.  [default: small, on a GPU medium]")
@click.option("--ssd-batch", type=click.IntRange(min=1), help="Images per step of SSD.  [default: the scale's]")
@click.option("--rows", default="", metavar="KEY,...", help="Only these rows, by the folders they get.  [default: all]")
@click.option("--imagenet", metavar="FILE", help="Weights for the ImageNet rows: a file, or imagenet to fetch them.")
@click.option("--time-limit", type=Minutes(), help="Stop after so long; the same command goes on.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def reproduce(
    comparison: str,
    data: Path,
    out: Path,
    budget: float,
    steps: int | None,
    scale: str | None,
    ssd_batch: int | None,
    rows: str,
    imagenet: str | None,
    time_limit: float | None,
    device: str,
    seed: int,
) -> None:
    """Run a comparison of the paper, scaled down, on DATA.

    COMPARISON is direct/table1, direct/table2, direct/table5, direct/table7, direct/table8, direct/scratch,
    scratchdet/table1 or scratchdet/table2. Its rows get equal budgets; it can be stopped and goes on when called again.
    direct/table7 times a few iterations and needs no budget.
    """
    require_one_process("reproduce")
    from rich.console import Console

    if comparison == "direct/table7":
        from directdet.reproduce.timing import time_table7, timing_table

        Console().print(timing_table(time_table7(data, out, scale, device)))
        click.echo(f"written: {out / 'results.json'}")
        return
    from directdet.reproduce.comparison_plot import draw_comparison
    from directdet.reproduce.run import reproduce

    keys = [key.strip() for key in rows.split(",") if key.strip()]
    options = {"imagenet": imagenet, "time_limit": time_limit, "rows": keys, "steps": steps, "ssd_batch": ssd_batch}
    found = reproduce(comparison, data, out, budget, scale, device, seed, **options)
    draw_comparison(found.to_dict(), out / "comparison.png")
    Console().print(found.table())
    click.echo(f"written: {out / 'results.json'}")


@click.command("landscape")
@data_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder for landscape.json and landscape.png.")
@click.option("--size", help="small or paper.  [default: small, on a GPU paper]")
@click.option("--steps", type=click.IntRange(min=2), help="Steps of each variant.  [default: the size's]")
@click.option(
    "--base-lr", type=click.FloatRange(min=0, min_open=True), default=0.001, show_default=True, help="Taken 1x and 10x."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def landscape(
    data: Path, out: Path, size: str | None, steps: int | None, base_lr: float, device: str, seed: int
) -> None:
    """Draw SSD's loss and gradients with and without BN.

    ScratchDet's Figures 1 and 7: loss, L2 norm of the gradient and its fluctuation, from the same seed and data.
    """
    require_one_process("landscape")
    if not math.isfinite(base_lr):  # click lets them through
        raise click.UsageError(f"--base-lr {base_lr}: not a learning rate")
    from directdet.reproduce.landscape import SMOOTHING, landscape
    from directdet.reproduce.landscape_plot import draw_landscape

    result = landscape(data, out, size, steps, device, seed, base_lr)
    draw_landscape(result, out / "landscape.png", SMOOTHING)
    for run in result["runs"]:
        end = f"not finite at step {run['stopped']}" if run["stopped"] is not None else f"loss {run['loss'][-1]:.2f}"
        click.echo(f"{run['label']}: {end}")
    click.echo(f"written: {out / 'landscape.png'}, {out / 'landscape.json'}")
