"""The script that makes the table of detectors, formats and precisions, on one cell that works and one that fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "export_matrix.py"


@pytest.mark.slow
def test_one_detector(tmp_path):
    out = tmp_path / "matrix.json"
    choice = ["--detectors", "Faster R-CNN VGG-16", "--formats", "onnx", "tflite", "--precisions", "fp32"]
    command = [sys.executable, str(SCRIPT), *choice, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    content = json.loads(out.read_text())
    good, bad = (content["cells"][f"Faster R-CNN VGG-16/{kind}/fp32"] for kind in ("onnx", "tflite"))
    assert good["passed"] and good["runtimes"]["onnxruntime"]["matched"] >= 0.99
    assert good["runtimes"]["onnxruntime"]["counted"] > 20
    assert not bad["passed"] and bad["error"].startswith("--format: 'tflite' is not one of ")
    assert content["versions"]["torch"] and content["hardware"]["cpu"] and content["settings"]["batch"] == "1,2,3"
    rows = done.stdout.splitlines()
    assert rows[0] == "| detector | onnx fp32 | tflite fp32 |" and "| yes: " in rows[2] and "| no: --format" in rows[2]
    again = subprocess.run([*command[:2], "--table", "--out", str(out)], capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
