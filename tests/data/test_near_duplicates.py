"""Pictures of two splits that look the same are found, others are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from directdet.data.check import check_data
from directdet.data.checks import near_duplicates as module
from directdet.data.checks.near_duplicates import (
    MOST_BITS,
    MOST_RMS,
    difference_hashes,
    look_of,
    near_duplicates,
    nearest,
)
from directdet.data.pixels.format import RGB, PixelFormat


def scenes(count: int, size: tuple[int, int] = (90, 120), seed: int = 0) -> list[np.ndarray]:
    """Smooth pictures, each of its own kind."""
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, 256, (7, 9, 3), dtype=np.uint8) for _ in range(count)]
    return [cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC) for one in coarse]


def looks(pictures: list[np.ndarray]) -> np.ndarray:
    found = [look_of(picture, RGB) for picture in pictures]
    assert all(look is not None for look in found)
    return np.stack([look for look in found if look is not None])


def by_brute_force(others: np.ndarray, wanted: np.ndarray) -> list[int]:
    """The index of the most similar, every pair compared; -1: none is within both limits."""
    grid = difference_hashes(others)[:, None] ^ difference_hashes(wanted)[None]
    bits = np.array([[bin(int(value)).count("1") for value in row] for row in grid])
    apart = others.astype(np.float64)[:, None] - wanted.astype(np.float64)[None]
    rms = np.sqrt(np.square(apart).mean(axis=(2, 3))) / 32
    rms[bits > MOST_BITS] = np.inf
    return [int(column.argmin()) if column.min() <= MOST_RMS else -1 for column in rms.T]


def saved(picture: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


CHANGES = {
    "half the size": lambda one: cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "twice the size": lambda one: cv2.resize(one, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    "stretched": lambda one: cv2.resize(one, (100, 100), interpolation=cv2.INTER_LINEAR),
    "saved again": lambda one: saved(one, 30),
    "smaller and saved": lambda one: saved(cv2.resize(one, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA), 50),
    "brighter": lambda one: cv2.convertScaleAbs(one, alpha=0.8, beta=30),
    "grey": lambda one: cv2.cvtColor(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_copies_are_found_and_no_others(change):
    pictures = scenes(200)
    best, bits = nearest(looks(pictures), looks([change(one) for one in pictures[100:]] + scenes(100, seed=1)))
    right = best[:100] == np.arange(100, 200)
    assert right.mean() >= 0.97 and set(best[:100][~right]) <= {-1}
    assert (best[100:] == -1).all()
    assert (bits[:100][right] <= MOST_BITS).all() and (bits[100:] == 64).all()


def test_the_same_as_comparing_all_pairs():
    rng = np.random.default_rng(5)
    few = looks(scenes(100))
    # Noise of many strengths around a few pictures: pairs on both sides of both limits.
    noise = rng.normal(0, 1, (700, 16, 18)) * rng.uniform(0, 14, (700, 1, 1))
    many = np.clip(few[rng.integers(0, 100, 700)] + np.rint(noise), -127, 127).astype(np.int8)
    others, wanted = many[:400], many[400:]
    expected = by_brute_force(others, wanted)
    assert 50 < expected.count(-1) < 250
    assert nearest(others, wanted)[0].tolist() == expected


def test_crowds_are_not_compared_pair_by_pair(monkeypatch):
    """From a fixed camera all pictures look alike: each finds another, whatever the limit of pairs."""
    rng = np.random.default_rng(6)
    (one,) = looks(scenes(1))
    crowd = np.clip(one + rng.integers(-2, 3, (3000, 16, 18)), -127, 127).astype(np.int8)
    monkeypatch.setattr(module, "_MOST_PAIRS", 1)  # 64 for each
    compared = []
    differing = module._differing
    monkeypatch.setattr(module, "_differing", lambda a, b: compared.append(len(a)) or differing(a, b))
    best, _ = nearest(crowd[:2000], crowd[2000:])
    assert (best >= 0).all() and sum(compared) < 1000 * 64 * 7 * 1.2


def test_flat_pictures_and_few_channels():
    assert look_of(np.full((30, 40, 3), 7, np.uint8), RGB) is None
    deep = PixelFormat(1, "uint16")
    assert look_of(np.full((30, 40, 1), 700, np.uint16), deep) is None
    (picture,) = scenes(1)
    low = (20000 + (picture[:, :, :1] // 8).astype(np.uint16)).astype(np.uint16)
    six = PixelFormat(6, "float32")
    assert np.abs(look_of(low, deep).astype(int) - look_of(low * 2 - 20000, deep)).max() <= 1
    assert look_of(np.repeat(picture, 2, axis=2).astype(np.float32), six).shape == (16, 18)
    assert near_duplicates({"train": {}, "val": {}}) == ()


@pytest.fixture
def leaking(synthetic, tmp_path) -> tuple[Path, Path, Path]:
    """A dataset in which a picture of val is one of train, half as large; and both files."""
    root = tmp_path / "leaking"
    shutil.copytree(synthetic, root)
    train, val = sorted((root / "train2017").iterdir())[5], sorted((root / "val2017").iterdir())[2]
    picture = cv2.imread(str(train))
    small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert cv2.imwrite(str(val), small)
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    (entry,) = [image for image in content["images"] if image["file_name"] == val.name]
    entry["height"], entry["width"] = small.shape[:2]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != entry["id"]]
    file.write_text(json.dumps(content))
    return root, train, val


def test_check_data_doubts_near_duplicates(leaking, synthetic):
    root, train, val = leaking
    report = check_data(root, progress=False)
    (found,) = report.near_duplicates
    assert (found.file, found.split, found.like, found.like_split) == (str(val), "val", str(train), "train")
    (doubt,) = report.doubts
    assert doubt.startswith(f"val: 1 of 4 images look like one of another split (the first: {val} = {train})")
    assert json.loads(json.dumps(report.to_dict()))["near_duplicates"][0]["like"] == str(train)
    assert not report.fatal and not report.duplicates
    assert check_data(synthetic, progress=False).near_duplicates == ()
    assert check_data(root, verify_images=False, progress=False).near_duplicates == ()
    # Exactly the same file is told once, as that.
    shutil.copy(train, val)
    assert not check_data(root, progress=False).near_duplicates
