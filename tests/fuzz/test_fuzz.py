"""A few hundred damaged files; `fuzz.py` reads them by the ten thousand."""

import importlib.util
import random

import pytest
from fuzz import attempt
from targets import Target, make_targets

INPUTS = 12  # of each kind


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    import torch

    torch.set_num_threads(1)
    return {target.name: target for target in make_targets(tmp_path_factory.mktemp("fuzz") / "files")}


NAMES = (
    "COCO", "dataset.toml", "VOC's XML", "VOC's lists", "a png", "a jpg", "a bmp", "a webp", "a tiff", "run.json",
    "run.json to resume",
    "log.jsonl", "meta.json", "model.onnx", "a checkpoint's values", "a checkpoint's values, resumed",
    "a checkpoint's values, started from", "a checkpoint's bytes", "a backbone's bytes", "detections.part.jsonl",
    "YOLO's data.yaml", "YOLO's labels", "labelme", "CVAT", "Label Studio", "Open Images", "metadata.jsonl", "flat VOC",
    "COCO of any name", "a shard", "shards.json", "a shard without a list", "classes.json",
    ".directdet-files.jsonl", "plan.json", "diverged.json", "landscape.part.json",
)  # fmt: skip


if importlib.util.find_spec("pyarrow") is not None:
    NAMES = (*NAMES, "Parquet")


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_ends_in_a_value_or_an_error_of_one_line(targets, name):
    outcomes = {seed: attempt(targets[name], seed) for seed in range(INPUTS)}
    assert set(outcomes.values()) <= {"value", "error"}, outcomes


def test_all_kinds_are_tried(targets):
    assert set(targets) - {"a gif"} == set(NAMES)


def test_what_is_neither_is_seen(targets):
    """The fuzz can fail: with a traceback, an error of two lines, and a reader that does not return."""
    from directdet.common.errors import UserError

    def two_lines() -> None:
        raise UserError("one\ntwo")

    def found(read) -> str:
        return attempt(Target("broken", lambda draw: random.Random(draw.random()) and None, read), 0)

    assert found(lambda: {}["x"]).startswith("KeyError")
    assert found(two_lines).startswith("an error of several lines")


def test_a_hang_is_seen():
    import time

    from fuzz import limited

    with pytest.raises(TimeoutError), limited(1):
        time.sleep(60)
