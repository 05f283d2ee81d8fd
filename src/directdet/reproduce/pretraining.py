"""The pre-training that rows of a comparison share: trained once, and kept where each row starts from it.

It is trained to the first of these lengths, then on to the next. The rate does not fall while pre-training, so what is
kept after a length is what a pre-training of that length would have ended with.
"""

from pathlib import Path
from typing import Any

from directdet.common.files import write_bytes_atomic
from directdet.reproduce.tables.trials import SHARED

LAST = Path(SHARED, "pretrain", "checkpoints", "last.pt")  # in the folder of a comparison


def start_of(out: Path, steps: dict[str, Any], key: str) -> Path:
    """The checkpoint of the shared pre-training that a row starts from, whether or not it is there yet.

    Args:
        steps: as in plan.json.
    """
    number = steps[key].get("pretrain")
    return out / (LAST if number is None else LAST.with_name(f"step{number}.pt"))


def lengths_of(steps: dict[str, Any]) -> list[int]:
    """The lengths of the shared pre-training that rows start after, shortest first."""
    longest = steps[SHARED]["pretrain"]
    return sorted({longest, *(phases.get("pretrain", longest) for phases in steps.values())})


def keep(out: Path, target: Path) -> None:
    """Keep the pre-training as it is now in `target`."""
    if target != out / LAST:
        write_bytes_atomic(target, (out / LAST).read_bytes())
