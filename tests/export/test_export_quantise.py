"""int8: which nodes are quantised, which are left out and why, and that the detections stay near."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from reduced_graphs import NETWORKS, images_for, matched, run_onnxruntime, run_openvino, size_of, write

from directdet.common.errors import UserError
from directdet.export.layers import onnx_layers, openvino_layers
from directdet.export.quantise import _onnx_errors, quantise_onnx, quantise_openvino
from directdet.export.tensorrt import build_engine
from directdet.models.build import deploy_model

LABELS = ["stem", "one", "two", "skip", "head"]


def little_graph(path: Path) -> Path:
    """Raw uint8 [1, 16, 16, 3] through a residual block to scores and a product of computed values, as in NMS."""
    rng = np.random.default_rng(0)
    shapes = {
        "stem": (8, 3, 3, 3),
        "one": (8, 8, 3, 3),
        "two": (8, 8, 3, 3),
        "skip": (8, 8, 1, 1),
        "head": (4, 8, 3, 3),
    }
    values = {f"{name}.weight": rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {f"{name}.bias": rng.normal(0, 0.1, shape[0]).astype(np.float32) for name, shape in shapes.items()}
    values |= {"mean": np.full((1, 3, 1, 1), 120, np.float32), "std": np.full((1, 3, 1, 1), 1 / 58, np.float32)}
    values["shape"] = np.array([1, 4, -1], np.int64)

    def conv(name: str, source: str) -> onnx.NodeProto:
        pads = [shapes[name][2] // 2] * 4
        return helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [name], f"node_{name}", pads=pads)

    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "mean"], ["centred"], "centred"),
        helper.make_node("Mul", ["centred", "std"], ["normalised"], "normalised"),
        conv("stem", "normalised"),
        helper.make_node("Relu", ["stem"], ["stem_relu"], "stem_relu"),
        helper.make_node("MaxPool", ["stem_relu"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        conv("one", "pooled"),
        helper.make_node("Relu", ["one"], ["one_relu"], "one_relu"),
        conv("two", "one_relu"),
        conv("skip", "pooled"),
        helper.make_node("Add", ["two", "skip"], ["sum"], "sum"),
        helper.make_node("Relu", ["sum"], ["sum_relu"], "sum_relu"),
        conv("head", "sum_relu"),
        helper.make_node("Reshape", ["head", "shape"], ["logits"], "logits"),
        helper.make_node("Transpose", ["logits"], ["turned"], "turned", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["logits", "turned"], ["scores"], "post"),
        helper.make_node("Add", ["scores", "scores"], ["outputs"], "post_add"),
    ]
    graph = helper.make_graph(
        nodes,
        "little",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 16, 16, 3])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [1, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture
def little(tmp_path) -> Path:
    return little_graph(tmp_path / "little.onnx")


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (1, 16, 16, 3), np.uint8) for _ in range(50)]


def run(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


def test_layers_are_found(little):
    layers = onnx_layers(onnx.load(little))
    assert list(layers.labels.values()) == LABELS and layers.first == ("stem",) and layers.last == ("head",)
    between = {"pool", "sum", "stem_relu", "one_relu", "sum_relu"}
    assert set(layers.operators) == {f"node_{name}" for name in LABELS} | between
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    theirs = openvino_layers(openvino.Core().read_model(little))
    assert sorted(theirs.labels.values()) == sorted(LABELS)
    assert (theirs.first, theirs.last, theirs.input) == (layers.first, layers.last, layers.input)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_raw_picture_graph_is_quantised(little, batches, tmp_path, symmetric):
    facts = quantise_onnx(little, tmp_path / "int8.onnx", batches, symmetric=symmetric)
    # ONNX Runtime's own flavour leaves the last layer out: see the reason.
    assert facts.quantised["Conv"] == (5 if symmetric else 4) and facts.quantised["Add"] == 1
    assert list(facts.left_out) == ([] if symmetric else ["head"])
    assert facts.images == 50 and facts.holds is None
    graph = onnx.load(tmp_path / "int8.onnx").graph
    nodes = {node.name: node for node in graph.node}
    makers = {output: node.op_type for node in graph.node for output in node.output}
    assert makers.get(nodes["post"].input[0]) != "DequantizeLinear" and list(nodes["post_add"].input) == ["scores"] * 2
    weights = [v for v in graph.initializer if v.data_type == TensorProto.INT8 and len(v.dims) == 4]
    assert len(weights) == facts.quantised["Conv"]
    zero_points = {
        numpy_helper.to_array(v).dtype.name: numpy_helper.to_array(v)
        for v in graph.initializer
        if "zero_point" in v.name and v.dims == []
    }
    assert set(zero_points) == ({"int8"} if symmetric else {"uint8"})
    if symmetric:
        assert not any(numpy_helper.to_array(v).any() for v in graph.initializer if "zero_point" in v.name)
        assert not any(v.data_type == TensorProto.INT32 for v in graph.initializer)  # biases are float
    expected, found = run(little, batches[0]), run(tmp_path / "int8.onnx", batches[0])
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_weights_of_seven_bits(little, batches, tmp_path):
    largest = []
    for reduce_range in (False, True):
        facts = quantise_onnx(little, tmp_path / "int8.onnx", batches, reduce_range=reduce_range)
        assert ("7 bits" in facts.scheme) == reduce_range
        graph = onnx.load(tmp_path / "int8.onnx").graph
        weights = [v for v in graph.initializer if v.data_type == TensorProto.INT8 and len(v.dims) == 4]
        largest.append(max(int(np.abs(numpy_helper.to_array(v).astype(int)).max()) for v in weights))
    assert largest == [127, 64]
    expected, found = run(little, batches[0]), run(tmp_path / "int8.onnx", batches[0])
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_nncf_quantises_it_too(little, batches, tmp_path):
    pytest.importorskip("nncf", reason="nncf is not installed")
    facts = quantise_openvino(little, tmp_path / "int8.xml", batches)
    assert facts.quantised["Convolution"] == 5 and facts.quantised["Add"] == 1 and not facts.left_out
    expected = run(little, batches[0])
    found = run_openvino(tmp_path / "int8.xml", batches[0])[0]
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def layers_in_int8(path: Path) -> set[str]:
    """Labels of the convolutions of an ONNX or OpenVINO file whose weights are quantised."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        return {node.output[0].split("_")[0] for node in graph.node if node.op_type == "Conv"} & {
            v.name.split(".")[0] for v in graph.initializer if v.data_type == TensorProto.INT8
        }
    from openvino import Core

    convs = [op for op in Core().read_model(path).get_ordered_ops() if op.get_type_name() == "Convolution"]
    names = {"node_" + label: label for label in LABELS}
    return {
        next(label for name, label in names.items() if op.get_friendly_name().startswith((name, label)))
        for op in convs
        if op.input_value(1).get_node().get_type_name() != "Constant"
    }


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_layers_are_left_out_until_the_score_holds(little, batches, tmp_path, kind):
    """A score that depends on which layers are quantised: the first one costs little, the last two much."""
    quantise, target = (quantise_onnx, "int8.onnx") if kind == "onnx" else (quantise_openvino, "int8.xml")
    if kind == "openvino":
        pytest.importorskip("nncf", reason="nncf is not installed")
    asked = []

    def score(path: Path) -> float:
        if path == little:
            return 0.5
        inside = layers_in_int8(path)
        asked.append(inside)
        return (
            0.5 - 0.002 * ("stem" in inside) - 0.01 * ("head" in inside) - 0.02 * ("one" in inside or "two" in inside)
        )

    settings = {"symmetric": True} if kind == "onnx" else {}
    facts = quantise(little, tmp_path / target, batches, score, **settings)
    assert asked[0] == set(LABELS) and asked[1] == set(LABELS) - {"stem"} and asked[2] == set(LABELS) - {"stem", "head"}
    assert all(later < earlier for earlier, later in pairwise(asked)) and len(asked) <= 5
    assert facts.holds and facts.score_before == 0.5 and facts.score_after == 0.5
    assert facts.left_out["stem"] == "sees the image" and facts.left_out["head"] == "gives scores, boxes or masks"
    assert "dB" in facts.left_out["one"] and "dB" in facts.left_out["two"]
    assert layers_in_int8(tmp_path / target) == set(LABELS) - set(facts.left_out)


@pytest.mark.parametrize("symmetric", [False, True])
def test_errors_are_those_of_256_values(little, batches, tmp_path, symmetric):
    """Even values of 8 bits have 59 dB, and values that were quantised before lose nothing; a ReLU that a quantiser
    stands for must not count as an error (3 dB)."""
    quantise_onnx(little, tmp_path / "int8.onnx", batches, symmetric=symmetric)
    errors = _onnx_errors(tmp_path / "int8.onnx", onnx_layers(onnx.load(little)), batches)
    assert set(errors) == set(LABELS) and 20 < min(errors.values()) < 60


def test_the_best_attempt_stays_where_the_score_does_not_hold(little, batches, tmp_path):
    scores = iter([0.5, 0.3, 0.4, 0.2, 0.1, 0.1])
    with pytest.warns(UserWarning, match=r"falls from 0.5000 to 0.4000"):
        facts = quantise_onnx(little, tmp_path / "int8.onnx", batches, lambda _: next(scores), symmetric=True)
    assert facts.holds is False and facts.score_after == 0.4
    assert list(facts.left_out) == ["stem"] and layers_in_int8(tmp_path / "int8.onnx") == set(LABELS) - {"stem"}


def test_mistakes(little, batches, tmp_path):
    with pytest.raises(UserError, match="no pictures"):
        quantise_onnx(little, tmp_path / "int8.onnx", [])
    with pytest.warns(UserWarning, match="calibrated on 3 pictures only"):
        quantise_onnx(little, tmp_path / "int8.onnx", iter(batches[:3]), symmetric=True)
    with pytest.raises(UserError, match="no convolution or linear layer"):
        quantise_onnx(tmp_path / "int8.onnx", tmp_path / "again.onnx", batches)


# ---- Detectors


@pytest.fixture(scope="module")
def detector(request, tmp_path_factory):
    """A network, its float32 graph, calibration batches, pictures and what it finds there."""
    torch.set_num_threads(1)
    model = NETWORKS[request.param]().eval()
    path = tmp_path_factory.mktemp("int8") / "fp32.onnx"
    write(model, "fp32", path)
    images = images_for(model, 2, 7)
    with torch.no_grad():
        expected = [v.numpy() for v in deploy_model(model, size_of(model))(images)]
    return model, path, [image[None].numpy() for image in images_for(model, 12, 50)], images.numpy(), expected


def each(run, path, images):
    """Outputs of a graph for one picture, over several."""
    return [np.concatenate(values) for values in zip(*(run(path, image[None]) for image in images), strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["ssd_resnet", "retinanet"], indirect=True)
@pytest.mark.filterwarnings("ignore:int8. calibrated on")
@pytest.mark.parametrize("kind", ["onnxruntime", "tensorrt", "openvino"])
def test_detectors_in_int8(detector, kind, tmp_path):
    model, source, batches, images, expected = detector
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(source).graph.node)
    ends = 12 if model.config.__class__.__name__ == "SSDConfig" else 10  # predictions: of six maps, and of five
    if kind == "openvino":
        pytest.importorskip("nncf", reason="nncf is not installed")
        target, runner = tmp_path / "int8.xml", run_openvino
        facts = quantise_openvino(source, target, batches)
        assert facts.quantised["Convolution"] == convolutions
    else:
        target, runner = tmp_path / "int8.onnx", run_onnxruntime
        facts = quantise_onnx(source, target, batches, symmetric=kind == "tensorrt")
        assert facts.quantised["Conv"] == convolutions - (0 if kind == "tensorrt" else ends)
        matrix = [node for node in onnx.load(target).graph.node if node.op_type == "MatMul"]
        assert {len(node.input) for node in matrix} == {2} and len(matrix) >= 8  # the sweeps of NMS, in every round
    found = each(runner, target, images)
    assert matched(expected, found, 8.0, 0.2)[0] >= 0.7
    if kind == "tensorrt":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
        assert build_engine("tensorrt-rtx", target, tmp_path / "model.engine", ("8.9",)).layers > 500
