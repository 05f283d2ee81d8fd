"""Training from shards and Parquet is training from the folder they were made from, with several processes, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shards_worker import RESUMED_AT, read

from directdet.data.formats.write.convert import convert
from directdet.data.synthetic import make_synthetic
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import Recipe
from directdet.recipes.settings import apply_settings
from directdet.train.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("pictures"), images_train=16, images_val=3, size=(64, 96))


@pytest.fixture(scope="module", params=["shards", "parquet"])
def shards(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in several tars, or in Parquet files of several row groups."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path_factory.mktemp("shards") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"directdet.data.formats.write.{request.param}._MB", 1000)
        patch.setattr("directdet.data.formats.write.parquet.ROWS", 3)
        convert(folder, request.param, out, shard_mb=20)
    assert len([*out.glob("train-*.tar"), *out.glob("data/train-*.parquet")]) > 2
    return out


def test_training_from_shards_is_bit_equal(folder: Path, shards: Path, tiny: Recipe, tmp_path: Path) -> None:
    recipe = apply_settings(tiny, ["pretrain.workers=1", "pretrain.mosaic=0.5"])
    kept = []
    for name, data in (("folder", folder), ("shards", shards)):
        train(recipe, data, tmp_path / name)
        checkpoints = [tmp_path / name / phase / "checkpoints" / "last.pt" for phase in ("pretrain", "finetune")]
        kept.append([load_checkpoint(file)["model"] for file in checkpoints])
    for one, other in zip(*kept, strict=True):
        assert one.keys() == other.keys() and len(one) > 50
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_two_processes_of_two_workers_read_each_sample_once_and_resume(
    folder: Path, shards: Path, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("shards_worker.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*launch, str(shards), str(tmp_path)], check=True, timeout=300)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = read(str(folder))  # one process without workers, from the folder
    for name in alone:
        assert alone[name] == [first + second for first, second in zip(*(one[name] for one in ranks), strict=True)]
        if name.startswith("resumed"):
            assert alone[name] == alone["whole" + name.removeprefix("resumed")][RESUMED_AT:]
    images = [image for one in ranks for batch in one["whole images"] for image in batch]
    assert sorted(images) == list(range(16))
    pictures = [picture for one in ranks for batch in one["whole"] for picture in batch]
    assert len(set(pictures)) == 16
