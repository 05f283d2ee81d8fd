"""The benchmark: times, accuracy, and what fails."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console
from tiny_artefact import write_artefact

from directdet.errors import UserError
from directdet.infer.benchmark import benchmark, to_csv
from directdet.infer.benchmark_cell import STAGES, summary, time_stages
from directdet.infer.machine import hardware, versions
from directdet.infer.runtimes import load


def test_benchmark_end_to_end(artefact, tmp_path, tiny_dataset):
    pytest.importorskip("openvino")
    broken = write_artefact(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"changed")
    result = benchmark(
        [artefact, broken, tmp_path / "missing"],
        tiny_dataset,
        runtimes=["onnxruntime", "openvino"],
        iterations=4,
        warmup=2,
        threads=1,
        device="cpu",
        out=tmp_path / "out",
        command="directdet benchmark ...",
        progress=False,
    )
    good, failed = result.cells[:2], result.cells[2:]
    assert [cell["runtime"] for cell in good] == ["onnxruntime", "openvino"]
    for cell in good:
        times = cell["milliseconds"]
        assert set(times) == set(STAGES) and set(times["device"]) == {"mean", "median", "p95"}
        parts = sum(times[stage]["mean"] for stage in STAGES[:3])
        assert parts == pytest.approx(times["end_to_end"]["mean"], rel=1e-6)
        assert cell["fps_end_to_end"] == pytest.approx(1000 / times["end_to_end"]["mean"])
        assert cell["fps_device_only"] > cell["fps_end_to_end"]
        assert cell["metrics"]["bbox"]["AP"] == pytest.approx(1) and cell["detections_per_image"] == 2
        assert cell["threads"] == 1 and cell["precision"] == "fp32" and cell["image_sizes"]["largest"] == [192, 256]
    assert [cell["runtime"] for cell in failed] == ["onnxruntime", "openvino", "-"]
    assert all("\n" not in cell["error"] for cell in failed) and "sha256" in failed[0]["error"]
    assert "not found" in failed[2]["error"]
    assert result.exit_code == 1 and len(result.failures) == 3

    saved = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert saved["about"]["command"] == "directdet benchmark ..." and saved["about"]["hardware"]["cpu"]
    assert saved["paper"]["comparable"] is False and len(saved["cells"]) == 5
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "benchmark.csv").read_text())))
    assert len(rows) == 5 + 4 and float(rows[0]["AP_box"]) == pytest.approx(1)
    assert rows[-1]["comparable"] == "not comparable" and rows[-1]["fps_end_to_end"] == "8.6"
    assert to_csv(result).startswith("source,comparable,model,runtime")
    text = io.StringIO()
    Console(file=text, width=140).print(result.render())
    for word in ("end to end", "device only", "not comparable", "1080Ti", "failed", "decode + preprocess"):
        assert word in text.getvalue()


def test_benchmark_refuses_nonsense(artefact, tiny_dataset):
    for options, message in (
        ({"iterations": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"runtimes": ["ncnn"]}, "ncnn"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark([artefact], tiny_dataset, progress=False, **options)
    with pytest.raises(UserError, match="no model"):
        benchmark([], tiny_dataset)


def test_a_runtime_that_cannot_run_the_model_is_a_failed_cell(artefact, tiny_dataset):
    result = benchmark([artefact], tiny_dataset, runtimes=["torch"], progress=False)
    assert result.exit_code == 1 and "kind onnx runs in onnxruntime or openvino only" in result.failures[0]


def test_batches_are_timed(tmp_path, tiny_dataset):
    detector = load(write_artefact(tmp_path / "a", batch="batch"), device="cpu", threads=1)
    seconds, found = time_stages(detector, tiny_dataset, warmup=1, iterations=3, batch=2)
    assert found == 2 and all(values.shape == (3,) and (values > 0).all() for values in seconds.values())


def test_summary():
    assert summary(np.arange(101.0)) == {"mean": 50, "median": 50, "p95": 95}


def test_machine_is_described():
    about = hardware()
    assert about["cpu"] and about["cores"] >= about["cores_usable"] >= 1
    assert {"python", "numpy"} <= set(versions())
