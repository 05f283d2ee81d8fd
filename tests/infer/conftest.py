"""Fixtures of the infer tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def edit_meta() -> Callable[..., None]:
    """Change fields of an artefact's meta.json; None removes one."""

    def edit(folder: Path, **changes: object) -> None:
        meta = json.loads((folder / "meta.json").read_text()) | changes
        (folder / "meta.json").write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))

    return edit
