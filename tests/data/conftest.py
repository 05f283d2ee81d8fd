"""Small datasets on disk for the tests of the data room."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from directdet.data.flat import json_lists
from directdet.data.formats import coco
from directdet.data.formats.write.convert import convert
from directdet.data.synthetic import make_synthetic


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset of 12 + 4 pictures; not to be written to."""
    return make_synthetic(tmp_path_factory.mktemp("data") / "synthetic", 12, 4, seed=3)


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., Path]:
    """``write_coco(objects, width=40, height=30, **changes)`` writes a one-image train split, returns its root.

    id, image_id and category_id of ``objects`` are filled in unless given; ``changes`` replace parts of the json.
    """

    def write(objects: list[Any] | None = None, /, width: int = 40, height: int = 30, **changes: Any) -> Path:
        entries = []
        for index, entry in enumerate(objects or []):
            defaults = {"id": index + 1, "image_id": 7, "category_id": 3}
            entries.append({**defaults, **entry} if isinstance(entry, dict) else entry)
        content = {
            "images": [{"id": 7, "file_name": "a.png", "width": width, "height": height}],
            "annotations": entries,
            "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
            **changes,
        }
        write_image(tmp_path / "train2017" / "a.png", height, width)
        file = tmp_path / "annotations" / "instances_train2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
        return tmp_path

    return write


def write_image(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Write a smooth random picture, returned as uint8 [H, W, 3] BGR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    assert cv2.imwrite(str(path), image)
    return image


@pytest.fixture(name="write_image")
def write_image_fixture() -> Callable[..., np.ndarray]:
    return write_image


@pytest.fixture
def picture(tmp_path, write_image):
    """``picture(*names)`` writes pictures of 40x20 pixels below a folder; returns the folder."""

    def write(*names):
        for name in names:
            write_image(tmp_path / name, 20, 40)
        return tmp_path

    return write


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every COCO file counts as large, and is read in pieces of some objects."""
    monkeypatch.setattr(coco, "LARGE", 0)
    monkeypatch.setattr(json_lists, "_BLOCK", 512)
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def shards(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic set as shards of a few pictures each."""
    out = tmp_path_factory.mktemp("shards") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("directdet.data.formats.write.shards._MB", 4000)
        assert convert(synthetic, "shards", out, shard_mb=20) == []
    return out
