"""Write a deployed network as ONNX, with batch normalisation folded, and check what the graph contains."""

import contextlib
import copy
import functools
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from directdet.common.errors import UserError
from directdet.infer.preprocess import Preprocess
from directdet.models.build import deploy_model, fold_model
from directdet.models.parts.fold import Folding
from directdet.models.parts.network import Network
from directdet.models.parts.postprocess import output_names

OPSET = 18
INPUT_NAME = "images"
# A graph without these runs everywhere without a plugin: TensorRT-RTX cannot run NonMaxSuppression, RoiAlign and
# NonZero, and a normalisation that is not folded costs speed in every runtime. The only control flow are NMS's Loop,
# which ends before it begins on ordinary pictures, and those of masks and of SSD's rounds, where the format has them.
FORBIDDEN = ("BatchNormalization", "NonMaxSuppression", "RoiAlign", "NonZero", "If")
FOLD_TOLERANCE = 1e-4  # relative to the largest value of each map


@dataclass(frozen=True)
class GraphFacts:
    """What was written.

    Attributes:
        operators: nodes by operator.
        folded: batch normalisations folded. fold_error: the largest relative change of the maps by that.
        kept_fp32: what stayed in float32 in a graph of lower precision, and why, a line each.
        opset: version of ONNX's operator set.
        unfolded: batch normalisations that follow no convolution, and became a product and a sum.
    """

    operators: dict[str, int]
    folded: int
    fold_error: float
    kept_fp32: tuple[str, ...] = ()
    opset: int = OPSET
    unfolded: tuple[str, ...] = ()


class CanvasInput(nn.Module):
    """forward(canvases uint8 [N, H, W, C]) -> outputs of `deployed` for them, normalised as Preprocess does it.

    Three channels are BGR, others in the order of the file.

    The cast comes first: TensorRT has no other operation on uint8. Subtraction and multiplication of float32 are
    exact to the last digit, and so the same in every runtime. Pixels of the padding's colour, the mean rounded to grey
    levels, become exactly zero; a canvas without padding is left as it is.
    """

    mean: Tensor
    factor: Tensor
    rgb: Tensor
    padding: Tensor

    def __init__(self, deployed: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.deployed = deployed
        for name, values in zip(("mean", "factor"), preprocess.factors, strict=True):
            self.register_buffer(name, torch.from_numpy(values).reshape(-1, 1, 1), persistent=False)
        self.is_rgb = preprocess.pixels.is_rgb
        self.register_buffer("rgb", torch.tensor([2, 1, 0]), persistent=False)
        colour = torch.tensor(preprocess.pixels.padding, dtype=torch.float32).reshape(-1, 1, 1)
        self.register_buffer("padding", colour, persistent=False)
        self.padded = not preprocess.warp

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        planes = images.float().permute(0, 3, 1, 2)
        if self.is_rgb:
            planes = planes.index_select(1, self.rgb)
        values = (planes - self.mean) * self.factor
        if self.padded:
            # Whole grey levels, so the product is exact. ONNX Runtime is slow at a maximum over channels and at Where.
            levels = [(plane - grey).abs() for plane, grey in zip(planes.split(1, 1), self.padding, strict=True)]
            values = values * functools.reduce(torch.maximum, levels).clamp(max=1)
        return self.deployed(values)


def fold(model: Network, size: tuple[int, int]) -> tuple[Network, Folding, float]:
    """A copy of `model` without batch normalisation, what was folded, and the largest relative change by that.

    Raises:
        UserError: folding changes the raw maps by more than rounding.
    """
    folded = copy.deepcopy(model).eval()
    images = torch.randn(1, model.in_channels, *size, generator=torch.Generator().manual_seed(0))
    folding = fold_model(folded)
    with torch.no_grad():
        before, after = model.eval()(images), folded(images)
    maps = [*zip(before.features, after.features, strict=True), (before.logits, after.logits)]
    error = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in maps)
    if not error <= FOLD_TOLERANCE:
        raise UserError(f"folding batch normalisation changed the network's maps by {error:.1e} of their size")
    return folded, folding, error


def write_onnx(
    model: Network,
    size: tuple[int, int],
    batch: int | tuple[int, int, int],
    path: Path,
    canvas: Preprocess | None = None,
    precision: str = "fp32",
    samples: Tensor | None = None,
    loops: bool = False,
) -> GraphFacts:
    """Write network and post-processing for images of `size` to `path`; no plugin is needed to run the graph.

    Args:
        model: a network of `build_model`.
        size: (height, width) of the input in pixels.
        batch: images per run, a constant of the graph; or the fewest, usual and most of them.
        canvas: the graph takes this preprocessing's uint8 canvases [N, H, W, C] and normalises them itself; None: it
            takes float32 [N, C, H, W], normalised.
        precision: "fp32", "fp16" or "bf16".
        samples: normalised float32 [N, C, H, W] that show which layers meet values too large for a lower precision.
        loops: see `formats.Format`.

    Raises:
        UserError: folding changed the network, or the graph holds something that not every runtime takes.
    """
    least, _, most = (batch, batch, batch) if isinstance(batch, int) else batch
    folded, folding, error = fold(model, size)
    deployed = deploy_model(folded, size, portable=True, loops=loops).eval()
    kept, opset = [], OPSET
    if precision != "fp32":
        from directdet.export.precision import BF16_OPSET, reduce_precision

        kept = reduce_precision(deployed, precision, samples)
        opset = BF16_OPSET if precision == "bf16" else OPSET
    fixed, channels = least == most, model.in_channels
    # torch.export always makes a size of 1 a constant; any other number is a good example.
    rows = least if fixed else max(2, least)
    if canvas is not None:
        deployed = CanvasInput(deployed, canvas).eval()
        images = torch.randint(
            0, 256, (rows, *size, channels), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
        )
    else:
        images = torch.randn(rows, channels, *size, generator=torch.Generator().manual_seed(1))
    dynamic = None if fixed else ({0: torch.export.Dim("batch", min=least, max=most)},)
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            deployed,
            (images,),
            str(path),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(output_names(model.config)),
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
    del folded, deployed
    graph = finish_graph(path)
    _check_batch(graph, None if fixed else "batch", path)
    operators = count_operators(graph)
    found = [name for name in FORBIDDEN if name in operators]
    if found:
        raise UserError(f"{path}: the graph holds {', '.join(found)}, which not every runtime takes")
    return GraphFacts(operators, folding.folded, error, tuple(kept), opset, folding.unfolded)


def finish_graph(path: Path, about: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """Take what only describes how the graph was made out of the file, and put `about` into its metadata, as JSON.

    Exporters note source lines and paths of this machine at every node. The file gets the oldest IR version that its
    operator set allows, since older runtimes refuse newer ones whatever is in them.

    Returns the graph, which ONNX's checker has accepted.
    """
    graph = onnx.load(str(path))
    inner = [graph.graph, *graph.functions]
    for one in inner:
        inner += [sub for node in one.node for value in node.attribute for sub in (value.g, *value.graphs) if sub.node]
    for one in inner:
        parts = [one, *one.node, *one.value_info]
        if isinstance(one, onnx.GraphProto):
            parts += [*one.initializer, *one.input, *one.output]
        for part in parts:
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.ir_version = onnx.helper.find_min_ir_version_for(graph.opset_import, ignore_unknown=True)
    onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in (about or {}).items()})
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
    return graph


def _check_batch(graph: onnx.ModelProto, name: str | None, path: Path) -> None:
    """UserError unless every input and output has the batch `name`, or a constant one where that is None.

    A constant where a name should be would mean that tracing fixed the batch.
    """
    for value in [*graph.graph.input, *graph.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if (first.dim_param or None) != name:
            shown = first.dim_param or first.dim_value
            wanted = name or "a constant"
            raise UserError(f"{path}: {value.name} has a batch of {shown}, not {wanted}; please report this model")


def count_operators(graph: onnx.ModelProto) -> dict[str, int]:
    """Nodes by operator, in subgraphs and functions too, most frequent first."""
    counts: Counter[str] = Counter()

    def walk(nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            counts[node.op_type] += 1
            for attribute in node.attribute:
                for subgraph in [attribute.g, *attribute.graphs]:
                    walk(subgraph.node)

    walk(graph.graph.node)
    for function in graph.functions:
        walk(function.node)
    return dict(counts.most_common())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's progress messages and version warnings; errors still come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
