"""The data that a run was trained on, for commands that are given its folder and no --data."""

from __future__ import annotations

from pathlib import Path

from directdet.common.errors import UserError
from directdet.common.urls import shown, url_of
from directdet.front.say import say


def known_data(data: str | None, out: Path) -> Path:
    """The data of a run that goes on.

    Raises:
        UserError: its file does not say, or the data is not there any more.
    """
    if data is None:
        raise UserError(f"{out}: does not say which data it was started on; give --data DATA")
    return _there(Path(data), out)


def data_of(model: Path, needed: bool = True) -> Path | None:
    """The data of a run folder, which is said; None for any other model.

    Args:
        needed: whether it is an error if the data is not there any more; otherwise it is said, and None comes back.

    Raises:
        UserError: it is needed and not there, or run.json is damaged.
    """
    if not (model / "run.json").is_file() and not any(model.glob("*/run.json")):  # before torch is imported
        return None
    from directdet.train.run_file import data_of_run

    found = data_of_run(model)
    if found is None:
        return None
    file, data = found
    try:
        path = _there(Path(data), file)
    except UserError as error:
        if needed:
            raise
        say(f"{error}; goes on without", "note:", "yellow", error=True)
        return None
    say(f"data: {shown(path)}, of the run", error=True)
    return path


def _there(data: Path, where: Path) -> Path:
    if url_of(data) is None and not data.exists():
        raise UserError(f"{where}: data: {data}: was moved or deleted; give --data DATA")
    return data
