"""A progress bar that is shown on a terminal but not written to a log file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, console: Console, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar of `total` steps (None: unknown); yields a function that advances it by a number of steps."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rate = TextColumn("{task.fields[rate]}")
    hidden = not (shown and console.is_terminal)  # a bar that disappears leaves an empty line in a log file
    with Progress(*columns, rate, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(steps: int) -> None:
            if not hidden:
                speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
                bar.update(task, advance=steps, rate=f"{speed:.1f}/s" if speed else "")

        yield advance
