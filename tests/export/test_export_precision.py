"""Half precision: what is half, what is not, that it still detects the same, and that every runtime takes it."""

import copy

import onnx
import pytest
import torch
from onnx import TensorProto
from reduced_graphs import NETWORKS, images_for, matched, run_onnxruntime, run_openvino, size_of, write
from torch import nn

from directdet.export.onnx_graph import fold
from directdet.export.precision import reduce_precision
from directdet.export.tensorrt import build_engine
from directdet.models.build import deploy_model

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
# Whatever decides about boxes and scores, and what needs sums of squares.
NEVER_HALF = {
    "Clip",
    "Exp",
    "GatherND",
    "Greater",
    "InstanceNormalization",
    "LayerNormalization",
    "Less",
    "Max",
    "Min",
    "ReduceL2",
    "ReduceMax",
    "Sigmoid",
    "Softmax",
    "Sqrt",
    "Sub",
    "TopK",
    "Where",
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def deployed(name: str, portable: bool = True) -> nn.Module:
    model = NETWORKS[name]().eval()
    return deploy_model(fold(model, size_of(model))[0], size_of(model), portable).eval()


def run(module: nn.Module, images: torch.Tensor) -> list:
    with torch.no_grad():
        return [value.numpy() for value in module(images)]


# ---- In PyTorch


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_half_and_the_rest_is_not(precision):
    module = deployed("retinanet")
    images = images_for(module.model, 1, 7)
    expected = run(module, images)
    kept = reduce_precision(module, precision)
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    assert {p.dtype for m in module.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()} == {half}
    assert module.anchors.dtype == module.limit.dtype == torch.float32
    found = run(module, images)
    assert [v.dtype for v in found] == [v.dtype for v in expected]
    share, *_ = matched(expected, found, *((0.5, 0.01) if precision == "fp16" else (4.0, 0.05)))
    assert share >= 0.95
    assert len(kept) == 2 and kept[0].startswith("softmax and sigmoid") and "box decoding" in kept[1]


@pytest.fixture
def overflowing() -> nn.Module:
    """A VGG-16 whose conv2_2 gives 20 thousand times the values, and whose conv3_1 takes them: the same network."""
    module = deployed("faster_rcnn_vgg16", portable=False)
    backbone = module.model.backbone
    with torch.no_grad():
        for parameter in backbone.conv2[1].conv.parameters():
            parameter.mul_(2e4)
        backbone.conv3[0].conv.weight.mul_(1 / 2e4)
    return module


def test_layers_that_overflow_stay_float32(overflowing):
    images = images_for(overflowing.model, 2, 7)
    with torch.no_grad():
        expected = overflowing.model(images).logits
    lost, bfloat = copy.deepcopy(overflowing), copy.deepcopy(overflowing)
    reduce_precision(lost, "fp16")  # without pictures nothing is known of the values
    with torch.no_grad():
        assert not lost.model(images).logits.isfinite().all()
    kept = reduce_precision(overflowing, "fp16", images)
    assert [line.split(":")[0] for line in kept if "were met" in line] == [
        "model.backbone.conv2.1.conv",
        "model.backbone.conv3.0.conv",
    ]
    assert all("65504" in line for line in kept[:2])
    assert overflowing.model.backbone.conv3[0].conv.weight.dtype == torch.float32
    assert overflowing.model.backbone.conv3[1].conv.weight.dtype == torch.float16
    with torch.no_grad():
        found = overflowing.model(images).logits
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert not [line for line in reduce_precision(bfloat, "bf16", images) if "were met" in line]


def test_weights_that_overflow_stay_float32():
    module = deployed("retinanet")
    with torch.no_grad():
        module.model.fpn.inner_blocks[0][0].weight[0, 0] = 1e5
    kept = reduce_precision(module, "fp16")
    assert kept[0] == "model.fpn.inner_blocks.0.0: weights up to 1e+05; fp16 ends at 65504"


# ---- Exported


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """name -> (network, path, what was kept), each written once."""
    folder, made = tmp_path_factory.mktemp("half"), {}

    def graph(name: str, precision: str = "fp16"):
        if (name, precision) not in made:
            model = NETWORKS[name]().eval()
            path = folder / f"{name}.{precision}.onnx"
            made[name, precision] = model, path, write(model, precision, path, images_for(model, 2, 8))
        return made[name, precision]

    return graph


def types_of(graph: onnx.GraphProto) -> dict[str, int]:
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {value.name: value.data_type for value in graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_detector_in_fp16(name, graphs):
    model, path, kept = graphs(name)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True).graph
    types = types_of(graph)
    for node in graph.node:
        given = {types.get(i) for i in node.input} & {HALF, FULL}
        assert len(given) < 2, node  # strongly typed: no operation takes both
        assert node.op_type not in NEVER_HALF or HALF not in given, node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            assert {types[i] for i in node.input} == {HALF}, node
    assert {types[v.name] for v in (*graph.input, *graph.output)} <= {FULL, TensorProto.INT32}
    norms = {"mask_rcnn_gn": "group normalisation", "mask_rcnn_swin": "layer normalisation (32)", "dsod": "batch norm"}
    assert len(kept) == 2 + (name in norms or name == "ssd_vgg16_plain"), kept
    assert kept[0].startswith(norms.get(name, ""))
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    held = sum(len(v.raw_data) for v in graph.initializer if v.data_type == HALF)
    assert held == pytest.approx(2 * weights, rel=0.05)

    images = images_for(model, 1, 7)
    expected = run(deploy_model(model, size_of(model)), images)
    for runtime in (run_onnxruntime, run_openvino):
        share, *_, counted = matched(expected, runtime(path, images.numpy()), 2.0, 0.02)
        assert counted >= 20 and share >= 0.9, runtime.__name__


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssd_vgg16_plain", "retinanet", "mask_rcnn", "mask_rcnn_swin"])
def test_tensorrt_rtx_builds_fp16(name, graphs, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    facts = build_engine("tensorrt-rtx", graphs(name)[1], tmp_path / "model.engine", ("8.9",))
    assert facts.layers > 500 and (tmp_path / "model.engine").stat().st_size > 100_000


@pytest.mark.slow
def test_bf16_is_for_openvino_and_tensorrt(graphs, tmp_path):
    model, path, _ = graphs("retinanet", "bf16")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    images = images_for(model, 1, 7)
    expected = run(deploy_model(model, size_of(model)), images)
    assert matched(expected, run_openvino(path, images.numpy()), 4.0, 0.05)[0] >= 0.95
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert build_engine("tensorrt-rtx", path, tmp_path / "model.engine", ("8.9",)).layers > 500
