"""Options, types of options and checks that several verbs share. The choices come from the rooms that know them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from directdet.common.devices import device_name, no_device
from directdet.front.say import say
from directdet.infer.runtimes.names import MOST_THREADS, PRECISIONS, TITLES

PATH = click.Path(path_type=Path)  # existence is checked where files are read: there the error can say more
# Every precision that some runtime can be asked to compute in.
PRECISION = click.Choice(list(dict.fromkeys(name for names in PRECISIONS.values() for name in names if name)))
RUNTIME = click.Choice(list(TITLES))


class Size(click.ParamType):
    """H,W in pixels."""

    name = "H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(height, width) from "H,W"."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        numbers = [_whole(part) for part in parts]
        if len(numbers) != 2 or not all(numbers):
            self.fail(f"{value!r} is not a size; give height and width in pixels, as 448,448", param, ctx)
        return numbers[0], numbers[1]


class Minutes(click.ParamType):
    """A time such as 90s, 20m or 2h, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds from "20m"."""
        if isinstance(value, float):
            return value
        units = {"s": 1.0, "m": 60.0, "h": 3600.0}
        try:
            seconds = float(value[:-1]) * units[value[-1]]
        except (KeyError, ValueError, IndexError):
            seconds = 0.0
        if not 0 < seconds < 1e9:
            self.fail(f"{value!r} is not a time; write it as 90s, 20m or 2h", param, ctx)
        return seconds


class Numbers(click.ParamType):
    """Whole numbers, as 224,320."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """A tuple from "224,320"."""
        if isinstance(value, tuple):
            return value
        numbers = tuple(_whole(part) for part in str(value).split(","))
        if not all(numbers):
            self.fail(f"{value!r} is not a list of whole numbers such as 224,320", param, ctx)
        return numbers


class Scales(click.ParamType):
    """Positive numbers, as 0.8,1,1.2."""

    name = "X,X,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """A tuple from "0.8,1,1.2"."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.8,1,1.2", param, ctx)


class Names(click.ParamType):
    """Names, as person,car; an empty one is refused, since it mostly comes from a variable that is not set."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """A tuple from "person,car"."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name; give one or several, as a,b", param, ctx)
        return names


class Number(click.FloatRange):
    """A `click.FloatRange` that refuses nan and inf, which click lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A finite number in the range."""
        number = float(click.FLOAT.convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return float(super().convert(number, param, ctx))


class Device(click.ParamType):
    """auto, cpu, cuda, cuda:N, or N alone for the GPU of that number; and what else a runtime has."""

    name = "auto|cpu|cuda|N"

    def __init__(self, *others: str) -> None:
        self._others = others

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The device as torch names it, or auto."""
        name = device_name(value, *self._others)
        if name is None:
            self.fail(no_device(value), param, ctx)
        return name


def _whole(text: str) -> int:
    """The number of a text; 0 if it is none, or has more than nine digits."""
    return int(text) if re.fullmatch(r"\s*\d{1,9}\s*", text) else 0


def check_settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A click callback: every --set has a key and a value."""
    for value in values:
        key, sign, _ = value.partition("=")
        if not sign or not key.strip():
            raise click.BadParameter(f"{value!r}: expected key=value", ctx, param)
    return values


def _load_code(ctx: click.Context, param: click.Parameter, files: tuple[Path, ...]) -> None:
    """A click callback: run the user's own files, whose backbones, detectors and recipes are then known by name."""
    if files and not ctx.resilient_parsing:
        from directdet.common.plugins import load_code

        load_code(files)


code_option = click.option(
    "--code",
    type=PATH,
    multiple=True,
    metavar="FILE",
    expose_value=False,
    callback=_load_code,
    help="A Python file with a backbone, detector, recipe or logger of your own.",
)
data_option = click.option("--data", "data", type=PATH, required=True, metavar="DATA", help="Dataset folder.")
split_option = click.option("--split", default="val", show_default=True, help="Split of the dataset.")
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=check_settings, help="Change a setting."
)
seed_option = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
_DEVICE_HELP = "auto, cpu, cuda, or a GPU's number."
torch_device_option = click.option("--device", type=Device(), default="auto", show_default=True, help=_DEVICE_HELP)
# Of a runtime; OpenVINO has a gpu that is none of CUDA's.
device_option = click.option("--device", type=Device("gpu"), default="auto", show_default=True, help=_DEVICE_HELP)
tiles_option = click.option(
    "--tiles", type=click.IntRange(min=16), metavar="PIXELS", help="Larger pictures: detect in tiles of this side, too."
)
overlap_option = click.option(
    "--overlap", type=Number(0, 0.9), help="Of neighbouring tiles, a share of their side.  [default: 0.25]"
)
scales_option = click.option(
    "--scales", type=Scales(), help="Detect at these scales of MODEL's size and put together; a run or checkpoint."
)
flip_option = click.option("--flip", is_flag=True, help="Detect in mirrored pictures, too.")
score_option = click.option(
    "--score", type=Number(0, 1), help="Leave out lower scores.  [default: what its export found best, or 0.3]"
)
runtime_option = click.option(
    "--runtime", type=click.Choice(["auto", *RUNTIME.choices]), default="auto", show_default=True
)
threads_option = click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads of the runtime.")
precision_option = click.option(
    "--precision", type=PRECISION, help="fp32 (default); tf32 on a GPU; OpenVINO and torch also bf16, fp16."
)


def require_one_process(verb: str) -> None:
    """UsageError where torchrun started several processes: each would do and write all of the work."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError(f"{verb} runs in one process; call it without torchrun")


def print_failures(failures: Sequence[str]) -> None:
    """What a benchmark could not measure, one line each on stderr: its tables may go to a file."""
    for line in failures:
        say(line, "failed:", error=True)
