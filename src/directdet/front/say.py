"""Lines of the command line, whatever the names in them hold."""

from __future__ import annotations

import datetime
import shlex
import sys

import click

from directdet.common.text import shown


def say(text: str, label: str = "", colour: str = "red", error: bool = False) -> None:
    """Print one line, on stderr if ``error``, after a coloured label such as "error:"."""
    start = click.style(label, fg=colour, bold=colour == "red") + " " if label else ""
    click.echo(start + shown(text), err=error)


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["directdet", *sys.argv[1:]])


def now() -> str:
    """Date, time and zone, to the minute."""
    return datetime.datetime.now().astimezone().isoformat(" ", "minutes")
