"""The verb about datasets: check-data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from directdet.front.options import PATH
from directdet.front.say import say

if TYPE_CHECKING:
    from directdet.data.check import CheckReport


@click.command("check-data")
@click.argument("data", type=PATH)
@click.option("--report", type=PATH, metavar="FILE", help="Write all findings: .json, .html, or else plain text.")
@click.option("--split", "splits", multiple=True, help="Only this split (may be given again).  [default: all]")
@click.option("--images/--no-images", default=True, show_default=True, help="Open and decode every picture.")
def check_data(data: Path, report: Path | None, splits: tuple[str, ...], images: bool) -> int:
    """Check a dataset before time is spent on it.

    Exit code 1 if it cannot be used (missing or broken files, splits that do not match) or if training would leave
    objects out because their boxes are not valid.
    """
    from directdet.common.files import require_writable, write_text_atomic
    from directdet.data.check import check_data
    from directdet.data.check_report import print_report

    if report is not None:
        require_writable(report)
    found = check_data(data, splits or None, verify_images=images)
    print_report(found)
    if report is not None:
        write_text_atomic(report, _report_text(found, report.suffix.lower()))
        say(f"report: {report}")
    if found.dropped:
        first, more = found.dropped[0], len(found.dropped) - 1
        others = f" (and {more} more)" if more else ""
        say(
            f"error: {first.file}: annotation {first.annotation_id}: {first.message}{others}; training would leave it "
            "out: correct or remove it",
            error=True,
        )
    return int(found.fatal or bool(found.dropped))


def _report_text(found: CheckReport, suffix: str) -> str:
    """The report with every finding, in the form that the file's suffix asks for."""
    import io

    from directdet.common.terminal import terminal
    from directdet.data.check_report import print_report

    if suffix == ".json":
        return json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
    console = terminal(file=io.StringIO(), width=140, record=True, force_terminal=False)
    print_report(found, console, shown=None)
    return console.export_html(inline_styles=True) if suffix in (".html", ".htm") else console.export_text()
