"""Options of an export against the table of formats, before anything heavy is imported."""

import subprocess
import sys

import pytest

from directdet.common.errors import UsageProblem
from directdet.export.formats import FORMATS
from directdet.export.options import ExportOptions, check_batch, check_capability
from directdet.front import cli
from directdet.infer.artefact import KINDS
from directdet.infer.runtimes.names import RUNTIMES


@pytest.mark.parametrize(("text", "wanted"), [("8.9", "8.9"), ("89", "8.9"), ("SM120", "12.0"), ("sm_75", "7.5")])
def test_capability_names(text, wanted):
    assert check_capability(text) == wanted


@pytest.mark.parametrize("text", ["ada", "", "8", "8.9.1"])
def test_wrong_capability_names(text):
    with pytest.raises(UsageProblem, match=r"8\.9"):
        check_capability(text)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(1, (1, 1, 1)), ("3", (3, 3, 3)), ("1,4,8", (1, 4, 8)), (" 2, 2 ,2", (2, 2, 2)), ((1, 4, 8), (1, 4, 8))],
)
def test_batches(value, wanted):
    assert check_batch(value) == wanted


@pytest.mark.parametrize(
    "value", [0, -1, "", "a", "1,2", "4,2,8", "1,9,8", "0,1,2", "1,2,3,4", "1,2,100000", "1.5", (1, 2), ()]
)
def test_wrong_batches(value):
    with pytest.raises(UsageProblem, match="--batch"):
        check_batch(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "^--format: 'onx' is not one of onnx, openvino, .*; did you mean 'onnx'"),
        ({"format": "tensor-rt"}, "did you mean 'tensorrt'"),
        ({"format": "coreml"}, "^--format: 'coreml' is not one of onnx, openvino, tensorrt, tensorrt-rtx$"),
        ({"precision": "fp61"}, "^--precision: 'fp61' is not one of fp32, .*did you mean 'fp16'"),
        ({"precision": "FP16x"}, "did you mean 'fp16'"),
        ({"input": "uint"}, "^--input: 'uint' is not one of uint8, float32; did you mean 'uint8'"),
        ({"precision": "bf16"}, "--format onnx has fp32, fp16, int8; bf16 is for openvino"),
        ({"reduce_range": True}, "--reduce-range: only for --format onnx --precision int8"),
        ({"format": "openvino", "precision": "int8", "reduce_range": True}, "--reduce-range: only"),
        ({"compute_capability": "8.9"}, "only for --format tensorrt-rtx, not onnx"),
        ({"format": "tensorrt-rtx", "compute_capability": "8.9,ada"}, "--compute-capability ada"),
        ({"batch": "1,2"}, "--batch 1,2: give N, or MIN,OPT,MAX"),
        ({"batch": (4, 2, 8)}, "--batch 4,2,8: expected 1 <= MIN"),
        ({"size": (448,)}, "--size 448: .* as 448,448"),
        ({"size": (0, 32)}, "--size 0,32: .* as 448,448"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(UsageProblem, match=message) as caught:
        ExportOptions(**options)
    assert "\n" not in str(caught.value)


def test_int8_needs_data():
    options = ExportOptions(precision="int8")
    options.require_data(True)
    with pytest.raises(UsageProblem, match="--precision int8: is calibrated on real pictures; give --data"):
        options.require_data(False)
    ExportOptions().require_data(False)


def test_the_command_line_says_the_same(capsys, tmp_path):
    for arguments, options in (
        (("--format", "onx"), {"format": "onx"}),
        (("--precision", "bf16"), {"precision": "bf16"}),
        (("--batch", "1,9,8"), {"batch": "1,9,8"}),
    ):
        with pytest.raises(UsageProblem) as caught:
            ExportOptions(**options)
        assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]) == 2
        assert capsys.readouterr().err == f"error: {caught.value}\n"


def test_options_in_the_table():
    default = ExportOptions()
    assert (default.format, default.precision, default.input, default.size) == ("onnx", "fp32", "uint8", None)
    assert default.batch_sizes == (1, 1, 1) and default.capabilities == ()
    found = ExportOptions("tensorrt-rtx", "fp16", "float32", (64, 96), "1,4,8", "8.6, sm_89,8.6")
    assert found.batch_sizes == (1, 4, 8) and found.capabilities == ("8.6", "8.9")
    assert ExportOptions("tensorrt-rtx").capabilities == ("8.9",)
    assert ExportOptions("onnx", "int8", reduce_range=True).reduce_range


def test_every_format_can_be_loaded():
    assert set(FORMATS) == set(KINDS) == set(RUNTIMES) - {"checkpoint"}


def test_the_command_shows_the_table_and_imports_no_torch(capsys):
    assert cli.main(["export", "--formats"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in FORMATS) and "one or more" in said
    code = "import sys, directdet.export.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
