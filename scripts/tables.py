"""Write docs/results.md and the table of the README from the figures in results/*.json.

    python scripts/tables.py             # write both
    python scripts/tables.py --check     # exit code 1, and the first line that differs, if they are not up to date
    python scripts/tables.py --headline  # only print the README's table

The text stands in docs/results.md.in, with these placeholders:

    {{ table: NAME }}                 a table of one of the tables_*.py
    {{ measured: FILE }}              when and on what the figures of results/FILE.json were measured
    {{ value: FILE/PATH | FORMAT }}   a single figure; tables_cells.py has the formats
    {{ figure: NAME }}                a figure of the prose that several of a file make up, see FIGURES

The README's table is written between two comments, `results: begin` and `results: end`, if it has them.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables_claims
import tables_export
import tables_full_size
import tables_papers
import tables_realtime
import tables_speed
import tables_training
from tables_cells import TableError, find, written

ROOT = Path(__file__).resolve().parents[1]
TABLES = {**tables_training.TABLES, **tables_speed.TABLES, **tables_papers.TABLES}
TABLES |= {**tables_export.TABLES, **tables_realtime.TABLES, **tables_full_size.TABLES, **tables_claims.TABLES}
FIGURES = {**tables_speed.FIGURES, **tables_training.FIGURES, **tables_papers.FIGURES}
TEMPLATE, PAGE, README = "docs/results.md.in", "docs/results.md", "README.md"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->"
NOTE = f"<!-- Written by scripts/tables.py from {TEMPLATE} and results/*.json: change those, not this file. -->\n\n"
LIBRARIES = ("torch", "torchvision", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt_rtx", "tensorrt-rtx", "av")
LIBRARIES += ("hotcoco", "pycocotools")


class Results:
    """The files of results/ by name, without their ending; `used` remembers which were asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.used: set[str] = set()

    def read(self, name: str) -> Any:
        """The content of a file; TableError if there is none."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            raise TableError(f"results/{name}.json: there is no such file")
        self.used.add(name)
        return json.loads(path.read_text(encoding="utf-8"))

    def unused(self) -> list[str]:
        """The files that nothing has asked for."""
        return sorted(path.name for path in self.folder.glob("*.json") if path.stem not in self.used)


def table(results: Results, name: str) -> str:
    """A table in Markdown."""
    if name not in TABLES:
        raise TableError(f"there is no table of that name, but {', '.join(TABLES)}")
    files = TABLES[name].files
    try:
        return TABLES[name].markdown([results.read(file) for file in files])
    except KeyError as error:
        raise TableError(f"{' or '.join(f'results/{file}.json' for file in files)}: there is no {error}") from None


def value(results: Results, argument: str) -> str:
    """A single figure, from "FILE/PATH | FORMAT"."""
    place, _, how = (part.strip() for part in argument.partition("|"))
    file, _, path = place.partition("/")
    return written(find(results.read(file), path), how)


def figure(results: Results, name: str) -> str:
    """A figure that several figures of a file make up."""
    if name not in FIGURES:
        raise TableError(f"there is no figure of that name, but {', '.join(FIGURES)}")
    file, made = FIGURES[name]
    return made(results.read(file))


def measured(results: Results, name: str) -> str:
    """A line that says when and on what a file's figures were measured, as the file tells."""
    content = results.read(name)
    about = content.get("about", content)
    where = machine(about["hardware"]) if "hardware" in about else find(about, "source")
    parts = [find(about, "date")[:10], where]
    versions = about.get("versions", {})
    python = [f"Python {versions['python']}"] if "python" in versions else []
    libraries = [f"{name} {versions[name]}" for name in LIBRARIES if versions.get(name)]
    parts += [", ".join(python + libraries)] if python + libraries else []
    return f"*{'; '.join(parts)}. All figures: `results/{name}.json`.*"


def machine(hardware: dict[str, Any]) -> str:
    """A machine in words."""
    cores = hardware["cores_usable"]
    cpu = f"{cores} core{'s' if cores != 1 else ''} of {hardware['cpu']}"
    return f"{hardware['gpu']['name']}, {cpu}" if hardware["gpu"] else f"{cpu}, no GPU"


PLACEHOLDERS: dict[str, Callable[[Results, str], str]] = {
    "table": table,
    "measured": measured,
    "value": value,
    "figure": figure,
}


def filled(template: str, results: Results) -> str:
    """The template with every placeholder replaced; TableError names the one that cannot be."""

    def replaced(match: re.Match[str]) -> str:
        kind, _, argument = (part.strip() for part in match[1].partition(":"))
        if kind not in PLACEHOLDERS:
            raise TableError(f"{TEMPLATE}: {match[0]}: write one of {', '.join(PLACEHOLDERS)} before the colon")
        try:
            return PLACEHOLDERS[kind](results, argument)
        except TableError as error:
            raise TableError(f"{TEMPLATE}: {match[0]}: {error}") from None

    return NOTE + re.sub(r"\{\{(.*?)\}\}", replaced, template)


def with_headline(readme: str, results: Results) -> str:
    """The README with its table, or as it is where it has no place for one."""
    if BEGIN not in readme or END not in readme:
        return readme
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}{table(results, 'headline')}\n{END}{rest.partition(END)[2]}"


def pages(root: Path) -> dict[str, str]:
    """What each page ought to hold, by its path. TableError also for a file of results/ that no page shows."""
    results = Results(root / "results")
    made = {PAGE: filled((root / TEMPLATE).read_text(encoding="utf-8"), results)}
    if (root / README).is_file():
        made[README] = with_headline((root / README).read_text(encoding="utf-8"), results)
    if unused := results.unused():
        raise TableError(f"results/{unused[0]}: no table or text shows it; name it in {TEMPLATE}")
    return made


def first_difference(path: str, there: str, wanted: str) -> str | None:
    """One line about the first line that differs, or None."""
    lines, expected = there.split("\n"), wanted.split("\n")
    for number in range(max(len(lines), len(expected))):
        ours, theirs = ("".join(one[number : number + 1]) for one in (lines, expected))
        if ours != theirs or number >= min(len(lines), len(expected)):
            return f"{path}:{number + 1}: has {ours!r}, results/ say {theirs!r}; run python scripts/tables.py"
    return None


def check(root: Path, made: dict[str, str]) -> int:
    """Exit code 1 if a page differs from what it ought to be."""
    for path, wanted in made.items():
        there = (root / path).read_text(encoding="utf-8") if (root / path).is_file() else ""
        if difference := first_difference(path, there, wanted):
            print(difference, file=sys.stderr)
            return 1
    return 0


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="only compare; exit code 1 if a page differs")
    options.add_argument("--headline", action="store_true", help="only print the README's table")
    given = options.parse_args(arguments)
    try:
        if given.headline:
            print(table(Results(root / "results"), "headline"))
            return 0
        made = pages(root)
    except TableError as error:
        print(error, file=sys.stderr)
        return 1
    if given.check:
        return check(root, made)
    for path, text in made.items():
        (root / path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
