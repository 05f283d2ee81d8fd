"""The verbs about datasets: check-data and convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from directdet.front.options import PATH, Number, code_option, overlap_option, settings_option
from directdet.front.say import now, say, typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from directdet.data.checks.report import CheckReport
    from directdet.data.checks.seen import Seen
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
@click.option("--recipe", metavar="RECIPE", help="Say how large the objects are to training RECIPE.")
@click.option("--augmented", metavar="RECIPE", help="Draw the pictures that training RECIPE would see.")
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
    augmented: str | None,
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

    if recipe and augmented and recipe != augmented:
        raise click.UsageError("--recipe and --augmented name two recipes; give one after the other")
    name = recipe or augmented
    if settings and name is None:
        raise click.UsageError("--set changes the recipe of --recipe or --augmented; give both")
    if report is not None:
        require_writable(report)
    chosen = None
    if name is not None:
        from directdet.recipes.by_name import get_recipe
        from directdet.recipes.settings import apply_settings

        if augmented is not None:
            require_writable(sheet)
        chosen = apply_settings(get_recipe(name), list(settings))
    found, datasets = examine_data(data, splits or None, verify_images=images)
    print_report(found)
    seen = _sizes(chosen, datasets) if chosen is not None and recipe is not None else []
    for phase in seen:
        say(phase.in_words())
    if report is not None:
        suffix = report.suffix.lower()
        page = suffix in (".html", ".htm")
        text = _page(found, datasets, recipe or "", seen, pictures) if page else _report_text(found, suffix, seen)
        write_text_atomic(report, text)
        say(f"report: {report}")
    if chosen is not None and augmented is not None:
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
    from directdet.train.data import load_splits, make_phase_loader
    from directdet.train.objects import fitted

    dataset, _ = load_splits(data, recipe.data_fraction)
    recipe, _ = fitted(recipe, dataset)
    rows = []
    for phase in recipe.phases:
        loader = make_phase_loader(replace(phase, workers=0), dataset, dataset.has_masks, 0, False)
        title = f"{recipe.name}, {phase.name}: {loader.images} pictures, resize={phase.resize}, size={phase.size[0]}"
        classes = (*dataset.classes, "background")  # which montages hold pieces of
        rows.append((title, drawn_batches(loader, classes, 2 * COLUMNS, dataset.pixels)))
    write_bytes_atomic(sheet, make_sheet(rows))
    say(f"augmented pictures: {sheet}")


def _sizes(recipe: Recipe, datasets: Sequence[Dataset]) -> list[Seen]:
    """How large the objects of the train split are to each phase of a recipe; nothing without that split."""
    from directdet.data.checks.seen import Seen
    from directdet.train.objects import fitted, possible_objects, usual_sides

    train = next((dataset for dataset in datasets if dataset.split == "train"), None)
    if train is None:
        return []
    recipe, _ = fitted(recipe, train)
    found: list[Seen] = []
    for phase in recipe.phases:
        count = possible_objects(phase, train)
        size = phase.size if phase.resize == "edges" else phase.size[:1]
        name = f"{phase.name} ({phase.resize}, {' and '.join(map(str, size))})"
        found.append(Seen(name, usual_sides(phase, train), count.objects - count.seen, count.difficult))
    return found


def _page(found: CheckReport, datasets: Sequence[Dataset], recipe: str, seen: Sequence[Seen], pictures: int) -> str:
    """The report as a page with pictures."""
    from directdet.pages.data import DataPage, render_data

    return render_data(DataPage(found, datasets, {"command": typed(), "date": now()}, recipe, seen, pictures))


def _report_text(found: CheckReport, suffix: str, seen: Sequence[Seen]) -> str:
    """The report with every finding as JSON or as plain text."""
    import io

    from directdet.common.terminal import terminal
    from directdet.data.check_report import print_report

    if suffix == ".json":
        content = {**found.to_dict(), "training": [phase.to_dict() for phase in seen]}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    console = terminal(file=io.StringIO(), width=140, record=True, force_terminal=False)
    print_report(found, console, shown=None)
    for phase in seen:
        console.print(phase.in_words(), highlight=False, markup=False, soft_wrap=True)
    return console.export_text()


@click.command()
@click.argument("data", type=PATH)
@click.option(
    "--to", type=click.Choice(["coco", "yolo", "voc", "shards", "parquet"]), required=True, help="The format to write."
)
@click.option("--out", type=PATH, required=True, metavar="FOLDER", help="New, empty, or written by convert before.")
@click.option("--link", is_flag=True, help="Make symbolic links to the pictures instead of copies.")
@click.option(
    "--shard-mb",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="N",
    help="Million bytes of a file, with --to shards or parquet.",
)
@click.option("--tiles", type=click.IntRange(min=16), metavar="PIXELS", help="coco: cut larger pictures into tiles.")
@overlap_option
@click.option("--visible", type=Number(0, 1, min_open=True), help="Of an object in its tile, a share.  [default: 0.5]")
@code_option
def convert(
    data: Path,
    to: str,
    out: Path,
    link: bool,
    shard_mb: int,
    tiles: int | None,
    overlap: float | None,
    visible: float | None,
) -> int:
    """Write DATA as COCO, YOLO, VOC, shards or Parquet.

    Shards are tar files that hold the pictures, as Parquet files do. What the format cannot hold is told, with numbers.
    """
    if tiles is None and (overlap is not None or visible is not None):
        raise click.UsageError("--overlap and --visible are those of tiles; give --tiles, too")
    from directdet.data.formats.write.convert import convert
    from directdet.data.formats.write.tiles import Cutting

    given = {name: value for name, value in (("overlap", overlap), ("visible", visible)) if value is not None}
    cutting = None if tiles is None else Cutting(tiles, **given)
    for line in convert(data, to, out, link, cutting, shard_mb, say):
        say(f"not held by {to}: {line}")
    say(f"written: {out}")
    return 0
