"""Text from users on a terminal: printed as it is, and never obeyed."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import directdet
from directdet.common.files import write_json_atomic
from directdet.common.terminal import plain, terminal, verdict
from directdet.common.text import shown

AS_THEY_ARE = [
    "bolt",
    "bolt [M8]",
    "[/hex]",
    "[red]",
    "[bold]x[/bold]",
    ":car:",
    "a\\[b",
    "Größe 3½",
    "螺栓",
    "می‌خواهم",
    "👩‍🔧",
]
ESCAPED = {
    "\x1b[31mred": "\\x1b[31mred",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x9b2J": "\\x9b2J",
    "a\nb\tc\rd": "a\\nb\\tc\\rd",
    "caf\udce9": "caf\\udce9",
    "a\u202eb\u2028": "a\\u202eb\\u2028",
    "\0": "\\x00",
}


@pytest.mark.parametrize("text", AS_THEY_ARE)
def test_ordinary_text_stays_as_it_is(text):
    assert shown(text) == text


@pytest.mark.parametrize(("text", "expected"), ESCAPED.items())
def test_what_a_terminal_would_obey_is_escaped(text, expected):
    assert shown(text) == expected and shown(expected) == expected
    assert shown(text, keep="\n") == expected.replace("\\n", "\n")


@pytest.mark.parametrize("text", [*AS_THEY_ARE, *ESCAPED])
@pytest.mark.parametrize("console", ["ours", "any"])
def test_tables_and_lines_show_text_as_it_is(text, console):
    stream = io.StringIO()
    ours = console == "ours"
    printer = terminal(file=stream, width=100) if ours else Console(file=stream, width=100)
    cell = text if ours else plain(text)
    table = Table("name", title=plain(text))
    table.add_row(cell)
    printer.print(table)
    printer.print(cell)
    expected = (
        shown(text).split("\\n") if ours else [shown(text)]
    )  # ours leaves line breaks to messages of several lines
    assert all(stream.getvalue().count(part) >= 2 for part in expected)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", stream.getvalue())


def test_our_own_words_keep_their_colours():
    stream = io.StringIO()
    terminal(file=stream, force_terminal=True, color_system="standard").print(verdict(True), verdict(False))
    assert "\x1b[1;32mPASS" in stream.getvalue() and "\x1b[1;31mFAIL" in stream.getvalue()


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    file = write_json_atomic(tmp_path / "a.json", {"file": "caf\udce9"})
    assert json.loads(file.read_text("utf-8")) == {"file": "caf\udce9"}


def test_all_printing_goes_through_these():
    package = Path(directdet.__file__).parent
    for path in package.rglob("*.py"):
        code, name = path.read_text("utf-8"), path.relative_to(package).as_posix()
        if name != "common/terminal.py":
            assert not re.search(r"\bConsole\(", code), f"{name}: terminal() prints names as they are"
        if name not in ("front/say.py", "front/cli.py"):
            assert "click.echo" not in code, f"{name}: say() prints names as they are"
        assert not re.search(r"\[(bold|dim|red|green|yellow)|\[/\]", code), f"{name}: markup is off; style with Text"
