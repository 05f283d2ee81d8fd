"""int8 by post-training quantisation: ONNX Runtime's quantiser for ONNX and TensorRT, NNCF for OpenVINO.

Layers that multiply by weights are quantised, and the operations between them: sums of maps, max-pooling, upsampling.
Post-processing stays as it is. Where a score is given, layers are left out of quantisation, in a few steps, until the
score is near enough to that in float32.
"""

import logging
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader

from directdet.common.errors import UserError
from directdet.export.layers import PASSING, Layers, onnx_layers, openvino_layers
from directdet.infer.runtimes.openvino_core import openvino_core

ENOUGH_IMAGES = 50
# How many of the layers with the largest error are left out in the first step, and in the second.
WORST = (2, 4)
PICTURES_FOR_ERRORS = 2
ALLOWED_DROP = 0.005
_NO_ARITHMETIC = {"Constant", "Parameter", "Result"}  # NNCF ignores them anyway


@dataclass(frozen=True)
class QuantFacts:
    """What became int8.

    Attributes:
        quantiser: library and version.
        scheme: types of activations and weights.
        quantised: nodes with int8 inputs by operator.
        left_out: layers in floating point by name of their weights, with the reason.
        images: pictures calibrated on.
        score_before, score_after: of the graph given and of the one written; None without a score.
        allowed_drop: from score_before to score_after.
    """

    quantiser: str
    scheme: str
    quantised: dict[str, int]
    left_out: dict[str, str]
    images: int
    score_before: float | None = None
    score_after: float | None = None
    allowed_drop: float = ALLOWED_DROP

    @property
    def holds(self) -> bool | None:
        """Whether the score dropped by no more than is allowed; None without a score."""
        if self.score_before is None or self.score_after is None:
            return None
        return self.score_before - self.score_after <= self.allowed_drop


def quantise_onnx(
    source: Path,
    target: Path,
    batches: Iterable[np.ndarray],
    score: Callable[[Path], float] | None = None,
    *,
    symmetric: bool = False,
    reduce_range: bool = False,
    allowed_drop: float = ALLOWED_DROP,
) -> QuantFacts:
    """Write `source`, a float32 ONNX file with one input, to `target` with quantising nodes (QDQ).

    Args:
        batches: inputs of the graph, of real pictures; iterated several times.
        score: a function of a candidate file, such as its AP; larger is better. It is called at most six times.
        symmetric: int8 activations around 0 and float biases, as TensorRT needs them; else uint8 activations, which are
            faster on a CPU.
        reduce_range: weights of 7 bits, for x86 processors without VNNI, whose 16-bit sums overflow with 8.

    Raises:
        UserError: there are no batches, or no layers to quantise.
    """
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    batches, images = _counted(batches)
    layers = onnx_layers(onnx.load(str(source)))
    _require_layers(layers, source)
    extra = {"WeightSymmetric": True, "CalibMovingAverage": True}
    floating = {}
    if symmetric:
        # Layers take int8 and return floats; the next layer's input is quantised, after the ReLU.
        outputs = sorted(set(layers.operators.values()))
        extra |= {"ActivationSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": outputs}
    else:
        # ONNX Runtime's int8 layers return int8 as well, and with 256 values the scores of a picture would tie.
        floating = dict.fromkeys(layers.last, "ONNX Runtime would round its scores, boxes or masks to 8 bits")

    def quantise(left_out: Collection[str]) -> None:
        kept = set(layers.nodes_of(left_out))
        with _quiet():
            quantize_static(
                str(source),
                str(target),
                _Reader(layers.input, batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(set(layers.operators.values())),
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=[node for node in layers.operators if node not in kept],
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=extra,
            )

    def errors() -> dict[str, float]:
        return _onnx_errors(target, layers, batches)

    left_out, before, after = _search(layers, quantise, errors, score, source, target, allowed_drop, floating)
    scheme = f"{'int8' if symmetric else 'uint8'} activations, int8 weights per channel{' of 7 bits' * reduce_range}"
    return QuantFacts(
        f"onnxruntime {onnxruntime.__version__}",
        scheme,
        _quantised_onnx(target, layers),
        left_out,
        images,
        before,
        after,
        allowed_drop,
    )


def quantise_openvino(
    source: Path,
    target: Path,
    batches: Iterable[np.ndarray],
    score: Callable[[Path], float] | None = None,
    *,
    allowed_drop: float = ALLOWED_DROP,
) -> QuantFacts:
    """Write `source`, a float32 model (.onnx or .xml) with one input, to `target` (.xml and .bin) in int8.

    Arguments and errors are those of quantise_onnx; also UserError where NNCF is not installed.
    """
    try:
        with _quiet():
            import nncf
            import openvino
    except ImportError as error:
        raise UserError(f"int8 for OpenVINO needs NNCF ({error}); install directdet[openvino]") from None
    batches, images = _counted(batches)
    core = openvino_core()
    layers = openvino_layers(core.read_model(source))
    _require_layers(layers, source)

    def quantise(left_out: Collection[str]) -> None:
        model = core.read_model(source)
        quantised = set(layers.operators) - set(layers.nodes_of(left_out))
        others = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() not in _NO_ARITHMETIC]
        scope = nncf.IgnoredScope(names=[name for name in others if name not in quantised], validate=False)
        with _quiet():
            model = nncf.quantize(
                model,
                nncf.Dataset(batches),
                subset_size=len(batches) if isinstance(batches, Sized) else 300,
                target_device=nncf.TargetDevice.CPU,
                ignored_scope=scope,
            )
            openvino.save_model(model, target, compress_to_fp16=False)

    def errors() -> dict[str, float]:
        return _openvino_errors(core, target, layers, batches)

    left_out, before, after = _search(layers, quantise, errors, score, source, target, allowed_drop, {})
    scheme = "int8 activations around 0 (uint8 where none is negative), int8 weights per channel"
    return QuantFacts(
        f"nncf {nncf.__version__}",
        scheme,
        _quantised_openvino(core.read_model(target), layers),
        left_out,
        images,
        before,
        after,
        allowed_drop,
    )


def _search(
    layers: Layers,
    quantise: Callable[[Collection[str]], None],
    errors: Callable[[], dict[str, float]],
    score: Callable[[Path], float] | None,
    source: Path,
    target: Path,
    allowed_drop: float,
    left_out: dict[str, str],
) -> tuple[dict[str, str], float | None, float | None]:
    """Quantise all but `left_out`, then leave out more layers until the score holds; if it never does, keep the best.

    Returns the layers left out with the reasons, and the scores before and after.
    """
    left_out = left_out | dict.fromkeys(layers.inside, "in a loop, which the quantiser does not enter")
    quantise(left_out)
    if score is None:
        return left_out, None, None
    before, after = score(source), score(target)
    attempts = [(after, left_out)]
    if before - after > allowed_drop:
        for step in _steps(layers, errors()):
            if step.keys() <= left_out.keys():
                continue
            left_out = {**step, **left_out}
            quantise(left_out)
            after = score(target)
            attempts.append((after, left_out))
            if before - after <= allowed_drop:
                break
    best, chosen = max(attempts, key=lambda attempt: attempt[0])
    if before - after > allowed_drop:
        if chosen is not left_out:
            quantise(chosen)
        warnings.warn(f"int8: the score falls from {before:.4f} to {best:.4f}, more than {allowed_drop}", stacklevel=3)
        return chosen, before, best
    return left_out, before, after


def _steps(layers: Layers, errors: dict[str, float]) -> Iterator[dict[str, str]]:
    """What to leave out next, with reasons; each step adds to those before it."""
    yield dict.fromkeys(layers.first, "sees the image")
    yield dict.fromkeys(layers.last, "gives scores, boxes or masks")
    ends = {*layers.first, *layers.last}
    ranked = sorted((label for label in errors if label not in ends), key=errors.__getitem__)
    for start, count in ((0, WORST[0]), WORST):
        yield {label: f"its input loses most: {errors[label]:.0f} dB" for label in ranked[start : start + count]}


class _Reader(CalibrationDataReader):
    """Batches in the form that ONNX Runtime's calibration takes."""

    def __init__(self, name: str, batches: Iterable[np.ndarray]):
        self.name, self.rest = name, iter(batches)

    # ONNX Runtime's annotation leaves out None, which its documentation gives as the end.
    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch = next(self.rest, None)
        return None if batch is None else {self.name: batch}


def _onnx_errors(path: Path, layers: Layers, batches: Iterable[np.ndarray]) -> dict[str, float]:
    """Signal to quantisation noise, in dB, of the input of each quantised layer: the smallest of its nodes'."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        watched = Path(folder) / "watched.onnx"
        kinds = ["QuantizeLinear", "DequantizeLinear"]
        debug.modify_model_output_intermediate_tensors(str(path), str(watched), op_types_for_saving=kinds)
        for batch in _some(batches):  # one by one: these are all maps of the network
            activations = debug.collect_activations(str(watched), _Reader(layers.input, [batch]))
            found = debug.create_activation_matching(dict[str, Sequence[np.ndarray]](activations))
            for name, pair in found.items():
                before, after = pair["pre_qdq"][0], pair["post_qdq"][0]
                if not (after < 0).any():
                    before = before.clip(min=0)  # the quantiser replaces a ReLU too
                ratio = _decibels(np.square(before).sum(), np.square(before - after).sum())
                ratios[name] = min(ratio, ratios.get(name, ratio))
    return layers.worst(ratios)


def _openvino_errors(core: Any, path: Path, layers: Layers, batches: Iterable[np.ndarray]) -> dict[str, float]:
    """The same as _onnx_errors of an OpenVINO model."""
    model = core.read_model(path)
    quantisers = {}  # of each layer's input
    for op in model.get_ordered_ops():
        if op.get_friendly_name() in layers.labels:
            node = op.input_value(0).get_node()
            while node.get_type_name() in PASSING:  # NNCF moves quantisers up through these
                node = node.input_value(0).get_node()
            if node.get_type_name() == "FakeQuantize":
                quantisers[op.get_friendly_name()] = node
    known = len(model.outputs)
    values = [value for node in quantisers.values() for value in (node.input_value(0), node.output(0))]
    places = {(value.get_node().get_friendly_name(), value.get_index()): value for value in values}
    model.add_outputs([*places.values()])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    signal: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)
    for batch in _some(batches):
        results = [*compiled({0: batch}).values()][known:]
        found = dict(zip(places, results, strict=True))
        for layer, node in quantisers.items():
            source = node.input_value(0)
            before = found[source.get_node().get_friendly_name(), source.get_index()]
            signal[layer] += float(np.square(before).sum())
            noise[layer] += float(np.square(before - found[node.get_friendly_name(), 0]).sum())
    return layers.worst({layer: _decibels(signal[layer], noise[layer]) for layer in quantisers})


def _decibels(signal: float, noise: float) -> float:
    return float(10 * np.log10(max(signal, 1e-30) / noise)) if noise else float("inf")


def _some(batches: Iterable[np.ndarray]) -> list[np.ndarray]:
    return [batch for batch, _ in zip(batches, range(PICTURES_FOR_ERRORS), strict=False)]


def _quantised_onnx(path: Path, layers: Layers) -> dict[str, int]:
    """Quantised nodes by operator."""
    graph = onnx.load(str(path)).graph
    given: set[str] = set()
    counts: Counter[str] = Counter()
    for node in graph.node:
        quantised = bool(given.intersection(node.input[:1]))
        if node.op_type == "DequantizeLinear" or (quantised and node.op_type in PASSING):
            given.update(node.output)
        # The input may be quantised for another layer; the weights only for this one.
        if quantised and node.name in layers.operators and (node.name not in layers.labels or node.input[1] in given):
            counts[node.op_type] += 1
    return dict(counts)


def _quantised_openvino(model: Any, layers: Layers) -> dict[str, int]:
    given: set[tuple[str, int]] = set()
    counts: Counter[str] = Counter()
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        source = op.input_value(0) if op.get_input_size() else None
        quantised = source is not None and (source.get_node().get_friendly_name(), source.get_index()) in given
        if kind == "FakeQuantize" or (quantised and kind in PASSING):
            given.add((name, 0))
        floating = name in layers.labels and op.input_value(1).get_node().get_type_name() == "Constant"
        if quantised and name in layers.operators and not floating:
            counts[kind] += 1
    return dict(counts)


def _counted(batches: Iterable[np.ndarray]) -> tuple[Iterable[np.ndarray], int]:
    """The batches, in a form that can be iterated several times, and how many pictures they hold."""
    if iter(batches) is batches:
        batches = list(batches)
    images = sum(len(batch) for batch in batches)
    if not images:
        raise UserError("int8: there are no pictures to calibrate on; give --data")
    if images < ENOUGH_IMAGES:
        warnings.warn(f"int8: calibrated on {images} pictures only; 100 to 300 are usual", stacklevel=3)
    return batches, images


def _require_layers(layers: Layers, source: Path) -> None:
    if not layers.labels:
        raise UserError(f"{source}: int8: no convolution or linear layer with float32 weights in it")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the quantisers' messages; errors still come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
