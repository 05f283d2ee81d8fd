"""The verbs about datasets: check-data and convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from directdet.front.options import PATH, code_option, settings_option
from directdet.front.say import now, say, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from directdet.data.checks.report import CheckReport
    from directdet.data.records import Dataset
    from directdet.recipes.recipe import Recipe


@click.command("check-data")
@click.argument("data", type=PATH)
@click.option(
    "--report", type=PATH, metavar="FILE", help="Write all findings: .html with pictures, .json, or else plain text."
)
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    metavar="N",
    help="Pictures of each finding, with --report FILE.html.",
)
@click.option("--split", "splits", multiple=True, help="Only this split (may be given again).  [default: all]")
@click.option("--images/--no-images", default=True, show_default=True, help="Open and decode every picture.")
@click.option("--augmented", "recipe", metavar="RECIPE", help="Draw the pictures that training RECIPE would see.")
@click.option(
    "--sheet",
    type=PATH,
    default=Path("augmented.jpg"),
    show_default=True,
    metavar="FILE",
    help="Where, with --augmented.",
)
@settings_option
@code_option
def check_data(
    data: Path,
    report: Path | None,
    splits: tuple[str, ...],
    images: bool,
    pictures: int,
    recipe: str | None,
    sheet: Path,
    settings: tuple[str, ...],
) -> int:
    """Check a dataset before time is spent on it.

    Exit code 1 if it cannot be used (missing or broken files, splits that do not match) or if training would leave
    objects out because their boxes are not valid.
    """
    from directdet.common.files import require_writable, write_text_atomic
    from directdet.data.check import examine_data
    from directdet.data.check_report import print_report

    if settings and recipe is None:
        raise click.UsageError("--set changes the recipe of --augmented; give both")
    if report is not None:
        require_writable(report)
    chosen = None
    if recipe is not None:
        from directdet.recipes.by_name import get_recipe
        from directdet.recipes.settings import apply_settings

        require_writable(sheet)
        chosen = apply_settings(get_recipe(recipe), list(settings))
    found, datasets = examine_data(data, splits or None, verify_images=images)
    print_report(found)
    if report is not None:
        write_text_atomic(report, _report_text(found, datasets, report.suffix.lower(), pictures))
        say(f"report: {report}")
    if chosen is not None:
        _write_sheet(data, chosen, sheet)
    if found.dropped:
        first, more = found.dropped[0], len(found.dropped) - 1
        others = f" (and {more} more)" if more else ""
        say(
            f"error: {first.file}: annotation {first.annotation_id}: {first.message}{others}; training would leave it "
            "out: correct or remove it",
            error=True,
        )
    return int(found.fatal or bool(found.dropped))


def _write_sheet(data: Path, recipe: Recipe, sheet: Path) -> None:
    """Write the first pictures of every phase of a recipe, as they are trained on, to a JPEG file."""
    from dataclasses import replace

    from directdet.common.files import write_bytes_atomic
    from directdet.pages.augmented import COLUMNS, drawn_batches, make_sheet
    from directdet.train.data import fitted, load_splits, make_phase_loader

    dataset, _ = load_splits(data, recipe.data_fraction)
    recipe, _ = fitted(recipe, dataset)
    rows = []
    for phase in recipe.phases:
        loader = make_phase_loader(replace(phase, workers=0), dataset, dataset.has_masks, 0, False)
        title = f"{recipe.name}, {phase.name}: {loader.images} pictures, resize={phase.resize}, size={phase.size[0]}"
        rows.append((title, drawn_batches(loader, dataset.classes, 2 * COLUMNS, dataset.pixels)))
    write_bytes_atomic(sheet, make_sheet(rows))
    say(f"augmented pictures: {sheet}")


def _report_text(found: CheckReport, datasets: Sequence[Dataset], suffix: str, pictures: int) -> str:
    """The report with every finding, in the form that the file's suffix asks for."""
    if suffix in (".html", ".htm"):
        from directdet.pages.data import DataPage, render_data

        return render_data(DataPage(found, datasets, {"command": typed(), "date": now()}, pictures=pictures))
    import io

    from directdet.common.terminal import terminal
    from directdet.data.check_report import print_report

    if suffix == ".json":
        return json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
    console = terminal(file=io.StringIO(), width=140, record=True, force_terminal=False)
    print_report(found, console, shown=None)
    return console.export_text()


@click.command()
@click.argument("data", type=PATH)
@click.option("--to", type=click.Choice(["coco", "yolo", "voc"]), required=True, help="The format to write.")
@click.option("--out", type=PATH, required=True, metavar="FOLDER", help="New, empty, or written by convert before.")
@click.option("--link", is_flag=True, help="Make symbolic links to the pictures instead of copies.")
@code_option
def convert(data: Path, to: str, out: Path, link: bool) -> int:
    """Write DATA as COCO, YOLO or VOC.

    What the format cannot hold is told, with numbers.
    """
    from directdet.data.formats.write.convert import convert

    for line in convert(data, to, out, link):
        say(f"not held by {to}: {line}")
    say(f"written: {out}")
    return 0
