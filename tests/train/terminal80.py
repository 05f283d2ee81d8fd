"""A real terminal of 80 columns for a command, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COLUMNS = 80
PATIENCE = 240.0
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Seen:
    """The exit code, everything that was written, and the lines that stay on the screen."""

    code: int
    raw: str
    lines: list[str]

    def drawn(self) -> list[str]:
        """Every state that a line ever had, without colours."""
        return [_ESCAPE.sub("", part) for line in self.raw.split("\n") for part in line.split("\r") if part]


def in_a_terminal(words: Sequence[str], type_when: Callable[[str], bool] | None = None, typed: str = "\x03") -> Seen:
    """Run `python -m directdet WORDS` in it; `typed` is typed once `type_when` is true of what was written."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "directdet", *words],
        stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(its)
    written, limit = b"", time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
        if type_when is not None and type_when(written.decode("utf-8", "replace")):
            os.write(ours, typed.encode())
            type_when = None
    code = process.wait(timeout=PATIENCE)
    os.close(ours)
    raw = written.decode("utf-8", "replace").replace("\r\n", "\n")
    return Seen(code, raw, [_last(line) for line in raw.split("\n")])


def _last(line: str) -> str:
    """What is left of a line that was drawn again and again."""
    states = [state for part in line.split("\r") if (state := _ESCAPE.sub("", part))]
    return states[-1] if states else ""
