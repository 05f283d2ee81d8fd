"""Photos are turned as a viewer shows them; pictures of a dataset are taken as stored."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from directdet.front import cli
from directdet.infer.predict.reading import read_picture, turn

ORIENTATION = 0x0112


def photo(kind: str, orientation: int) -> bytes:
    """A picture without any symmetry, in a file with an EXIF orientation."""
    tiles = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(cv2.resize(tiles, (70, 50), interpolation=cv2.INTER_NEAREST))
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_eight_as_pillow_has_them(kind, orientation, tmp_path):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(photo(kind, orientation))
    with Image.open(path) as opened:
        stored, shown = opened.convert("RGB"), ImageOps.exif_transpose(opened).convert("RGB")
    read = read_picture(path, upright=True)
    close = {"atol": 12 if kind == "JPEG" else 0}
    np.testing.assert_allclose(read.image[:, :, ::-1].astype(int), np.asarray(shown).astype(int), **close)
    if kind == "TIFF":  # the format's own field, which every reader follows
        assert read.orientation == 1
        return
    assert read.orientation == orientation
    plain = read_picture(path, upright=False)
    assert plain.orientation == 1 and plain.digest == read.digest
    np.testing.assert_allclose(plain.image[:, :, ::-1].astype(int), np.asarray(stored).astype(int), **close)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_exactly(orientation):
    """Without any codec between, against Pillow's own transposition."""
    image = np.random.default_rng(1).integers(0, 256, (3, 5, 3), np.uint8)
    exif, opened = Image.Exif(), Image.fromarray(image)
    exif[ORIENTATION] = orientation
    opened.info["exif"] = exif.tobytes()
    opened._exif = exif
    np.testing.assert_array_equal(turn(image, orientation), np.asarray(ImageOps.exif_transpose(opened)))


def test_a_run_tells_and_obeys(artefact, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for orientation in (1, 3, 6):
        (folder / f"{orientation}.jpg").write_bytes(photo("JPEG", orientation))
    command = ["infer", str(artefact), str(folder), "--device", "cpu", "--no-pictures", "--out"]
    assert cli.main([*command, str(tmp_path / "shown")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "2 images were turned as their EXIF orientation says" in said
    images = json.loads((tmp_path / "shown" / "detections.json").read_text())["images"]
    assert [(one["width"], one["height"], one.get("orientation")) for one in images] == [
        (70, 50, None),
        (70, 50, 3),
        (50, 70, 6),
    ]
    assert cli.main([*command, str(tmp_path / "stored"), "--as-stored"]) == 0
    assert capsys.readouterr().err == ""
    images = json.loads((tmp_path / "stored" / "detections.json").read_text())["images"]
    assert {(one["width"], one["height"]) for one in images} == {(70, 50)}
    assert all("orientation" not in one for one in images)
