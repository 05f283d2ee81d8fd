"""The formats of an artefact: what each can hold, and the runtimes that run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

INPUTS = ("uint8", "float32")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
CALIBRATED = "int8"  # the precision that needs pictures


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: the model file.
        precisions: those its runtimes have.
        capabilities: whether it is built for named GPUs.
        runs_on: the runtimes that run it.
        loops: whether masks are computed, and SSD's candidates compared, in a loop, as many as a picture needs; an
            engine computes all at once, as every turn of a loop would make its GPU wait.
    """

    file: str
    precisions: tuple[str, ...]
    capabilities: bool
    runs_on: str
    loops: bool


FORMATS = {
    "onnx": Format("model.onnx", ("fp32", "fp16", "int8"), False, "ONNX Runtime, OpenVINO", True),
    "openvino": Format("model.xml", ("fp32", "fp16", "bf16", "int8"), False, "OpenVINO", True),
    "tensorrt": Format("model.engine", PRECISIONS, False, "TensorRT, where built", False),
    "tensorrt-rtx": Format("model.engine", PRECISIONS, True, "TensorRT-RTX", False),
}


def formats_table() -> Table:
    """The formats and what each takes."""
    from rich.table import Table

    table = Table("--format", "--precision", "capabilities", "runs with", title="formats")
    for name, about in FORMATS.items():
        table.add_row(name, " ".join(about.precisions), "one or more" if about.capabilities else "-", about.runs_on)
    lines = (
        f"All: --input {' or '.join(INPUTS)}; --batch N, or MIN,OPT,MAX for any between;",
        "--size H,W, multiples of 32 (a model made for one size takes no other).",
        f"{CALIBRATED} needs --data. capabilities: of GPUs, for --compute-capability.",
        "OpenVINO also computes an fp32 artefact in bf16 if run with --precision bf16.",
    )
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table
