"""The augmentation that a phase's settings make: the same for any workers and processes, in a run that is resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupting import interrupt

from directdet.common.errors import UserError
from directdet.data.augment.compose import Compose
from directdet.data.augment.mixing import CopyPaste, MixUp, Mosaic
from directdet.data.augment.ssd_transforms import SSDTransform
from directdet.data.augment.steps import Colour, Flip, Resized, Turn, ZoomAndCrop
from directdet.data.augment.transforms import EdgesTransform, PretrainTransform
from directdet.data.dataset import load_dataset
from directdet.data.draws.orders import Uniform, epoch_order
from directdet.data.loader import Padding, make_loader
from directdet.data.neighbours import BLOCK, Neighbours
from directdet.data.sampling import Sampling
from directdet.data.synthetic import make_synthetic
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import Phase, Recipe
from directdet.train.data import make_phase_loader, transform_of
from directdet.train.log import read_log
from directdet.train.loop import Trainer
from directdet.train.run import train

HEAVY = {"scale": (0.3, 2.0), "quarter_turns": 0.3, "colour": "hsv", "mixup": 0.5, "copy_paste": 0.5}
LAST = Path("pretrain", "checkpoints", "last.pt")


def phase_of(resize: str = "direct", **changes) -> Phase:
    size = {"direct": (96, 96), "warp": (96, 96), "edges": (64, 96)}[resize]
    settings = {"size": size, "eval_size": size, "batch_size": 4, "workers": 0}
    return Phase("pretrain", resize, **{**settings, **changes})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Some blocks of pictures, and five more."""
    return load_dataset(make_synthetic(tmp_path_factory.mktemp("data"), 3 * BLOCK + 5, 2, seed=1), "train")


# ---- Settings


@pytest.mark.parametrize(
    ("resize", "flip", "expected"),
    [
        ("direct", 0.5, PretrainTransform(96, (0.8, 1.2))),
        ("direct", 0.0, PretrainTransform(96, (0.8, 1.2), 0.0)),
        ("edges", 0.5, EdgesTransform(64, 96)),
        ("edges", 0.2, EdgesTransform(64, 96, 0.2)),
        ("warp", 0.5, SSDTransform(96)),
        ("warp", 0.0, SSDTransform(96, 0.0)),
    ],
)
def test_without_more_it_is_the_papers_transform(resize, flip, expected):
    assert transform_of(phase_of(resize, flip=flip)) == expected


def test_the_steps_that_settings_make():
    resize, flipped = PretrainTransform(96, (0.3, 2.0), 0.0), PretrainTransform(96, (0.3, 2.0), 0.4)
    heavy = phase_of(**HEAVY, mosaic=0.8, ssd_crop=True, flip=0.4)
    assert transform_of(heavy) == Compose(
        (Turn(0.3), ZoomAndCrop()),
        (Mosaic(0.8, 96, (0.3, 2.0), resize), CopyPaste(0.5, resize), Colour("hsv"), Flip(0.4), MixUp(0.5, flipped)),
    )
    edges = phase_of("edges", colour="photometric", ssd_crop=True)
    whole = EdgesTransform(64, 96, 0.0)
    assert transform_of(edges) == Compose((ZoomAndCrop(),), (Resized(whole), Colour("photometric"), Flip(0.5)))
    warp = phase_of("warp", mosaic=1.0)
    steps = (Mosaic(1.0, 96, (0.8, 1.2)), Resized(SSDTransform(96, 0.0)), Flip(0.5))
    assert transform_of(warp) == Compose((), steps)


def test_pasting_needs_masks(pictures):
    records = tuple(replace(record, segmentations=(None,) * len(record.boxes)) for record in pictures.records)
    without = replace(pictures, records=records)
    phase = phase_of(copy_paste=0.1)
    with pytest.raises(UserError, match=r"pretrain\.copy_paste needs a mask for every object.*copy_paste=0") as caught:
        make_phase_loader(phase, without, False, 0, False)
    assert "\n" not in str(caught.value)
    _, targets = next(iter(make_phase_loader(phase, pictures, False, 0, False)))  # masks are read, but not trained on
    assert "masks" not in targets


# ---- Batches


def flat(batch: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [batch[0], *batch[1].values()]


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(flat(x), flat(y), strict=True)
    )


@pytest.mark.parametrize(
    "phase",
    [
        phase_of(**HEAVY, mosaic=0.7, ssd_crop=True),
        phase_of("edges", **HEAVY),
        phase_of("warp", mosaic=0.5, mixup=0.5, copy_paste=0.5),
    ],
    ids=["direct", "edges", "warp"],
)
def test_a_batch_depends_on_seed_epoch_and_position_alone(pictures, phase):
    def batches(epoch: int, start: int = 0, seed: int = 7, workers: int = 0, chosen: Phase = phase) -> list:
        sampling = Sampling(chosen.batch_size, seed=seed)  # without grouping, which would change what is in a batch
        loader = make_loader(pictures, transform_of(chosen), sampling, Padding(masks=True), workers=workers)
        loader.set_epoch(epoch, start)
        try:
            return list(loader)
        finally:
            loader.close()

    whole = batches(2)
    assert len(whole) == 7 and same(whole, batches(2, workers=2))
    assert same(whole[5:], batches(2, start=5))  # nothing kept from the batches before
    assert not same(whole, batches(3)) and not same(whole, batches(2, seed=8))
    # Two processes with half a batch each.
    halves = []
    for rank in range(2):
        sampling = Sampling(2, seed=7, rank=rank, world_size=2)
        loader = make_loader(pictures, transform_of(phase), sampling, Padding(masks=True))
        loader.set_epoch(2)
        halves.append(list(loader))
    for wanted, first, second in zip(whole, *halves, strict=True):
        for place, (_, own) in enumerate((first, second)):
            half = {name: value[2 * place : 2 * place + 2] for name, value in wanted[1].items()}
            for name, value in own.items():
                if name == "padded":  # each process pads to what its own images need
                    continue
                kept = (value, half[name]) if name == "sizes" else (value[own["valid"]], half[name][half["valid"]])
                assert torch.equal(*kept), name


def test_every_object_of_all_pictures_fits_the_targets(pictures):
    phase = phase_of(mosaic=1.0, mixup=1.0, copy_paste=1.0, scale=(0.5, 0.5))
    loader = make_phase_loader(phase, pictures, True, 0, False)
    most = max(len(record.boxes) for record in pictures.records)
    counts = [int(count) for _, targets in loader for count in targets["valid"].sum(1)]
    assert max(counts) > 2 * most  # several pictures' objects


def test_neighbours_come_from_the_same_block(pictures, monkeypatch):
    neighbours = Neighbours(pictures.records, Uniform(5, len(pictures)), masks=False)
    order = epoch_order(5, 1, len(pictures)).tolist()
    read: list[int] = []
    monkeypatch.setattr(neighbours, "read", lambda index: read.append(index))
    blocks = [(0, order[:BLOCK]), (BLOCK - 1, order[:BLOCK]), (BLOCK + 3, order[BLOCK : 2 * BLOCK])]
    blocks.append((3 * BLOCK + 4, order[-BLOCK:]))  # the last ones, as many as ever
    for position, block in blocks:
        read.clear()
        another = neighbours.of(1, position)
        for seed in range(200):
            another(np.random.default_rng(seed))
        assert set(read) == set(block)


def test_kept_pictures_are_few_and_cannot_be_changed(pictures, monkeypatch):
    size = pictures.records[0].width * pictures.records[0].height * 3
    monkeypatch.setattr("directdet.data.neighbours.KEPT_BYTES", 3 * size)
    neighbours = Neighbours(pictures.records, Uniform(0, len(pictures)), masks=False)
    first = neighbours.read(0)
    assert neighbours.read(0) is first
    with pytest.raises(ValueError, match="read-only"):
        first.image[0, 0] = 0
    for index in range(10):
        neighbours.read(index)
    assert neighbours.read(0) is not first
    np.testing.assert_array_equal(neighbours.read(0).image, first.image)


# ---- Training


def test_a_heavy_run_is_resumed_bit_by_bit(shapes, tiny: Recipe, tmp_path, monkeypatch):
    """With everything that has a state: averaged weights, a schedule, mixed pictures, and workers that hold some."""
    torch.set_num_threads(1)
    changes = {**HEAVY, "mosaic": 0.7, "ema": 0.8, "ema_warmup": 2, "schedule": "flat-cosine", "milestones": ()}
    recipe = tiny.with_phase("pretrain", **changes, clip_norm=5.0, optimizer="adamw", base_lr=1e-3)
    train(recipe, shapes, tmp_path / "whole", phase="pretrain")
    step = Trainer.step

    def interrupted(self: Trainer, batches: list) -> tuple[dict, dict]:
        if self.position.step == 3:
            interrupt()
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    workers = recipe.with_phase("pretrain", workers=2)  # no batch depends on them
    with pytest.raises(KeyboardInterrupt):
        train(workers, shapes, tmp_path / "parts", phase="pretrain")
    assert load_checkpoint(tmp_path / "parts" / LAST)["step"] == 4  # of three in an epoch
    monkeypatch.setattr(Trainer, "step", step)
    train(recipe, shapes, tmp_path / "parts", phase="pretrain", resume=True)
    whole, parts = (load_checkpoint(tmp_path / run / LAST) for run in ("whole", "parts"))
    for key in ("model", "raw_model"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    for group, other in zip(whole["optimizer"]["state"].values(), parts["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(value, other[name]) for name, value in group.items())
    logs = [read_log(tmp_path / run / "pretrain" / "log.jsonl") for run in ("whole", "parts")]
    found = [[row["bbox"] for row in log if row["kind"] == "eval"] for log in logs]
    assert found[0] == found[1] and len(found[0]) == 2
