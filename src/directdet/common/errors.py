"""The exceptions shown to users of directdet: those that derive from `UserError`, and `Stopped`."""

import signal


class UserError(Exception):
    """A mistake the user can correct: a missing file, a broken annotation, a mistyped name.

    The message is one line of the form ``file: field: what is wrong; what to do``. The command line prints it without a
    traceback and exits with code 1. The single argument lets it be pickled between processes.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class UsageProblem(UserError):
    """A mistake in how a command was called, found only after the command line was parsed: exit code 2."""

    exit_code = 2


class MissingLibraryError(UserError):
    """A library that the requested runtime or format needs is not installed."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or another signal to stop, with what became of the work.

    Args:
        number: of the signal.
        where: "at step 10", or nothing.
        saved: the file to go on from, if there is one.
    """

    def __init__(self, number: int, where: str = "", saved: str = "") -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        parts = [f"stopped by {name} {where}".rstrip(), f"saved: {saved}" if saved else ""]
        super().__init__("; ".join(filter(None, parts)))
        self.number, self.where, self.saved = number, where, saved

    @property
    def exit_code(self) -> int:
        """What shells report for a process that the signal ended."""
        return 128 + self.number
