"""scripts/full_size.py at a thousandth of COCO's size: the data is what it says, and its figures are written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from directdet.recipes.by_name import get_recipe
from directdet.recipes.derived import accumulated, images_per_step, passes_per_epoch
from directdet.recipes.settings import apply_settings
from directdet.train.optim import learning_rate

ROOT = Path(__file__).resolve().parents[2]


def test_the_data_is_coco_s_in_small_and_an_epoch_of_it_is_read_once(tmp_path, monkeypatch):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "full_size.py"),
        "--work",
        str(tmp_path / "work"),
        "--share",
        "0.002",
    ]
    command += ["--only", "first", "order", "boxes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    before = (ROOT / "results" / "full_size.json").read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (ROOT / "results" / "full_size.json").read_bytes() == before  # what is tried is no result
    rows = json.loads((tmp_path / "work" / "full_size.json").read_text())["rows"]
    assert set(rows) == {"first", "order", "boxes"}
    assert rows["first"]["train_pictures"] == 236 and rows["order"]["pretrain"]["usable"] == 234
    for phase, batch in (("pretrain", 64), ("finetune", 16)):
        found = rows["order"][phase]
        assert found["read"] == found["different"] == 234 // batch * batch == 234 - found["left_out"]
    assert rows["boxes"]["detections"] == 100 * 10 and rows["boxes"]["box_ap"] > 0.1
    from directdet.data.dataset import load_dataset
    from directdet.data.records import read_record_image

    monkeypatch.setenv("DIRECTDET_CACHE", "off")
    train = load_dataset(tmp_path / "work" / "data-0.002", "train")
    counts = [len(record.boxes) for record in train.records]
    assert sum(counts) == 1720 and counts.count(0) == 2 and len(train.classes) == 80 and train.has_masks
    assert max(counts) > 3 * np.median(counts) and not train.problems
    assert len({(record.width, record.height) for record in train.records}) > 5
    for record in train.records[:32]:
        assert read_record_image(record).shape == (record.height, record.width, 3)


@pytest.mark.parametrize(
    ("gpus", "settings", "pretrained", "finetuned"),
    [
        (8, (), (64, 0.08, 87_936), (16, 0.02, 87_948)),
        (4, ("accumulate=2", "pretrain.epoch_batch=4"), (64, 0.08, 87_936), (16, 0.02, 87_948)),
        (16, ("finetune.batch_size=1",), (128, 0.16, 43_968), (16, 0.02, 87_948)),
    ],
)
def test_what_the_page_says_of_other_numbers_of_gpus(gpus, settings, pretrained, finetuned):
    """Images, learning rate and steps on COCO's 117,266 pictures: the paper's are 64, 0.08, 88k and 16, 0.02, 88k."""
    page = (ROOT / "docs" / "full-size.md").read_text()
    assert "".join(f"--set {one} " for one in settings).strip() in page
    for phase, expected in zip(
        apply_settings(get_recipe("mask_rcnn_r50_fpn"), settings).phases, (pretrained, finetuned), strict=True
    ):
        images = images_per_step(phase, gpus)
        batches = 117_266 // (phase.batch_size * gpus) // accumulated(phase, gpus)
        steps = phase.epochs * round(batches * passes_per_epoch(phase))
        assert (images, pytest.approx(learning_rate(phase, images)), steps) == expected
