"""The verbs that reproduce the papers' tables and figures: reproduce, landscape."""

from __future__ import annotations

from pathlib import Path

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


@click.command("reproduce")
@click.argument("comparison")
@data_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder of the comparison.")
@click.option("--budget", type=Minutes(), default="20m", show_default=True, help="Time for all rows together.")
@click.option("--steps", type=click.IntRange(min=1), help="Of each phase of each row, instead of --budget.")
@click.option("--scale", help="smoke, tiny, small, medium or paper.  [default: small, on a GPU medium]")
@click.option("--ssd-batch", type=click.IntRange(min=1), help="Images per step of SSD.  [default: the scale's]")
@click.option(
    "--rows", type=Names(), default=(), metavar="KEY,...", help="Only the rows with these folder names.  [default: all]"
)
@click.option("--imagenet", metavar="FILE", help="Weights for the ImageNet rows: a file, or imagenet to fetch them.")
@click.option("--time-limit", type=Minutes(), help="Stop after this time; the same command continues.")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="How many, from --seed on.")
@torch_device_option
@seed_option
def reproduce(
    comparison: str,
    data: Path,
    out: Path,
    budget: float,
    steps: int | None,
    scale: str | None,
    ssd_batch: int | None,
    rows: tuple[str, ...],
    imagenet: str | None,
    time_limit: float | None,
    seeds: int,
    device: str,
    seed: int,
) -> None:
    """Run a comparison of the papers, scaled down, on DATA.

    COMPARISON is direct/table1, direct/table2, direct/table5, direct/table7, direct/table8, direct/scratch,
    scratchdet/table1 or scratchdet/table2. Its rows get equal budgets; the same command continues where it was
    stopped. direct/table7 times a few iterations and needs no budget. With --seeds, the rows are trained with each and
    share the budget, and a paired test says which of the paper's claims are shown at this size.
    """
    require_one_process("reproduce")
    from directdet.common.folder_lock import hold_folder
    from directdet.common.terminal import terminal

    if comparison == "direct/table7":
        if seeds > 1:
            raise UsageProblem(f"--seeds {seeds}: direct/table7 times steps, which no seed changes; leave it out")
        from directdet.reproduce.timing import time_table7, timing_table

        with hold_folder(out, "reproduce"):
            terminal().print(timing_table(time_table7(data, out, scale, device)))
        say(f"written: {out / 'results.json'}")
        return
    from directdet.reproduce.comparison_plot import draw_comparison
    from directdet.reproduce.run import ReproduceOptions, reproduce
    from directdet.reproduce.seeds import reproduce_seeds

    options = ReproduceOptions(budget, scale, device, seed, imagenet, rows, steps, ssd_batch)
    with hold_folder(out, "reproduce"):
        if seeds == 1:
            found = reproduce(comparison, data, out, options, time_limit)
        else:
            found = reproduce_seeds(comparison, data, out, seeds, options, time_limit)
        draw_comparison(found.to_dict(), out / "comparison.png")
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
