"""What each format of an artefact can be: the table that options are checked against, before torch is imported."""

import difflib
import re
from dataclasses import dataclass, field

from rich.table import Table

from directdet.common.errors import UsageProblem

INPUTS = ("uint8", "float32")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LARGEST_BATCH = 1024
DEFAULT_CAPABILITY = "8.9"
CALIBRATED = "int8"  # the precision that needs pictures


@dataclass(frozen=True)
class Format:
    """One format: its model file, the precisions its runtimes have, and whether it is built for named GPUs."""

    file: str
    precisions: tuple[str, ...]
    capabilities: bool
    runs_on: str


FORMATS = {
    "onnx": Format("model.onnx", ("fp32", "fp16", "int8"), False, "ONNX Runtime, OpenVINO"),
    "openvino": Format("model.xml", ("fp32", "fp16", "bf16", "int8"), False, "OpenVINO"),
    "tensorrt": Format("model.engine", PRECISIONS, False, "TensorRT, where built"),
    "tensorrt-rtx": Format("model.engine", PRECISIONS, True, "TensorRT-RTX"),
}


@dataclass(frozen=True)
class Options:
    """Checked options of an export; `batch` is the fewest, usual and most images of a run."""

    format: str = "onnx"
    precision: str = "fp32"
    input: str = "uint8"
    batch: tuple[int, int, int] = (1, 1, 1)
    capabilities: tuple[str, ...] = field(default=())
    reduce_range: bool = False


def check_options(
    format: str = "onnx",
    precision: str = "fp32",
    input: str = "uint8",
    batch: int | str = 1,
    compute_capability: str | None = None,
    data_given: bool = False,
    reduce_range: bool = False,
) -> Options:
    """Options as they will be used.

    Args:
        batch: N, or "MIN,OPT,MAX" for batches of any size between.
        compute_capability: "8.9", or several as "8.6,8.9"; None: 8.9 where the format takes one.
        data_given: there is a dataset, which int8 needs to be calibrated on.
        reduce_range: int8 weights of 7 bits, for x86 processors without VNNI: their 16-bit sums overflow with 8.

    Raises:
        UsageProblem: an unknown name (with the nearest known one), or a combination that is not in the table.
    """
    _known("--format", format, tuple(FORMATS))
    _known("--precision", precision, PRECISIONS)
    _known("--input", input, INPUTS)
    if precision not in FORMATS[format].precisions:
        raise UsageProblem(
            f"--precision {precision}: --format {format} has {', '.join(FORMATS[format].precisions)}; "
            f"{precision} is for {', '.join(name for name in FORMATS if precision in FORMATS[name].precisions)}"
        )
    if precision == CALIBRATED and not data_given:
        raise UsageProblem(f"--precision {precision}: is calibrated on real pictures; give --data")
    capabilities: tuple[str, ...] = ()
    if FORMATS[format].capabilities:
        found = [check_capability(text) for text in (compute_capability or DEFAULT_CAPABILITY).split(",")]
        capabilities = tuple(dict.fromkeys(found))
    elif compute_capability is not None:
        takers = ", ".join(name for name in FORMATS if FORMATS[name].capabilities)
        raise UsageProblem(f"--compute-capability {compute_capability}: only for --format {takers}, not {format}")
    if reduce_range and (format, precision) != ("onnx", CALIBRATED):
        raise UsageProblem(f"--reduce-range: only for --format onnx --precision {CALIBRATED}")
    return Options(format, precision, input, check_batch(batch), capabilities, reduce_range)


def check_batch(value: int | str) -> tuple[int, int, int]:
    """(MIN, OPT, MAX) of N, "N" or "MIN,OPT,MAX"; UsageProblem otherwise."""
    parts = [part.strip() for part in str(value).split(",")]
    numbers = [int(part) for part in parts if re.fullmatch(r"\d{1,6}", part)]
    if len(numbers) != len(parts) or len(parts) not in (1, 3):
        raise UsageProblem(f"--batch {value}: give N, or MIN,OPT,MAX as 1,4,8")
    least, usual, most = numbers * 3 if len(numbers) == 1 else numbers
    if not 1 <= least <= usual <= most <= LARGEST_BATCH:
        raise UsageProblem(f"--batch {value}: expected 1 <= MIN <= OPT <= MAX <= {LARGEST_BATCH}")
    return least, usual, most


def check_capability(text: str) -> str:
    """ "8.9" from "8.9", "89", "SM89" or "sm_89"; UsageProblem otherwise."""
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
    if found is None:
        raise UsageProblem(f"--compute-capability {text}: write it as 8.9, several as 8.6,8.9")
    return f"{found[1]}.{found[2]}"


def _known(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageProblem(f"{option} {value}: {hint}there are {', '.join(known)}")


def formats_table() -> Table:
    """The formats and what each takes."""
    table = Table("--format", "--precision", "capabilities", "runs with", title="formats")
    for name, about in FORMATS.items():
        table.add_row(name, " ".join(about.precisions), "one or more" if about.capabilities else "-", about.runs_on)
    lines = (
        f"All: --input {' or '.join(INPUTS)}; --batch N, or MIN,OPT,MAX for any between;",
        "--size H,W, multiples of 32 (a model made for one size takes no other).",
        f"{CALIBRATED} needs --data. capabilities: of GPUs, for --compute-capability.",
        "OpenVINO computes an fp32 artefact in bf16, too, if run with --precision bf16.",
    )
    table.caption = "\n".join(lines)
    table.caption_justify = "left"
    return table
