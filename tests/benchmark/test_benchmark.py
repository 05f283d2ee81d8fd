"""The benchmark: times, accuracy, and what fails."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console
from tiny_artefact import write_artefact

from directdet.benchmark import provider_check
from directdet.benchmark.cell import STAGES, TIMES, Cell, Failure, Task, Times, cell_from_dict
from directdet.benchmark.measure import summary, time_stages, timed_records
from directdet.benchmark.options import BenchmarkOptions
from directdet.benchmark.provider_check import check_provider, onnx_nodes
from directdet.benchmark.result import BenchmarkResult
from directdet.benchmark.run import _groups, benchmark
from directdet.benchmark.tables import tables
from directdet.common.errors import UsageProblem, UserError
from directdet.infer.machine import gpu_memory_mib, hardware, versions
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load

# The keys of a cell in benchmark.json, in order: files written by older versions have them, too.
KEYS = ["path", "runtime", "precision", "compiled", "batch", "source", "provider", "device", "threads", "versions"]
KEYS += ["size", "fixed_size", "max_batch", "input", "classes", "recipe", "artefact_sha256", "asked_precision"]
KEYS += ["provider_check", "model_bytes", "memory_mib", "iterations", "warmup", "milliseconds", "samples_ms"]
KEYS += ["fps_end_to_end", "fps_device_only", "detections_per_image", "timed_images", "image_sizes", "metrics"]
KEYS += ["network", "throughput"]


def test_what_was_measured_outlives_a_stop(artefact, tmp_path, tiny_dataset, monkeypatch):
    ends = iter(["made up", KeyboardInterrupt()])

    def run(task: Task) -> Failure:
        end = next(ends)
        if isinstance(end, BaseException):
            raise end
        return Failure(task.request, end)

    monkeypatch.setattr("directdet.benchmark.run._run", run)
    options = BenchmarkOptions(["onnxruntime"], batch=(1, 2))
    with pytest.raises(KeyboardInterrupt):
        benchmark([artefact], tiny_dataset, options, out=tmp_path / "out", progress=False)
    saved = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert [(cell["batch"], cell["error"]) for cell in saved["cells"]] == [(1, "made up")]


def test_benchmark_end_to_end(artefact, tmp_path, tiny_dataset):
    pytest.importorskip("openvino")
    broken = write_artefact(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"changed")
    options = BenchmarkOptions(["onnxruntime", "openvino"], iterations=4, warmup=2, threads=1, device="cpu")
    models = [artefact, broken, tmp_path / "missing"]
    result = benchmark(models, tiny_dataset, options, tmp_path / "out", "directdet benchmark ...", progress=False)
    good, failed = result.good, result.failed
    assert result.cells == (*good, *failed) and [cell.runtime for cell in good] == ["onnxruntime", "openvino"]
    for cell in good:
        times = cell.milliseconds
        assert set(times) == set(STAGES)
        parts = sum(times[stage].mean for stage in STAGES[:3])
        assert parts == pytest.approx(times["end_to_end"].mean, rel=1e-6)
        assert cell.fps_end_to_end == pytest.approx(1000 / times["end_to_end"].mean)
        assert cell.fps_device_only > cell.fps_end_to_end
        assert cell.metrics.bbox["AP"] == pytest.approx(1) and cell.detections_per_image == 2
        assert all(np.mean(cell.samples_ms[stage]) == pytest.approx(times[stage].mean, abs=1e-3) for stage in STAGES)
        assert cell.model_bytes == (artefact / "model.onnx").stat().st_size
        memory = cell.memory_mib
        assert memory.peak_rss > memory.before_loading > 20 and memory.gpu is None
        assert cell.provider_check.asked == cell.provider_check.expected == "cpu"
        assert cell.threads == 1 and cell.precision == "fp32" and cell.image_sizes.largest == (192, 256)
    assert set(good[0].provider_check.nodes) == {"CPUExecutionProvider"} and good[1].provider_check.nodes is None
    assert [cell.request.runtime for cell in failed] == ["onnxruntime", "openvino", "-"]
    assert all("\n" not in cell.error for cell in failed) and "sha256" in failed[0].error
    assert "not found" in failed[2].error
    assert result.exit_code == 1 and len(result.failures) == 3

    saved = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert saved["about"]["command"] == "directdet benchmark ..." and saved["about"]["hardware"]["cpu"]
    assert [paper["comparable"] for paper in saved["papers"]] == [False] * 2 and len(saved["cells"]) == 5
    assert list(saved["cells"][0]) == KEYS and list(saved["cells"][0]["milliseconds"]["device"]) == list(TIMES)
    assert list(saved["cells"][4]) == [*KEYS[:5], "error"]
    again = BenchmarkResult.from_dict(saved)
    assert again == result and again.to_dict() == result.to_dict()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "benchmark.csv").read_text())))
    assert len(rows) == 5 + 4 + 10 and float(rows[0]["AP_box"]) == pytest.approx(1)
    assert rows[8]["comparable"] == "not comparable" and rows[8]["fps_paper"] == "8.6" and not rows[8]["fps_end_to_end"]
    assert float(rows[0]["ratio"]) == 1 and float(rows[1]["ratio"]) == pytest.approx(
        good[1].fps_end_to_end / good[0].fps_end_to_end, abs=1e-3
    )
    assert float(rows[0]["peak_rss_mib"]) > 20 and rows[0]["gpu_mib"] == "" and rows[0]["device_p99_ms"]
    assert "sha256" in rows[2]["error"] and rows[2]["ratio"] == ""
    text, narrow = io.StringIO(), io.StringIO()
    Console(file=text, width=180).print(tables(result))
    for word in ("end to end", "failed", "decode + preprocess", "p99", "cpu -> CPU"):
        assert word in text.getvalue()
    assert re.search(r"device +┃.*\n.*┃ +only ", text.getvalue())  # one below the other
    Console(file=narrow, width=80).print(tables(result))
    assert "…" not in narrow.getvalue() and f"{good[0].fps_end_to_end:.1f}" in narrow.getvalue()


def test_benchmark_refuses_nonsense(artefact, tiny_dataset):
    for settings, message in (
        ({"iterations": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"batch": ()}, "at least 1"),
        ({"warmup": -1}, "warmup at least 0"),
        ({"threads": 0}, "threads: 0; give at least 1"),
        ({"ap_images": -1}, "ap_images: -1; give 0"),
        ({"runtimes": ["ncnn"]}, "^runtime: 'ncnn' is not one of onnxruntime, openvino, tensorrt"),
        ({"precision": ["fp32", "fp61"]}, "^precision: 'fp61' is not one of fp32, tf32, bf16, fp16; .*mean 'fp16'"),
    ):
        with pytest.raises(UsageProblem, match=message):
            BenchmarkOptions(**settings)
    with pytest.raises(UserError, match="no model"):
        benchmark([], tiny_dataset)
    with pytest.raises(UserError, match="no images"):
        benchmark([artefact], replace(tiny_dataset, records=()))


def test_options():
    assert (BenchmarkOptions().batches, BenchmarkOptions().precisions) == ((1,), (None,))
    several = BenchmarkOptions(batch=(2, 1, 2), precision=["fp32", "bf16", "fp32"])
    assert (several.batches, several.precisions) == ((2, 1), ("fp32", "bf16"))
    assert BenchmarkOptions(precision="tf32").precisions == ("tf32",) and BenchmarkOptions(precision=()).precisions
    quick = BenchmarkOptions(quick=True, iterations=300)
    assert (quick.iterations, quick.warmup, quick.ap_images) == (30, 5, 50)


def test_a_runtime_that_cannot_run_the_model_is_a_failed_cell(artefact, tiny_dataset):
    result = benchmark([artefact], tiny_dataset, BenchmarkOptions(["torch"]), progress=False)
    assert result.exit_code == 1 and "kind onnx runs in onnxruntime or openvino only" in result.failures[0]
    text = io.StringIO()
    Console(file=text).print(tables(result))
    assert not text.getvalue().strip()  # no tables without rows


def test_batches_are_timed(tmp_path, tiny_dataset):
    detector = load(write_artefact(tmp_path / "a", batch="batch"), device="cpu", threads=1)
    seconds, found = time_stages(detector, tiny_dataset.records, warmup=1, iterations=3, batch=2)
    assert found == 2 and all(values.shape == (3,) and (values > 0).all() for values in seconds.values())


def test_several_batch_sizes_share_one_ap(tmp_path, tiny_dataset):
    folder = write_artefact(tmp_path / "two", batch=2)
    options = BenchmarkOptions(["onnxruntime"], 2, 1, batch=(1, 2, 4, 2), threads=1, device="cpu")
    result = benchmark([folder], tiny_dataset, options, progress=False)
    one, two, four = result.cells
    assert isinstance(one, Cell) and isinstance(two, Cell) and isinstance(four, Failure)
    assert [one.batch, two.batch, four.request.batch] == [1, 2, 4]
    assert one.metrics.n_images == 3 and two.metrics == one.metrics
    assert two.fps_end_to_end == pytest.approx(2000 / two.milliseconds["end_to_end"].mean)
    assert "batches of 2, got 4" in four.error and result.exit_code == 1
    assert all(cell_from_dict(json.loads(json.dumps(cell.to_dict()))) == cell for cell in result.cells)


def test_images_of_one_batch_share_a_canvas(tiny_dataset):
    sizes = [(100, 100), (64, 200), (100, 100), (200, 64)]
    record = tiny_dataset.records[0]
    records = tuple(replace(record, height=height, width=width) for height, width in sizes)
    dataset = replace(tiny_dataset, records=records)
    free = SimpleNamespace(preprocess=Preprocess((64, 128), fixed=False))
    assert timed_records(free, dataset, one_canvas=True) == (records[0], records[2])
    assert timed_records(free, dataset, one_canvas=False) == records
    assert timed_records(SimpleNamespace(preprocess=Preprocess((64, 128))), dataset, one_canvas=True) == records


def test_precisions_that_a_runtime_lacks_are_left_out_or_told(artefact, tiny_dataset):
    def asked(names, runtimes):
        groups = _groups([artefact], BenchmarkOptions(runtimes, precision=names))
        return [(request.runtime, request.precision) for requests, _ in groups for request in requests]

    both = ["onnxruntime", "openvino"]
    assert asked(("fp32", "bf16"), both) == [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]
    assert asked(("bf16", "fp16"), both)[0] == ("onnxruntime", "bf16")  # its own message refuses it
    assert asked(None, both) == [("onnxruntime", None), ("openvino", None)]


def fake_detector(runtime, provider, device):
    return SimpleNamespace(runtime=runtime, info={"provider": provider, "device": device})


@pytest.mark.parametrize(
    ("asked", "runtime", "provider", "device"),
    [
        ("cuda", "onnxruntime", "CPUExecutionProvider", "cpu"),
        ("cuda", "onnxruntime", "CPUExecutionProvider", "cuda"),
        ("cuda:1", "onnxruntime", "CUDAExecutionProvider", "cuda:0"),
        ("cpu", "onnxruntime", "CUDAExecutionProvider", "cuda"),
        ("cuda", "torch", "torch cpu", "cpu"),
        ("gpu", "openvino", "CPU", "cpu"),
    ],
)
def test_a_model_that_runs_elsewhere_is_refused(asked, runtime, provider, device):
    with pytest.raises(UserError, match="runs on"):
        check_provider(asked, fake_detector(runtime, provider, device))


def test_auto_asks_for_the_gpu_that_is_there(monkeypatch):
    on_cpu = fake_detector("onnxruntime", "CPUExecutionProvider", "cpu")
    monkeypatch.setattr(provider_check, "find_gpu", lambda: None)
    assert check_provider("auto", on_cpu).expected == "cpu"
    monkeypatch.setattr(provider_check, "find_gpu", object)
    with pytest.raises(UserError, match="--device cpu"):
        check_provider("auto", on_cpu)
    assert check_provider("auto", fake_detector("onnxruntime", "CUDAExecutionProvider", "cuda")).asked == "auto"
    assert check_provider("auto", fake_detector("openvino", "CPU", "cpu")).expected == "cpu"
    assert check_provider("cuda:1", fake_detector("torch", "a GPU", "cuda:1")).device == "cuda:1"


def test_nodes_are_counted_by_provider_and_must_be_where_they_belong(tmp_path):
    nodes = [helper.make_node("MatMul", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("a", "c")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(model, tmp_path / "m.onnx")
    images = np.ones((2, 2), np.float32)
    assert onnx_nodes(tmp_path / "m.onnx", "CPUExecutionProvider", "cpu", images) == {"CPUExecutionProvider": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime's own: there is no such provider here
        with pytest.raises(UserError, match="1 MatMul did not run on CUDAExecutionProvider"):
            onnx_nodes(tmp_path / "m.onnx", "CUDAExecutionProvider", "cuda", images)


def test_gpu_memory_is_what_nvidia_smi_tells(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$*" in *--id=3*) echo 1234;; *) echo "no such device"; exit 6;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpu_memory_mib(1) == 1234 and gpu_memory_mib(0) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_memory_mib(3) == 1234 and gpu_memory_mib(1) is None
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert gpu_memory_mib() is None


def test_peak_memory_is_this_process_own_and_grows_with_what_it_holds():
    code = (
        "from directdet.infer.machine import peak_memory_mib as peak\n"
        "first = peak(); held = b'x' * (100 << 20); print(first, peak())"
    )
    held = b"x" * (200 << 20)  # getrusage would start from this, the parent's
    first, then = map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert len(held) and 5 < first < 150 and 95 < then - first < 110


def test_summary():
    assert summary(np.arange(101.0)) == Times(mean=50, median=50, p95=95, p99=99)


def test_machine_is_described():
    about = hardware()
    assert about["cpu"] and about["cores"] >= about["cores_usable"] >= 1
    assert {"python", "numpy"} <= set(versions())
