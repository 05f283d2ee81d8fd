"""Sets of other sensors from check-data to the drawn picture, whose objects no 8-bit RGB picture shows."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from directdet.data.check import check_data
from directdet.data.dataset import load_dataset
from directdet.data.image import read_image
from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main

SIZE = 128


@pytest.mark.parametrize(("sensor", "dtype"), [("deep-grey", "float32"), ("six-bands", "uint8"), ("metres", "float32")])
@pytest.mark.slow
def test_trained_exported_verified_inferred_and_timed(sensor, dtype, tmp_path):
    """Four minutes each: AR tells that objects are found, where no brightness tells a class."""
    if sensor != "deep-grey":
        pytest.importorskip("tifffile")
    data, run, artefact = tmp_path / "data", tmp_path / "run", tmp_path / "artefact"
    make_synthetic(data, 48, 12, (96, 128), sensor=sensor)
    (data / "dataset.toml").write_text("\n".join(check_data(data, progress=False).pixels[1:]))
    settings = {
        "pretrain.size": SIZE, "pretrain.eval_size": SIZE, "pretrain.batch_size": 8, "pretrain.epochs": 60,
        "pretrain.workers": 0, "pretrain.mosaic": 0, "pretrain.mixup": 0, "pretrain.eval_every": 0,
        "model.width": 8, "model.fpn_channels": 32,
    }  # fmt: skip
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert (
        call("train", "rtmdet_nano", "--data", data, "--out", run, "--phase", "pretrain", "--device", "cpu", *given)
        == 0
    )
    stored = json.loads((run / "pretrain" / "run.json").read_text())
    dataset = load_dataset(data, "val")
    assert stored["pixels"]["dtype"] == dataset.pixels.dtype
    assert stored["recipe"]["model"]["in_channels"] == dataset.pixels.channels
    assert call("export", run, "--out", artefact, "--data", data) == 0
    meta = json.loads((artefact / "meta.json").read_text())
    assert meta["verification"]["passed"] and meta["input"]["dtype"] == dtype
    assert meta["preprocess"]["mean"] == list(dataset.pixels.mean)
    assert call("eval", artefact, "--data", data, "--json", tmp_path / "eval.json", "--device", "cpu") == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["bbox"]["AR100"] > 0.3
    out = tmp_path / "out"
    assert call("infer", artefact, data / "val2017", "--out", out, "--score", 0.2, "--device", "cpu") == 0
    assert json.loads((out / "detections.json").read_text())
    for record in dataset.records:
        drawn = cv2.imread(str(out / record.path.name), cv2.IMREAD_UNCHANGED)
        assert drawn.dtype == np.uint8 and drawn.shape == (record.height, record.width, 3)
    bench = tmp_path / "bench"
    arguments = ("--data", data, "--out", bench, "--iterations", 2, "--warmup", 1, "--device", "cpu")
    assert call("benchmark", artefact, *arguments) == 0


def test_deep_grey_is_even_in_8_bits(tmp_path):
    """So a conversion to 8 bits on the way cannot pass the test above."""
    make_synthetic(tmp_path, 3, 1, (96, 128), sensor="deep-grey")
    for record in load_dataset(tmp_path, "train").records:
        assert np.ptp(read_image(record.path)) == 0


def test_a_short_run_is_exported_and_goes_on(tmp_path):
    """Few steps of the smallest kind; the wrong data for its artefact, and changed statistics, are refused."""
    data, run = tmp_path / "data", tmp_path / "run"
    make_synthetic(data, 6, 2, (64, 80), sensor="deep-grey")
    (data / "dataset.toml").write_text("\n".join(check_data(data, progress=False).pixels[1:]))
    small = ("pretrain.size=64", "pretrain.batch_size=2", "pretrain.max_steps=2", "pretrain.workers=0", "model.width=8")
    given = [part for one in (*small, "pretrain.eval_every=0", "model.fpn_channels=16") for part in ("--set", one)]
    order = ("train", "rtmdet_nano", "--data", data, "--out", run, "--phase", "pretrain", "--device", "cpu", *given)
    assert call(*order) == 0
    assert call("export", run, "--out", tmp_path / "artefact") == 0
    meta = json.loads((tmp_path / "artefact" / "meta.json").read_text())
    assert meta["input"]["shape"][1] == 1 and meta["preprocess"]["dtype"] == "uint16"
    assert call(*order, "--resume") == 0
    text = (data / "dataset.toml").read_text()
    (data / "dataset.toml").write_text(text.replace("std = [", "std = [1"))
    assert call(*order, "--resume") == 1
    (data / "dataset.toml").unlink()
    assert call("eval", tmp_path / "artefact", "--data", data) == 1


def call(*words: object) -> int:
    """The exit code of a command."""
    return main([str(word) for word in words])
