"""Which nodes of an exported graph may be quantised: the layers with weights, and the operations between them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, shape_inference

ONNX_WEIGHTED, ONNX_BETWEEN = {"Conv", "Gemm", "MatMul"}, {"Relu", "Add", "MaxPool", "Resize"}
OPENVINO_WEIGHTED = {"Convolution", "GroupConvolution", "MatMul"}
OPENVINO_BETWEEN = {"Relu", "Add", "MaxPool", "Interpolate"}
PASSING = {"Relu", "MaxPool", "Resize", "Interpolate"}  # their output is as coarse as their input


class Node(NamedTuple):
    """A node of either runtime's graph.

    inputs, outputs: names of tensors. weights: name of the float32 weights; None for a node without. on_maps: whether
    all its inputs are computed maps [N, C, H, W].
    """

    name: str
    operator: str
    inputs: list[str]
    outputs: list[str]
    weights: str | None
    on_maps: bool


@dataclass(frozen=True)
class Layers:
    """What may be quantised.

    Attributes:
        input: the graph's only input.
        operators: operator of every node that may be quantised, layers and others, by name.
        labels: each layer node's label, the name of its weights. A layer that runs on several maps is several nodes.
        first, last: labels of the layers with no other layer before or after them.
        sources: the input tensor of each layer node.
        inside: labels of the layers in a loop's body, which the quantisers do not enter.
    """

    input: str
    operators: dict[str, str]
    labels: dict[str, str]
    first: tuple[str, ...]
    last: tuple[str, ...]
    sources: dict[str, str]
    inside: tuple[str, ...]

    def nodes_of(self, labels: Collection[str]) -> list[str]:
        return [node for node, label in self.labels.items() if label in labels]

    def worst(self, ratios: dict[str, float]) -> dict[str, float]:
        """For each layer the smallest of its nodes' ratios, which are given by node or by its input tensor."""
        found: dict[str, float] = {}
        for node, label in self.labels.items():
            ratio = ratios.get(node, ratios.get(self.sources[node]))
            if ratio is not None:
                found[label] = min(ratio, found.get(label, ratio))
        return found


def onnx_layers(model: onnx.ModelProto) -> Layers:
    """The layers of an ONNX model."""
    graph = shape_inference.infer_shapes(model).graph
    constants = {value.name: value for value in graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }

    def read(node: onnx.NodeProto) -> Node:
        weights = constants.get(node.input[1]) if node.op_type in ONNX_WEIGHTED and len(node.input) > 1 else None
        if weights is not None and weights.data_type != TensorProto.FLOAT:
            weights = None
        maps = node.input[:2] if node.op_type == "Add" else node.input[:1]
        on_maps = node.op_type in ONNX_BETWEEN and all(ranks.get(name) == 4 and name not in constants for name in maps)
        label = weights.name.removesuffix(".weight") if weights is not None else None
        return Node(node.name, node.op_type, list(node.input), list(node.output), label, on_maps)

    inputs = [value.name for value in graph.input if value.name not in constants]
    bodies = [one.g for node in graph.node if node.op_type == "Loop" for one in node.attribute if one.name == "body"]
    inside = [read(node) for body in bodies for node in body.node]
    return _layers(inputs[0], [read(node) for node in graph.node], inside)


def openvino_layers(model: Any) -> Layers:
    """The layers of an openvino.Model."""

    def is_map(value: Any) -> bool:
        return value.get_partial_shape().rank == 4 and value.get_element_type().to_string() == "f32"

    def is_constant(op: Any) -> bool:
        inner = [value.get_node() for value in op.input_values()]
        return op.get_type_name() == "Constant" or (bool(inner) and all(is_constant(node) for node in inner))

    def tensor(value: Any) -> str:
        return f"{value.get_node().get_friendly_name()}:{value.get_index()}"

    def read(op: Any) -> Node:
        values, kind = op.input_values(), op.get_type_name()
        weighted = kind in OPENVINO_WEIGHTED and is_constant(values[1].get_node())
        maps = values[:2] if kind == "Add" else values[:1]
        on_maps = kind in OPENVINO_BETWEEN and all(is_map(v) and not is_constant(v.get_node()) for v in maps)
        name = values[1].get_node().get_friendly_name() if weighted else None
        label = name.removesuffix(".weight") if name else None
        return Node(op.get_friendly_name(), kind, [*map(tensor, values)], [*map(tensor, op.outputs())], label, on_maps)

    ops = model.get_ordered_ops()
    bodies = [op.get_function() for op in ops if op.get_type_name() == "Loop"]
    inside = [read(op) for body in bodies for op in body.get_ordered_ops()]
    return _layers(model.inputs[0].any_name, [read(op) for op in ops], inside)


def _layers(name: str, nodes: list[Node], inside: list[Node]) -> Layers:
    """The layers among `nodes`, which are in the order of computation, and those `inside` of loops."""
    layers = [node for node in nodes if node.weights is not None]
    behind = _reached(nodes)
    before = _reached([node._replace(inputs=node.outputs, outputs=node.inputs) for node in reversed(nodes)])
    between = [node for node in nodes if node.on_maps and before.intersection(node.outputs)]
    first = [node for node in layers if not behind.intersection(node.inputs)]
    last = [node for node in layers if not before.intersection(node.outputs)]
    return Layers(
        name,
        {node.name: node.operator for node in (*layers, *between)},
        {node.name: node.weights for node in layers if node.weights},
        _labels(first),
        _labels(last),
        {node.name: node.inputs[0] for node in layers},
        _labels(inside),
    )


def _reached(nodes: Iterable[Node]) -> set[str]:
    """Tensors that depend on the output of some layer."""
    found: set[str] = set()
    for node in nodes:
        if node.weights is not None or found.intersection(node.inputs):
            found.update(node.outputs)
    return found


def _labels(nodes: list[Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.weights for node in nodes if node.weights))
