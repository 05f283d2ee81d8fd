"""Options and checks that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path

import click

PATH = click.Path(path_type=Path)  # existence is checked where files are read: there the error can say more
data_option = click.option("--data", "data", type=PATH, required=True, metavar="DATA", help="Dataset folder.")


def check_settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A click callback: every --set has a key and a value."""
    for value in values:
        key, sign, _ = value.partition("=")
        if not sign or not key.strip():
            raise click.BadParameter(f"{value!r}: expected key=value", ctx, param)
    return values


def require_one_process(verb: str) -> None:
    """UsageError where torchrun started several processes: each would do, and write, the whole of it."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError(f"{verb} runs in one process; call it without torchrun")
