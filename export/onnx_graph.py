"""Writing the deployed graph as ONNX, with batch normalisation folded, and checking what is in it."""

import contextlib
import copy
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from ..errors import UserError
from ..models.build import deploy_model
from ..models.norm import fold_batch_norm
from ..models.postprocess import output_names

OPSET = 18
# A graph with none of these runs everywhere without a plugin: TensorRT-RTX has no runner for the first four, and
# control flow or unfolded normalisations cost speed in every runtime.
FORBIDDEN = ("BatchNormalization", "NonMaxSuppression", "RoiAlign", "NonZero", "If", "Loop")
FOLD_TOLERANCE = 1e-4  # relative to the largest value of each map


@dataclass(frozen=True)
class GraphFacts:
    """What was written: nodes by operator, normalisations folded, and the largest relative change folding made."""

    operators: dict[str, int]
    folded: int
    fold_error: float


def fold(model: nn.Module, size: tuple[int, int]) -> tuple[nn.Module, int, float]:
    """A copy of `model` without batch normalisation; how many were folded; the largest relative difference it makes.

    Raises UserError if folding changes the raw maps by more than rounding.
    """
    folded = copy.deepcopy(model).eval()
    owner = folded if hasattr(folded, "conv_norm_pairs") else folded.backbone  # some normalise their heads too
    count = fold_batch_norm(folded, owner.conv_norm_pairs())
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = model.eval()(images), folded(images)
    pairs = [*zip(before.features, after.features, strict=True), (before.logits, after.logits)]
    error = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
    if not error <= FOLD_TOLERANCE:
        raise UserError(f"folding batch normalisation changed the network's maps by {error:.1e} of their size")
    return folded, count, error


def write_onnx(model: nn.Module, size: tuple[int, int], batch: int, path: Path) -> GraphFacts:
    """Write network and post-processing for images [batch, 3, *size] to `path`; no plugin is needed to run it."""
    folded, count, error = fold(model, size)
    deployed = deploy_model(folded, size, portable=True).eval()
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            deployed,
            (images,),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(output_names(model.config)),
            external_data=False,
            verbose=False,
        )
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph)
    operators = count_operators(graph)
    found = [name for name in FORBIDDEN if name in operators]
    if found:
        raise UserError(f"{path}: the graph holds {', '.join(found)}, which not every runtime takes")
    return GraphFacts(operators, count, error)


def count_operators(graph: onnx.ModelProto) -> dict[str, int]:
    """Nodes by operator, in subgraphs and functions too, commonest first."""
    counts: Counter[str] = Counter()

    def walk(nodes: list) -> None:
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
    """Keep the exporter's progress chatter and version warnings from the user; errors still come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
