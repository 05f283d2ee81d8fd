"""What README.md of an artefact says is run as it stands there, and finds what directdet finds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from export_helpers import SIZE, canvases
from tiny_artefact import write_artefact

from directdet.export.artefact import finish_meta
from directdet.export.contract import contract
from directdet.export.options import ExportOptions
from directdet.export.run import export
from directdet.infer.preprocess import Preprocess, fixture_image
from directdet.infer.runtimes.load import load

SIZES = [(192, 256), (97, 131), (53, 240), (240, 53)]


def code_of(folder: Path, language: str = "python") -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    return blocks[0]


def run_readme(folder: Path, image: np.ndarray) -> dict:
    """What the program of README.md leaves in its variables, run in the artefact's folder."""
    cv2.imwrite(str(folder / "picture.png"), image)
    (folder / "picture.png").replace(folder / "picture.jpg")  # its pixels exactly, under the name that README.md has
    found: dict = {}
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code_of(folder), str(folder / "README.md"), "exec"), found)
    assert len(printed.getvalue().splitlines()) == len(found["found"])
    return found


def assert_same(folder: Path, image: np.ndarray, pixels: int = 0) -> int:
    """The same input to the last bit, and the same objects; the number of them."""
    detector = load(folder, device="cpu")
    found, expected = run_readme(folder, image), detector(image)
    np.testing.assert_array_equal(found["batch"][0], detector.prepare([image])[0][0])
    assert [one[0] for one in found["found"]] == [detector.classes[label] for label in expected.labels]
    np.testing.assert_allclose([one[1] for one in found["found"]], expected.scores, atol=1e-5)
    np.testing.assert_allclose(np.array([one[2] for one in found["found"]]), expected.boxes, atol=1e-3)
    if expected.masks is not None:
        for one, mask in zip(found["found"], expected.full_masks(), strict=True):
            assert one[3].shape == image.shape[:2] and (one[3] ^ mask).sum() <= pixels
    return len(expected)


def complete(folder: Path, preprocess: Preprocess, dtype: str, masks: bool) -> Path:
    """The tiny artefact with the files that an export writes beside it."""
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {"preprocess": preprocess.to_dict(), "preprocess_checksum": preprocess.checksum(dtype)}
    meta |= {"built_with": {"directdet": "0"}, "outputs": meta["outputs"] if masks else meta["outputs"][:4]}
    finish_meta(folder, meta | {"contract": contract(preprocess, dtype, {}, masks)})
    return folder


@pytest.mark.parametrize("warp", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("batch", [1, 3, "batch"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_python_of_a_readme(tmp_path, dtype, batch, masks, warp):
    preprocess = Preprocess((96, 128), warp=warp, mean=(100.4, 116.6, 103.53), std=(58.0, 57.12, 60.0))
    made = write_artefact(tmp_path / "artefact", batch, masks, dtype=dtype, factor=1e-4)
    folder = complete(made, preprocess, dtype, masks)
    for size in SIZES:
        assert_same(folder, fixture_image(*size), pixels=2)


def test_a_name_with_marks_of_its_own(tmp_path):
    names = ('a "quoted" one', "back\\slash", "x`y|z")
    made = write_artefact(tmp_path / "artefact", classes=names)
    assert assert_same(complete(made, Preprocess((96, 128)), "float32", True), fixture_image(192, 256), pixels=2) == 2


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"input": "float32", "batch": "1,2,4"}, {"format": "openvino"}], ids=str)
def test_the_python_of_an_exported_model(settings, checkpoint, tmp_path):
    pytest.importorskip(settings.get("format", "onnxruntime"))
    folder = export(checkpoint, tmp_path / "artefact", ExportOptions(**settings)).artefact
    image = canvases(1, SIZE, 3, Preprocess(SIZE))[0][0]
    assert assert_same(folder, image, pixels=2) > 5


@pytest.mark.slow
@pytest.mark.skipif("ONNXRUNTIME_ROOT" not in os.environ, reason="needs ONNX Runtime's C++ headers: ONNXRUNTIME_ROOT")
def test_the_commands_for_cpp(checkpoint, tmp_path):
    """As they stand in README.md, but for the folder of ONNX Runtime, in a copy that nothing else lies beside."""
    folder = export(checkpoint, tmp_path / "artefact").artefact
    image = canvases(1, SIZE, 3, Preprocess(SIZE))[0][0]
    cv2.imwrite(str(folder / "picture.png"), image)
    (folder / "picture.png").replace(folder / "picture.jpg")
    commands = code_of(folder, "sh").replace("/path/to/onnxruntime", os.environ["ONNXRUNTIME_ROOT"])
    done = subprocess.run(["sh", "-e"], input=commands, cwd=folder, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    expected = load(folder, device="cpu")(image).above(0.3)
    assert len(lines) == len(expected) > 0
    np.testing.assert_allclose([line["score"] for line in lines], expected.scores, atol=2e-3)
    assert cv2.imread(str(folder / "found.png")).shape == image.shape


# ---- Triton


def parsed(text: str) -> dict:
    """Fields of protobuf text, repeated ones as lists; only what the file here uses."""
    tokens = re.findall(r'"[^"]*"|[\w.-]+|[\[\]{},:]', re.sub(r"^#.*$", "", text, flags=re.MULTILINE))
    position = 0

    def value():
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "{":
            return message("}")
        if token == "[":
            items = []
            while tokens[position] != "]":
                items.append(value())
                position += tokens[position] == ","
            position += 1
            return items
        return token.strip('"') if not re.fullmatch(r"-?\d+", token) else int(token)

    def message(end):
        nonlocal position
        fields: dict = {}
        while position < len(tokens) and tokens[position] != end:
            name = tokens[position]
            position += 1 + (tokens[position + 1] == ":")
            one = value()
            fields[name] = fields.get(name, []) + one if isinstance(one, list) else one
        position += 1
        return fields

    return message("")


TRITON_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 6: "TYPE_INT32"}  # by ONNX's numbers


@pytest.mark.parametrize("batch,batches", [(1, None), (3, None), ("batch", (1, 2, 8)), ("batch", (2, 2, 8))])
def test_the_triton_configuration_is_that_of_the_graph(tmp_path, batch, batches):
    folder = write_artefact(tmp_path / "artefact", batch, dtype="uint8", batches=batches)
    complete(folder, Preprocess((96, 128)), "uint8", True)
    text = (folder / "config.pbtxt").read_text()
    config, graph = parsed(text), onnx.load(folder / "model.onnx").graph
    batched = batches == (1, 2, 8)
    assert config["backend"] == "onnxruntime" and config["max_batch_size"] == (8 if batched else 0)
    assert ("dynamic_batching" in config) == batched
    if batched:
        assert config["dynamic_batching"]["preferred_batch_size"] == [2]
    for kind, tensors in (("input", graph.input), ("output", graph.output)):
        assert [one["name"] for one in config[kind]] == [one.name for one in tensors]
        for one, tensor in zip(config[kind], tensors, strict=True):
            shape = [size.dim_value or -1 for size in tensor.type.tensor_type.shape.dim]
            assert one["dims"] == shape[1:] if batched else shape
            assert one["data_type"] == TRITON_TYPES[tensor.type.tensor_type.elem_type]
    proto = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="no tritonclient: read by our own parser")
    from google.protobuf import text_format

    theirs = text_format.Parse(text, proto.ModelConfig())
    assert [list(one.dims) for one in theirs.output] == [one["dims"] for one in config["output"]]
    assert theirs.max_batch_size == config["max_batch_size"]
