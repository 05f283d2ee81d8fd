"""What a deployed model has that the trained one has not: its canvas, constants of its post-processing, its graph."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from directdet.common.errors import UsageProblem
from directdet.export.formats import CALIBRATED, FORMATS
from directdet.export.onnx_graph import GraphFacts, write_onnx
from directdet.export.options import ExportOptions
from directdet.infer.preprocess import Preprocess
from directdet.models.parts.network import Network

LARGEST_SIDE = 4096  # pixels
SAMPLES = 8  # pictures that show which layers would overflow in a lower precision


def deployed_preprocess(trained: Preprocess, size: tuple[int, int] | None) -> Preprocess:
    """The Preprocess of an artefact: onto a fixed canvas of `size`, by default the one evaluated at in training."""
    if trained.warp:
        if size not in (None, trained.size):
            shown, own = (",".join(map(str, edges)) for edges in (size, trained.size))
            raise UsageProblem(f"--size {shown}: this model is made for {own} alone; leave --size out")
        return trained
    if size is None:
        short, long = trained.size
        size = (short, long) if trained.fixed else (-(-short // 32) * 32, -(-long // 32) * 32)
    height, width = size
    if any(side % 32 or not 32 <= side <= LARGEST_SIDE for side in size):
        raise UsageProblem(f"--size {height},{width}: height and width must be multiples of 32, at most {LARGEST_SIDE}")
    return replace(trained, size=(height, width), fixed=True)


def with_thresholds(config: Any, options: ExportOptions) -> Any:
    """The model's configuration with the thresholds that are asked for; UsageProblem where it cannot have them."""
    if options.proposals is not None and not hasattr(config, "test_proposals"):
        raise UsageProblem(f"--proposals {options.proposals}: this model makes none; leave it out")
    unknown = [name for name in options.thresholds if not hasattr(config, name)]
    if unknown:
        raise UsageProblem(f"{', '.join(unknown)}: this model has no such setting")
    most = getattr(config, "candidates", None)
    if options.detections is not None and most is not None and options.detections > most:
        raise UsageProblem(f"--detections {options.detections}: at most {most}, as many as enter this model's NMS")
    return replace(config, **options.thresholds)


def write_graph(
    model: Network,
    preprocess: Preprocess,
    options: ExportOptions,
    pictures: Sequence[tuple[str, np.ndarray]],
    path: Path,
) -> GraphFacts:
    """Write the graph that the options ask for; what is to be calibrated is in fp32 first.

    Args:
        preprocess: of the artefact.
        pictures: names and BGR images; the first ones show what a lower precision meets.
    """
    samples, precision = None, "fp32" if options.precision == CALIBRATED else options.precision
    if precision != "fp32":
        samples = torch.from_numpy(np.stack([preprocess(image)[0] for _, image in pictures[:SAMPLES]]))
    canvas = preprocess if options.input == "uint8" else None
    loops = FORMATS[options.format].loops
    return write_onnx(model, preprocess.size, options.batch_sizes, path, canvas, precision, samples, loops)
