"""The command line: `directdet VERB ...`, its errors in one line and its exit codes.

Exit codes: 0 done, 1 failed or a check did not pass, 2 wrong usage, 130 stopped by Ctrl-C, 129 and 143 by SIGHUP and
SIGTERM. A mistake of the user ends in one line on stderr; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import sys
from collections.abc import Sequence

import click

from directdet import __version__
from directdet.common.errors import Stopped, UserError
from directdet.common.text import shown
from directdet.data.picture_size import tell_opencv

_STOPPED = 130  # what shells report for Ctrl-C
# Errors of the operating system that concern the user's disk and paths rather than this code.
_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
_DISK_ERRORS += (errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.EISDIR, errno.EMFILE, errno.ENFILE, errno.ESTALE)

# What neighbours call a verb of ours.
ELSEWHERE = {"predict": "infer", "detect": "infer", "track": "infer", "val": "eval", "test": "eval", "validate": "eval"}
ELSEWHERE |= {"evaluate": "eval", "fit": "train", "finetune": "train --phase finetune", "models": "recipes"}

# What `directdet` alone prints.
JOB = """directdet: object detectors trained from scratch, deployed in real time

In the order of a job:

  directdet check-data DATA                      what is in it, what is broken
  directdet recipes                              which to train
  directdet train RECIPE --data DATA --out RUN   to go on: train --resume RUN
  directdet eval RUN --report DIR                AP, and where it errs
  directdet export RUN --out ARTEFACT            verified: PASS or FAIL
  directdet infer ARTEFACT photos/ --out found   pictures, a video, a camera
  directdet benchmark RUN ARTEFACT --data DATA   speed and AP of the same files

No data yet: `directdet demo --out demo` runs the whole chain on made-up data.
All commands: `directdet --help`; more about one: `directdet train --help`."""


class Verbs(click.Group):
    """A group that lists its commands in the order of the work and suggests the nearest name for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands as they were defined."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest one, which older releases of click do not."""
        name = args[0]
        if name in ELSEWHERE:
            raise click.UsageError(f"no command {name!r}; here it is {ELSEWHERE[name]!r}", ctx)
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.commands, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.commands)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def directdet() -> None:
    """Train object detectors from scratch, export them verified, and run them in real time.

    DATA is a folder of COCO, YOLO, VOC, Roboflow, CVAT, Label Studio, labelme, Open Images, Hugging Face, Parquet or
    shards, or one with a dataset.toml. MODEL is a run folder, a checkpoint or an exported artefact. `directdet demo`
    shows the whole chain and needs no files.
    """


def add_verbs(group: click.Group) -> None:
    """Add the verbs in the order of the work."""
    from directdet.front.commands.data import check_data, convert
    from directdet.front.commands.demo import demo
    from directdet.front.commands.deployment import export, infer
    from directdet.front.commands.measuring import benchmark, evaluate
    from directdet.front.commands.papers import landscape, reproduce
    from directdet.front.commands.serving import serve
    from directdet.front.commands.submission import submit
    from directdet.front.commands.training import plan, recipes, self_train, train

    for command in (
        demo, recipes, plan, check_data, convert, train, self_train, evaluate, submit, export, infer, serve, benchmark,
        reproduce, landscape,
    ):  # fmt: skip
        group.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    tell_opencv()
    add_verbs(directdet)
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding does not have is shown as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Not standalone: click would print usage and hint on lines of their own, and say "Aborted!".
        result = directdet.main(None if arguments is None else list(arguments), "directdet", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(JOB, err=True)
        return error.exit_code
    except click.UsageError as error:
        return _complain(_usage_line(error), error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ if isinstance(error, click.Abort) else error  # click makes an Abort of Ctrl-C
        stopped = isinstance(cause, Stopped)
        click.echo(f"{_who()}{cause if stopped else 'stopped'}", err=True)
        return cause.exit_code if stopped else _STOPPED
    except UserError as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:  # e.g. `directdet recipes | head -1`: the reader is gone, nobody waits for the rest
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _DISK_ERRORS or error.filename is None:
            raise
        return _complain(f"{os.fsdecode(error.filename)}: {error.strerror}", 1)


def _complain(message: str, code: int) -> int:
    """Print one line on stderr, whatever the message holds."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    click.echo(_who() + click.style("error:", fg="red", bold=True) + f" {shown(line)}", err=True)
    return code


def _who() -> str:
    """Which process this is, if torchrun started several and it is not the main one, as most errors occur in all."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    number = os.environ.get("RANK", "0")
    return f"[rank {number}] " if several and number != "0" else ""


def _usage_line(error: click.UsageError) -> str:
    """The message with where to read more; click's own texts end in a full stop or a question mark."""
    command = error.ctx.command_path if error.ctx is not None else "directdet"
    message = error.format_message().rstrip(".")
    return f"{message} (see {command} --help)"


if __name__ == "__main__":
    sys.exit(main())
