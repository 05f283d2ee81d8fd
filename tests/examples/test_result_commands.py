"""Every command that docs/results.md prints is one that exists, with options, recipes and settings that exist."""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from directdet.front.cli import add_verbs, directdet
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.settings import apply_settings
from directdet.reproduce.experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def shell_lines(text: str) -> list[str]:
    """The commands of a block: continued lines joined, variables of the block put in, comments left out."""
    variables: dict[str, str] = {}
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = assigned[2]
        elif line.strip():
            found.append(re.sub(r"\$(\w+)", lambda match: variables[match[1]], line))
    return found


def printed_commands(page: str) -> list[list[str]]:
    """The words of every command of the page, in its blocks and in its sentences."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    inline = re.findall(
        r"`((?:directdet|python|reproduce) [^`]+)`", re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
    )
    lines = [line for block in blocks for line in shell_lines(block)]
    lines += [f"directdet {line}" if line.startswith("reproduce ") else line for line in inline]
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = printed_commands(PAGE)
OURS = [words for words in COMMANDS if words[0] == "directdet"]
SCRIPTS = [words for words in COMMANDS if words[0] == "python"]


def parsed(words: list[str]) -> tuple[click.Command, dict]:
    """The command and what it makes of its options; click.UsageError where it does not know them."""
    add_verbs(directdet)
    command = directdet.commands.get(words[1])
    if command is None:
        raise click.UsageError(f"no command {words[1]}")
    arguments = words[2:]
    if len(arguments) < len([one for one in command.params if isinstance(one, click.Argument) and one.required]):
        arguments = []  # a command's name in a sentence
    context = click.Context(command, info_name=words[1])
    return command, command.make_parser(context).parse_args(list(arguments))[0]


def options_of(script: Path) -> set[str]:
    """What a script, and those that it imports from its folder, hand to add_argument."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            found |= {one.value for one in node.args if isinstance(one, ast.Constant)}
        if isinstance(node, ast.ImportFrom) and (script.parent / f"{node.module}.py").is_file():
            found |= options_of(script.parent / f"{node.module}.py")
    return found


def named(words: list[str]) -> str:
    return " ".join(words)[:60]


def test_there_are_as_many_as_the_page_prints():
    assert len(OURS) >= 20 and len(SCRIPTS) >= 7
    assert sum(words[1] == "train" for words in OURS) >= 4


@pytest.mark.parametrize("words", OURS, ids=named)
def test_a_command_exists_with_its_options(words):
    _, given = parsed(words)
    if words[1] == "train" and given.get("recipe", "NAME") in RECIPES:
        apply_settings(get_recipe(given["recipe"]), given.get("settings") or [])
    if words[1] == "reproduce" and len(words) > 2:
        assert words[2] in (*EXPERIMENTS, "direct/table7")  # which is no training, and has a function of its own


@pytest.mark.parametrize("words", SCRIPTS, ids=named)
def test_a_script_exists_with_its_options(words):
    script = ROOT / words[1]
    assert script.is_file()
    assert {word for word in words if word.startswith("--")} <= options_of(script)


@pytest.mark.parametrize(
    "line",
    [
        "directdet trian mask_rcnn_r18_slim --data DATA --out RUN",
        "directdet train mask_rcnn_r18_slim --dat DATA --out RUN",
        "directdet benchmark RUN ARTEFACT --data DATA --colour red",
    ],
)
def test_a_command_that_does_not_exist_is_found(line):
    with pytest.raises(click.UsageError):
        parsed(shlex.split(line))


def test_an_option_that_a_script_does_not_have_is_found():
    assert "--only" in options_of(ROOT / "scripts" / "speed.py") and "--rounds" in options_of(
        ROOT / "scripts" / "speed.py"
    )
    assert "--onyl" not in options_of(ROOT / "scripts" / "speed.py")


def expanded(pattern: str) -> list[str]:
    """Every name of a shell's braces: a{b,c}{,d} is ab, abd, ac and acd."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in match[1].split(",") for name in expanded(before + choice + after)]


def test_every_recipe_of_the_papers_table_exists():
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ") and "|" in line]
    start = next(number for number, row in enumerate(rows) if row[1].strip() == "table") + 2
    patterns = [pattern for row in rows[start : start + 14] for pattern in re.findall(r"`([^`]+)`", row[2])]
    names = {name for pattern in patterns for name in expanded(pattern)}
    assert len(names) > 60 and names - set(RECIPES) == set()
