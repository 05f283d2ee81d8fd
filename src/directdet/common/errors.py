"""The exceptions shown to users of directdet; all derive from `UserError`."""


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
