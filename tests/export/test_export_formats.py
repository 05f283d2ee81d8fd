"""Options of an export against the table of formats, before anything heavy is imported."""

import subprocess
import sys

import pytest

from directdet.common.errors import UsageProblem
from directdet.export.formats import FORMATS, Options, check_batch, check_capability, check_options
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
    ("value", "wanted"), [(1, (1, 1, 1)), ("3", (3, 3, 3)), ("1,4,8", (1, 4, 8)), (" 2, 2 ,2", (2, 2, 2))]
)
def test_batches(value, wanted):
    assert check_batch(value) == wanted


@pytest.mark.parametrize("value", [0, -1, "", "a", "1,2", "4,2,8", "1,9,8", "0,1,2", "1,2,3,4", "1,2,100000", "1.5"])
def test_wrong_batches(value):
    with pytest.raises(UsageProblem, match="--batch"):
        check_batch(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "--format onx: did you mean onnx"),
        ({"format": "tensor-rt"}, "did you mean tensorrt"),
        ({"format": "tflite-x"}, "there are onnx, openvino, tensorrt, tensorrt-rtx"),
        ({"precision": "fp61"}, "did you mean fp16"),
        ({"precision": "FP16x"}, "did you mean fp16"),
        ({"input": "uint"}, "did you mean uint8"),
        ({"precision": "bf16"}, "--format onnx has fp32, fp16, int8; bf16 is for openvino"),
        ({"precision": "int8"}, "give --data"),
        ({"reduce_range": True}, "--reduce-range: only for --format onnx --precision int8"),
        ({"format": "openvino", "precision": "int8", "data_given": True, "reduce_range": True}, "--reduce-range: only"),
        ({"compute_capability": "8.9"}, "only for --format tensorrt-rtx, not onnx"),
        ({"format": "tensorrt-rtx", "compute_capability": "8.9,ada"}, "--compute-capability ada"),
    ],
)
def test_what_is_not_in_the_table_is_told_in_one_line(options, message):
    with pytest.raises(UsageProblem, match=message) as caught:
        check_options(**options)
    assert "\n" not in str(caught.value)


def test_what_is_in_the_table():
    assert check_options() == Options("onnx", "fp32", "uint8", (1, 1, 1), ())
    found = check_options("tensorrt-rtx", "fp16", "float32", "1,4,8", "8.6, sm_89,8.6", False)
    assert found == Options("tensorrt-rtx", "fp16", "float32", (1, 4, 8), ("8.6", "8.9"))
    assert check_options("tensorrt-rtx").capabilities == ("8.9",)
    assert check_options("openvino", "int8", data_given=True).precision == "int8"
    assert check_options("onnx", "int8", data_given=True, reduce_range=True).reduce_range


def test_every_format_can_be_loaded():
    assert set(FORMATS) == set(KINDS) == set(RUNTIMES) - {"checkpoint"}


def test_the_command_shows_the_table_and_imports_no_torch(capsys):
    assert cli.main(["export", "--formats"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in FORMATS) and "one or more" in said
    code = "import sys, directdet.export.formats; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
