"""scripts/speed.py at tiny size: what it makes of times, and that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from directdet.models.two_stage.config import RCNNConfig
from directdet.models.two_stage.network import RCNN

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SLIM = RCNNConfig(
    3, backbone="resnet18", width=8, fpn_channels=16, box_convs=1, box_features=16, mask_convs=1, mask_channels=16
)


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def stages(device: float, prepare: float = 1.0) -> dict:
    times = {"prepare": prepare, "device": device, "end_to_end": prepare + device}
    return {**{name: {"median_ms": value} for name, value in times.items()}, "runs_in": {}}


def test_ratios_are_within_rounds_and_shares_are_of_the_cell():
    from speed import BASE, Cell, summarise

    base, plain, small = Cell("ssd300", BASE), Cell("ssd300", "openvino"), Cell("ssd300", "openvino", "int8")
    rounds = [
        # In the second round the machine is half as fast: no ratio moves.
        {
            base.name: stages(200),
            plain.name: stages(100),
            small.name: stages(25),
            f"{plain.name}#post": {"ms": 10},
        },
        {
            base.name: stages(400, 2),
            plain.name: stages(200, 2),
            small.name: stages(50, 2),
            f"{plain.name}#post": {"ms": 20},
        },
    ]
    peak = {"fp32": 200.0, "int8": 2000.0}
    rows = summarise([base, plain, small], rounds, peak, {"ssd300": 3_000_000_000})
    assert rows[base.name]["speedup_device"] == 1 and rows[base.name]["share_of_postprocessing"] is None
    assert rows[plain.name]["speedups_device"] == [2, 2]
    assert rows[plain.name]["speedup_end_to_end"] == pytest.approx(201 / 101)
    assert rows[plain.name]["share_of_postprocessing"] == pytest.approx(0.1)
    assert rows[small.name]["share_of_postprocessing"] == pytest.approx(0.4)  # fp32's 10 ms of its own 25
    assert rows[small.name]["device_ms"] == 37.5
    assert rows[small.name]["share_of_matrix_product"] == pytest.approx(3 / 0.0375 / 2000)


def test_what_is_beyond_the_layers_is_the_difference_of_turns(monkeypatch):
    import speed_parts

    now = 0.0

    def take(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(speed_parts.time, "perf_counter", lambda: now)
    spent = iter([9.0, 0.003, 0.005, 0.030])  # the first does not count; in the last the machine did something else
    whole = lambda: take(0.1 + next(spent))  # noqa: E731
    assert speed_parts.median_difference(whole, lambda: take(0.1), runs=3, warmup=1) == pytest.approx(5.0)


def test_every_cell_has_its_own_name_and_a_torchvision_to_compare_with():
    from speed import BASE, Cell, cells

    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    assert all(Cell(cell.model, BASE).name in names for cell in cells())
    for name in ("ssd300/openvino/int8", "retinanet/onnxruntime/int8", "mask_rcnn/openvino/bf16/300"):
        assert name in names


def test_layers_are_the_network_and_its_operations_are_counted():
    from speed_models import Layers, count_macs, layer_inputs

    torch.manual_seed(0)
    model = RCNN(SLIM).eval()
    inputs = layer_inputs(model, (64, 96))
    assert [tuple(value.shape) for value in inputs] == [(1, 3, 64, 96), (1000, 16, 7, 7), (100, 16, 14, 14)]
    counted = 0

    def count(layer, given, out):
        nonlocal counted
        if isinstance(layer, nn.ConvTranspose2d):
            counted += given[0].numel() * layer.weight[0].numel()
        else:
            counted += out.numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    with torch.no_grad():
        outputs = Layers(model)(*inputs)
        for hook in hooks:
            hook.remove()
        raw = model(inputs[0])
    torch.testing.assert_close(outputs[0], raw.logits)
    assert outputs[2].shape == (1000, 4) and outputs[4].shape == (100, 4, 28, 28)
    assert count_macs(Layers(model), inputs) == counted


@pytest.mark.slow
def test_it_runs(tmp_path):
    command = [sys.executable, SCRIPTS / "speed.py", "--tiny", "--only", "ssd300/onnxruntime/fp32", "--runs", "2"]
    command += ["--rounds", "1", "--threads", "1", "--results", tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads((tmp_path / "speed_cpu.json").read_text())
    assert set(content["rows"]) == {"ssd300/torchvision/fp32", "ssd300/onnxruntime/fp32"}
    row = content["rows"]["ssd300/onnxruntime/fp32"]
    assert row["share_of_postprocessing"] > 0 and row["gmacs"] > 0.1 and row["prepare_ms"] < row["end_to_end_ms"]
    assert row["runs_in"]["provider"] == "CPUExecutionProvider" and row["share_of_matrix_product"] > 0
    assert set(content["settings"]["matrix_product_gmacs"]) == {"fp32", "bf16", "int8"}


def test_the_script_of_roi_pooling_runs_and_counts_its_memory(tmp_path):
    command = [sys.executable, str(SCRIPTS / "roi_pool.py"), "--tiny", "--runs", "2", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "roi_pool_cpu.json").read_text())["rows"]
    assert set(rows) == {f"{r}, 50, {f}" for r in ("onnxruntime", "openvino") for f in ("at once", "in turn")} | {
        "torch, 50, bag"
    }
    for row in rows.values():
        assert row["median_ms"] > 0 and row["mib"] > 0.3  # 50 RoIs of 49 bins of 8 channels are 0.08 MiB, the maps 0.5
