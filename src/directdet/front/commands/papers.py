"""The verbs that reproduce the papers' tables and figures: reproduce, landscape."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from directdet.common.errors import UsageProblem
from directdet.front.options import (
    PATH,
    Minutes,
    Names,
    Number,
    data_option,
    require_one_process,
    seed_option,
    torch_device_option,
)
from directdet.front.say import say


class _Reproduce(click.Command):
    """Without arguments, a list; else COMPARISON, --data and --out are needed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What is missing is told as click tells it."""
        given = bool(args)
        rest = super().parse_args(ctx, args)
        if given:
            for param in self.params:
                if param.name in ("comparison", "data", "out") and ctx.params[param.name] is None:
                    hint = "'COMPARISON'" if isinstance(param, click.Argument) else None  # not [COMPARISON]
                    raise click.MissingParameter(ctx=ctx, param=param, param_hint=hint)
        return rest


@click.command("reproduce", cls=_Reproduce)
@click.argument("comparison", required=False)
@click.option("--data", "data", type=PATH, metavar="DATA", help="Dataset folder.")
@click.option("--out", type=PATH, metavar="DIR", help="Folder of the comparison.")
@click.option("--budget", type=Minutes(), default="20m", show_default=True, help="Time for all rows together.")
@click.option("--steps", type=click.IntRange(min=1), help="Of a phase, or of 1x, instead of --budget.")
@click.option("--scale", help="smoke, tiny, small, medium or paper.  [default: small, on a GPU medium]")
@click.option("--ssd-batch", type=click.IntRange(min=1), help="Images per step of SSD.  [default: the scale's]")
@click.option(
    "--rows", type=Names(), default=(), metavar="KEY,...", help="Only the rows with these folder names.  [default: all]"
)
@click.option(
    "--imagenet",
    multiple=True,
    metavar="FILE",
    help="Weights for the ImageNet rows, or imagenet to fetch them; once for each backbone.",
)
@click.option(
    "--metric", type=click.Choice(["coco", "voc"]), help="COCO's AP, or VOC's 11-point mAP.  [default: the paper's]"
)
@click.option("--time-limit", type=Minutes(), help="Stop after this time; the same command continues.")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="How many, from --seed on.")
@torch_device_option
@seed_option
def reproduce(
    comparison: str | None,
    data: Path | None,
    out: Path | None,
    budget: float,
    steps: int | None,
    scale: str | None,
    ssd_batch: int | None,
    rows: tuple[str, ...],
    imagenet: tuple[str, ...],
    metric: Literal["coco", "voc"] | None,
    time_limit: float | None,
    seeds: int,
    device: str,
    seed: int,
) -> None:
    """Run a comparison of the papers, scaled down, on DATA.

    COMPARISON is a table or figure, such as direct/table2; without arguments, all are listed. Its rows get equal
    budgets, or keep the paper's schedules; the same command continues where it was stopped. direct/table7 times a few
    iterations and needs no budget. With --seeds, the rows are trained with each and share the budget, and a paired test
    says which of the paper's claims are shown at this size.
    """
    require_one_process("reproduce")
    from directdet.common.folder_lock import hold_folder
    from directdet.common.terminal import terminal
    from directdet.reproduce.experiments import EXPERIMENTS, TIMED

    if comparison is None or data is None or out is None:
        from directdet.reproduce.tables.listing import comparisons

        terminal().print(comparisons())
        return
    if comparison in TIMED:
        if seeds > 1:
            raise UsageProblem(f"--seeds {seeds}: {comparison} times steps, which no seed changes; leave it out")
        from directdet.reproduce.timing import time_table7, timing_table

        with hold_folder(out, "reproduce"):
            terminal().print(timing_table(time_table7(data, out, scale, device)))
        say(f"written: {out / 'results.json'}")
        return
    from directdet.reproduce.comparison_plot import draw_comparison
    from directdet.reproduce.figure_plot import draw_figure
    from directdet.reproduce.run import ReproduceOptions, reproduce
    from directdet.reproduce.seeds import reproduce_seeds

    options = ReproduceOptions(budget, scale, device, seed, imagenet, rows, steps, ssd_batch, metric)
    with hold_folder(out, "reproduce"):
        if seeds == 1:
            found = reproduce(comparison, data, out, options, time_limit)
        else:
            found = reproduce_seeds(comparison, data, out, seeds, options, time_limit)
        draw_comparison(found.to_dict(), out / "comparison.png")
        if axis := EXPERIMENTS[comparison].axis:
            draw_figure(found.to_dict(), out / "figure.png", axis)
    terminal().print(found.table())
    say(f"written: {out / 'results.json'}")


@click.command("landscape")
@data_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder for landscape.json and landscape.png.")
@click.option("--size", help="small or paper.  [default: small, on a GPU paper]")
@click.option("--steps", type=click.IntRange(min=2), help="Steps of each variant.  [default: the size's]")
@click.option(
    "--base-lr", type=Number(min=0, min_open=True), default=0.001, show_default=True, help="Taken 1x and 10x."
)
@torch_device_option
@seed_option
def landscape(
    data: Path, out: Path, size: str | None, steps: int | None, base_lr: float, device: str, seed: int
) -> None:
    """Draw SSD's loss and gradients with and without BN.

    ScratchDet's Figures 1 and 7: loss, L2 norm of the gradient and its fluctuation, from the same seed and data.
    """
    require_one_process("landscape")
    from directdet.common.folder_lock import hold_folder
    from directdet.reproduce.landscape import SMOOTHING, landscape
    from directdet.reproduce.landscape_plot import draw_landscape

    with hold_folder(out, "landscape"):
        result = landscape(data, out, size, steps, device, seed, base_lr)
        draw_landscape(result, out / "landscape.png", SMOOTHING)
    for run in result["runs"]:
        end = f"not finite at step {run['stopped']}" if run["stopped"] is not None else f"loss {run['loss'][-1]:.2f}"
        say(f"{run['label']}: {end}")
    say(f"written: {out / 'landscape.png'}, {out / 'landscape.json'}")
