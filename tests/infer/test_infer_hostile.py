"""Artefacts from strangers: small files that ask for much memory, and weights that meta.json does not list."""

import hashlib
import json
import os

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from directdet.common.errors import UserError
from directdet.infer.external_data import external_files
from directdet.infer.predict.images import predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.preprocess import MOST_CANVAS, Preprocess, fixture_image
from directdet.infer.runtimes.load import load


def changed(folder, **fields):
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def listed(folder, *names):
    """The hashes of the files as they are now."""
    return changed(folder, files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names})


@pytest.mark.parametrize(("size", "divisor"), [([30000, 30000], 32), ([4096, 4097], 32), ([64, 64], 10**9)])
def test_a_canvas_that_no_network_has_is_refused_before_it_is_made(artefact, size, divisor):
    meta = json.loads((artefact / "meta.json").read_text())
    changed(artefact, preprocess={**meta["preprocess"], "size": size, "divisor": divisor, "fixed": size[0] > 64})
    with pytest.raises(UserError, match=rf"meta\.json: preprocess: size .*{MOST_CANVAS} pixels"):
        load(artefact)


def test_the_largest_canvas_of_export_can_be_read():
    wanted = Preprocess((4096, 4096))
    assert Preprocess.from_dict(wanted.to_dict()) == wanted


def external(folder, where):
    """Make a tensor of the graph, in one of the places where tensors are, name a file for its values."""
    model = onnx.load(folder / "model.onnx")
    values = np.ones(4, np.float32)
    tensor = helper.make_tensor("out", TensorProto.FLOAT, [4], values.tobytes(), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value="weights.bin")
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "constant":
        model.graph.node.append(helper.make_node("Constant", [], ["other"], value=tensor))
    elif where == "branch":
        inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "g", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    elif where == "sparse":
        model.graph.sparse_initializer.add(values=tensor)
    else:
        node = helper.make_node("Constant", [], ["y"], value=tensor)
        model.functions.append(helper.make_function("d", "f", [], ["y"], [node], [helper.make_opsetid("", 17)]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "weights.bin").write_bytes(values.tobytes())
    return folder


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "sparse", "function"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_external_weights_have_to_be_listed(artefact, where, runtime):
    pytest.importorskip(runtime)
    listed(external(artefact, where), "model.onnx")
    with pytest.raises(UserError, match=r"files: 'weights\.bin' holds weights of model\.onnx but is not listed"):
        load(artefact, runtime)
    assert external_files(artefact / "model.onnx") == {"weights.bin"}


def test_listed_external_weights_are_read(artefact):
    listed(external(artefact, "initializer"), "model.onnx", "weights.bin")
    assert len(load(artefact, device="cpu")(fixture_image(50, 60))) == 2


@pytest.mark.parametrize("content", [b"", b"\x00", b"\x3a\xff\xff\xff\xff\x0f", b"\x0b", b"no graph at all"])
def test_what_is_no_onnx_file_is_told(artefact, content):
    (artefact / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx: .*export again"):
        load(listed(artefact, "model.onnx"))


def test_the_weights_of_openvino_have_to_be_listed(artefact, tmp_path):
    openvino = pytest.importorskip("openvino")
    outside = tmp_path / "outside.bin"
    openvino.save_model(openvino.convert_model(artefact / "model.onnx"), artefact / "model.xml")
    os.replace(artefact / "model.bin", outside)
    (artefact / "model.bin").symlink_to(outside)
    changed(artefact, kind="openvino", file="model.xml")
    with pytest.raises(UserError, match=r"'model\.bin' holds weights of model\.xml but is not listed"):
        load(listed(artefact, "model.xml"))
    with pytest.raises(UserError, match=r"model\.bin: is a link to a file outside its folder"):
        load(listed(artefact, "model.xml", "model.bin"))
    os.replace(outside, artefact / "model.bin")
    assert len(load(listed(artefact, "model.xml", "model.bin"))(fixture_image(50, 60))) == 2


def test_a_graph_that_fails_when_it_runs_is_told_in_one_line(artefact):
    """It loads; only the values of an input show that its pixels do not fill a shape."""
    model = onnx.load(artefact / "model.onnx")
    nodes = [
        helper.make_node("Cast", ["column"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "one_less"], ["flat"]),
        helper.make_node("Add", ["flat", "seven"], ["shape"]),
        helper.make_node("Reshape", ["images", "shape"], ["shaped"]),
        helper.make_node("Slice", ["shaped", "zero", "three"], ["some"]),
        helper.make_node("Add", ["scores_value", "some"], ["scores"]),
    ]
    model.graph.initializer.append(helper.make_tensor("one_less", TensorProto.INT64, [1], [-1]))
    for name, value in (("seven", 7), ("zero", 0), ("three", 3)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    kept = [node for node in model.graph.node if "scores" not in node.output]
    del model.graph.node[:]
    model.graph.node.extend([*kept, *nodes])
    (artefact / "model.onnx").write_bytes(model.SerializeToString())
    detector = load(listed(artefact, "model.onnx"), "onnxruntime", device="cpu")
    with pytest.raises(UserError, match=r"model\.onnx: .* cannot run it: .*export again") as caught:
        detector(fixture_image(50, 60))
    assert "\n" not in str(caught.value)


def test_so_is_what_openvino_says(artefact):
    """It computes something for the graph above; other graphs make it fail."""
    pytest.importorskip("openvino")

    class Request:
        def infer(self, *_, **__):
            raise RuntimeError("Exception from src/inference.cpp\n shapes do not match\n")

    detector = load(artefact, "openvino")
    detector.backend._idle.append(Request())
    with pytest.raises(UserError, match=r"model\.onnx: OpenVINO cannot run it: .* do not match; export again"):
        detector(fixture_image(50, 60))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("category_ids", [1, True, 3], "category_ids: expected integers"),
        ("category_ids", [1, 10**30, 3], "category_ids: expected integers"),
        ("classes", ["a", 3, "b"], "classes: expected names"),
        ("file", "model.xml", "model.xml"),
        ("kind", "openvino", "does not end in .xml"),
    ],
)
def test_odd_fields_are_named(artefact, field, value, says):
    with pytest.raises(UserError, match=r"meta\.json: ") as caught:
        load(changed(artefact, **{field: value}))
    assert says in str(caught.value)


def test_a_name_that_is_not_utf_8_is_written_and_read(artefact, tmp_path):
    pictures, name = tmp_path / "pictures", os.fsdecode(b"a\xff.png")
    pictures.mkdir()
    (pictures / name).write_bytes(cv2.imencode(".png", fixture_image(40, 50))[1].tobytes())
    for results in ("coco", "jsonl"):
        options = PredictOptions(pictures=False, results=results)
        summary = predict(load(artefact, device="cpu"), pictures, tmp_path / results, options, progress=False)
        content = json.loads(summary.results_file.read_bytes())
        line = content["images"][0] if results == "coco" else content
        assert line["file_name"] == (pictures / name).as_posix()
