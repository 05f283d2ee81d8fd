"""Lines of the command line, whatever the names in them hold."""

from __future__ import annotations

import click

from directdet.common.text import shown


def say(text: str, label: str = "", colour: str = "red", error: bool = False) -> None:
    """Print one line, on stderr if ``error``, after a coloured label such as "error:"."""
    start = click.style(label, fg=colour, bold=colour == "red") + " " if label else ""
    click.echo(start + shown(text), err=error)
