"""Faults that are put into an exported ONNX graph, each of a kind that exporters and converters are known to make."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from small_networks import Small


@dataclass(frozen=True)
class Damage:
    """What a fault is applied to: the graph, the state of the checkpoint, and the network's configuration."""

    model: onnx.ModelProto
    state: Any
    config: Any

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    def change(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the values of an initializer."""
        tensor = next(tensor for tensor in self.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(values)).astype(values.dtype), name))

    def weights(self, ndim: int = 4) -> list[str]:
        """Names of the convolutions' weights in the order of computation, in whatever type they are kept."""
        known = {tensor.name: tensor for tensor in self.graph.initializer}
        source = {node.output[0]: node.input[0] for node in self.graph.node if node.op_type == "DequantizeLinear"}
        names = [source.get(node.input[1], node.input[1]) for node in self.graph.node if node.op_type == "Conv"]
        return [name for name in dict.fromkeys(names) if name in known and len(known[name].dims) == ndim]

    def after(self, output: str, *nodes: tuple[str, dict[str, Any], list[np.ndarray]]) -> None:
        """Put operations behind an output, which keeps its name: (operator, attributes, further constant inputs)."""
        inner = f"{output}_sound"
        for node in self.graph.node:
            for place, name in enumerate(node.output):
                if name == output:
                    node.output[place] = inner
            for place, name in enumerate(node.input):
                if name == output:
                    node.input[place] = inner
        for number, (operator, attributes, constants) in enumerate(nodes):
            names = [f"{output}_{number}_{place}" for place in range(len(constants))]
            for name, value in zip(names, constants, strict=True):
                self.graph.initializer.append(numpy_helper.from_array(value, name))
            target = output if number == len(nodes) - 1 else f"{output}_{number}"
            self.graph.node.append(helper.make_node(operator, [inner, *names], [target], **attributes))
            inner = target


@dataclass(frozen=True)
class Fault:
    """What it does, and whether a network can have it."""

    apply: Callable[[Damage], None]
    fits: Callable[[Small], bool] = lambda network: True


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _channels(damage: Damage) -> None:
    damage.change(damage.weights()[0], lambda values: values[:, ::-1])


def _mean_and_std(damage: Damage) -> None:
    """127.5 for both, on every channel, as half of the exporters have it; a factor alone where std is 1."""
    names = {tensor.name: tuple(tensor.dims) for tensor in damage.graph.initializer}
    mean, factor = (next(name for name in names if name.split(".")[-1] == what) for what in ("mean", "factor"))
    damage.change(mean, lambda values: np.full_like(values, 127.5))
    damage.change(factor, lambda values: values * np.float32(57 / 64))


def _weights(share: float) -> Callable[[Damage], None]:
    def apply(damage: Damage) -> None:
        names = damage.weights()
        noise = np.random.default_rng(0)
        damage.change(names[len(names) // 2], lambda v: v * (1 + share * noise.standard_normal(v.shape)))

    return apply


def _identity_norm(damage: Damage) -> None:
    """The last convolution of the backbone as if its batch normalisation had never been."""
    known = {tensor.name for tensor in damage.graph.initializer}
    names = [name for name in damage.weights() if "backbone" in name]
    name = names[-1]
    raw = next(value for key, value in damage.state.items() if name.endswith(key))
    damage.change(name, lambda _: raw.numpy())
    bias = name.removesuffix("weight") + "bias"
    if bias in known:
        damage.change(bias, np.zeros_like)


def _no_bias(damage: Damage) -> None:
    known = {tensor.name for tensor in damage.graph.initializer}
    node = [n for n in damage.graph.node if n.op_type == "Conv" and len(n.input) > 2 and n.input[2] in known][3]
    damage.change(node.input[2], np.zeros_like)


def _nms(damage: Damage) -> None:
    """Boxes may overlap by 0.85 instead of what the model says."""
    found, compared = 0, {name for n in damage.graph.node if n.op_type in ("Greater", "Less") for name in n.input}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in damage.graph.initializer}
    for node in damage.graph.node:
        if node.op_type == "Mul" and node.output[0] in compared:
            for name in node.input:
                if (
                    name in constants
                    and constants[name].size == 1
                    and abs(float(constants[name].flat[0]) - damage.config.nms) < 1e-6
                ):
                    fresh = f"{name}_wrong_{found}"
                    damage.graph.initializer.append(numpy_helper.from_array(np.full_like(constants[name], 0.85), fresh))
                    node.input[list(node.input).index(name)] = fresh
                    found += 1
    assert found, "no comparison with the NMS threshold"


def _resize(damage: Damage) -> None:
    """Bilinear upsampling instead of nearest."""
    for node in damage.graph.node:
        if node.op_type == "Resize":
            kept = [
                a for a in node.attribute if a.name not in ("mode", "nearest_mode", "coordinate_transformation_mode")
            ]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("mode", "linear")])


def _no_relu(damage: Damage) -> None:
    nodes = [node for node in damage.graph.node if node.op_type == "Relu"]
    nodes[0].op_type = "Identity"  # one behind a map that is never negative would change nothing


def _behind(output: str, *nodes: tuple[str, dict[str, Any], list[np.ndarray]]) -> Callable[[Damage], None]:
    return lambda damage: damage.after(output, *nodes)


def _classes(damage: Damage) -> None:
    one, count = np.array(1, np.int32), np.array(damage.config.num_classes, np.int32)
    damage.after("labels", ("Add", {}, [one]), ("Mod", {}, [count]))


def _masks(network: Small) -> bool:
    return network.detector == "cascade" or (network.detector == "rcnn" and network.model.get("masks", True))


def _pyramid(network: Small) -> bool:
    return network.detector != "ssd"


FAULTS = {
    "channels": Fault(_channels),
    "mean_and_std": Fault(_mean_and_std),
    "weights_3_percent": Fault(_weights(0.03)),
    "weights_10_percent": Fault(_weights(0.10)),
    "norm_is_identity": Fault(_identity_norm),
    "no_bias": Fault(_no_bias),
    "no_relu": Fault(_no_relu),
    "resize_bilinear": Fault(_resize, _pyramid),
    "nms": Fault(_nms, _pyramid),
    "classes": Fault(_classes),
    "scores": Fault(_behind("scores", ("Mul", {}, [_floats(0.95)]))),
    "half_lost": Fault(_behind("num", ("Div", {}, [np.array(2, np.int32)]))),
    "shifted": Fault(_behind("boxes", ("Add", {}, [_floats(0.5)]))),
    "rounded": Fault(_behind("boxes", ("Round", {}, []))),
    "scaled": Fault(_behind("boxes", ("Mul", {}, [_floats(1.01)]))),
    "xy_swapped": Fault(_behind("boxes", ("Gather", {"axis": 2}, [np.array([1, 0, 3, 2])]))),
    "masks_transposed": Fault(_behind("masks", ("Transpose", {"perm": [0, 1, 3, 2]}, [])), _masks),
    "masks_flipped": Fault(_behind("masks", ("Gather", {"axis": 3}, [np.arange(27, -1, -1)])), _masks),
    "masks_shifted": Fault(_behind("masks", ("Gather", {"axis": 2}, [np.array([0, *range(27)])])), _masks),
}
