"""The documentation cannot drift: its commands are taken, its imports work, the front page's links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from directdet.front.cli import JOB, add_verbs, directdet, main
from directdet.reproduce.experiments import EXPERIMENTS, TIMED
from directdet.reproduce.scales import SCALES
from directdet.reproduce.timing import variants

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def written_commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `directdet` in the shell code of a page, as a shell would split them."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            starts = [place for place, word in enumerate(words) if word == "directdet" or word.endswith("/directdet")]
            if starts:
                words = words[starts[0] + 1 :]
                end = words.index("&&") if "&&" in words else len(words)
                yield [word for word in words[:end] if not word.startswith("$")]


def check(words: list[str]) -> None:
    """click.UsageError unless the command line takes these arguments; nothing is run."""
    add_verbs(directdet)
    with click.Context(directdet) as above:
        name, command, rest = directdet.resolve_command(above, list(words))
        assert command is not None
        try:
            command.make_context(name, rest, parent=above)
        except click.exceptions.Exit:  # --help, --formats: shown instead of run
            return


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken(page, monkeypatch):
    monkeypatch.setattr("directdet.common.plugins.load_code", list)  # the files that a page speaks of are not here
    for words in written_commands(page.read_text("utf-8")):
        if words and not words[0].startswith("--"):
            check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_work(page):
    for block in re.findall(r"^ *```python[^\n]*\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^from directdet.*$", block, re.MULTILINE):
            exec(line, {})


def test_the_page_of_the_papers_lists_every_comparison():
    """Their names, and how many rows each has."""
    page = (ROOT / "docs" / "papers.md").read_text("utf-8")
    listed = re.findall(r"^\| `((?:direct|scratchdet)/[^`]+)` \|.*\| (\d+) \|$", page, re.MULTILINE)
    rows = {name: len(one.trials(SCALES["tiny"])) for name, one in EXPERIMENTS.items()}
    assert list(TIMED) == ["direct/table7"]
    rows["direct/table7"] = len(variants(SCALES["tiny"]))
    assert len(listed) == len(rows) and {name: int(count) for name, count in listed} == rows


def test_what_directdet_alone_prints_is_taken(capsys):
    assert main([]) == 2
    text = capsys.readouterr().err
    assert text == JOB + "\n" and max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) <= 24
    commands = [re.split(r" {2,}", line.strip())[0] for line in text.splitlines() if line.startswith("  directdet")]
    commands += re.findall(r"`(directdet [^`]*)`", text)
    assert len(commands) == 10
    for command in commands:
        if command != "directdet --help":
            check(shlex.split(command)[1:])


def test_the_check_sees_what_is_wrong():
    text = "```sh\n.venv/bin/directdet demo --out x && echo\ndirectdet train R --data D \\\n    --out O  # why\n```\n"
    assert list(written_commands(text)) == [["demo", "--out", "x"], ["train", "R", "--data", "D", "--out", "O"]]
    for wrong in (["demo", "--outt", "x"], ["train", "R", "--data", "D"], ["trian"], ["export", "R", "--size", "1"]):
        with pytest.raises(click.UsageError):
            check(wrong)


def test_the_front_page_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 160
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", FENCED.sub("", text))
    assert len(links) > 15
    for target, anchor in links:
        path = ROOT / target
        assert path.is_file(), target
        if anchor:
            assert anchor in anchors(path)


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
