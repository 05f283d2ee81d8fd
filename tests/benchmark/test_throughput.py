"""Images per second with several batches in flight."""

import json
import threading
import time

import pytest
from tiny_artefact import write_artefact

from directdet.benchmark.cell import cell_from_dict
from directdet.benchmark.options import BenchmarkOptions
from directdet.benchmark.report import render
from directdet.benchmark.run import benchmark
from directdet.benchmark.tables import in_flight, to_csv
from directdet.benchmark.throughput import Throughput, time_throughput
from directdet.common.cores import usable_cores
from directdet.common.errors import UserError
from directdet.infer.runtimes.load import load


def test_every_step_runs_once_and_as_many_at_a_time_as_asked_for():
    barrier, seen = threading.Barrier(3), []

    def step(number: int) -> None:
        barrier.wait(10)  # passed only by three threads at the same time
        seen.append(number)

    found = time_throughput(step, warmup=3, iterations=9, batch=2, in_flight=3)
    assert sorted(seen) == list(range(-3, 9)) and found.in_flight == 3


def test_images_per_second_are_of_the_wall_clock():
    found = time_throughput(lambda number: time.sleep(0.05 if number >= 0 else 0), 2, 8, batch=4, in_flight=2)
    assert found.fps <= 8 * 4 / (0.05 * 8 / 2)  # eight sleeps in two threads take at least 0.2 s
    assert found.fps > 8 * 4 / 20


def test_a_step_that_fails_ends_the_others():
    calls = []

    def step(number: int) -> None:
        calls.append(number)
        if number == 2:
            raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        time_throughput(step, warmup=0, iterations=100_000, batch=1, in_flight=2)
    assert len(calls) < 100_000


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_runtimes_share_their_threads_out(runtime, artefact):
    pytest.importorskip(runtime)
    alone, many = (load(artefact, runtime, "cpu", threads=2, in_flight=number) for number in (1, 2))
    if runtime == "onnxruntime":
        assert (alone.info["threads"], many.info["threads"]) == (2, 1)
    else:
        hints = [one.backend._compiled.get_property("PERFORMANCE_HINT") for one in (alone, many)]
        assert [str(hint).split(".")[-1] for hint in hints] == ["LATENCY", "THROUGHPUT"]
        assert many.backend._compiled.get_property("INFERENCE_NUM_THREADS") == 2
    with pytest.raises(UserError, match="in_flight"):
        load(artefact, runtime, "cpu", in_flight=0)


def test_the_benchmark_reports_it_beside_the_latency(artefact, tmp_path, tiny_dataset):
    options = BenchmarkOptions(["onnxruntime"], iterations=4, warmup=1, device="cpu", ap_images=0, throughput=True)
    result = benchmark([artefact], tiny_dataset, options, tmp_path / "out", progress=False)
    (cell,) = result.good
    assert cell.throughput.in_flight == usable_cores() and cell.throughput.fps > 0
    assert in_flight(cell) == f"{cell.throughput.fps:.1f} ({usable_cores()})"
    page = render(result, [], "No pictures.")
    assert "fps, in flight" in page and in_flight(cell) in page
    saved = json.loads((tmp_path / "out" / "benchmark.json").read_text())["cells"][0]
    assert cell_from_dict(saved) == cell
    header, line = (text.split(",") for text in to_csv(result).splitlines()[:2])
    assert line[header.index("in_flight")] == str(usable_cores())
    older = {name: value for name, value in saved.items() if name != "throughput"}
    assert cell_from_dict(older).throughput is None and in_flight(cell_from_dict(older)) == "-"
    assert Throughput(**saved["throughput"]) == cell.throughput


def test_it_is_not_measured_unasked(tmp_path, tiny_dataset):
    options = BenchmarkOptions(["onnxruntime"], iterations=1, warmup=0, threads=1, device="cpu", ap_images=0)
    result = benchmark([write_artefact(tmp_path / "model")], tiny_dataset, options, progress=False)
    assert result.good[0].throughput is None and "fps, in flight" not in render(result, [], "No pictures.")
