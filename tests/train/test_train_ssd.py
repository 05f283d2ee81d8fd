"""Training SSD: pictures of exactly its size, the same run after an interruption, and sizes that it does not take."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interrupting import interrupt

from directdet.common.errors import UserError
from directdet.data.pixels.format import MEAN
from directdet.infer.preprocess import Preprocess
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Recipe
from directdet.recipes.settings import apply_settings
from directdet.train import loop
from directdet.train.data import load_splits, make_phase_loader
from directdet.train.loop import Trainer
from directdet.train.run import train


@pytest.fixture
def slim() -> Recipe:
    """Six steps of a slim SSD300."""
    torch.set_num_threads(1)
    recipe = get_recipe("ssd300_resnet18").with_phase(
        "scratch", batch_size=3, base_batch=3, workers=0, iterations=6, milestones=(5,), eval_every=1_000_000
    )
    return replace(recipe, model={**recipe.model, "width": 8})


def test_pictures_are_exactly_of_the_networks_size(shapes, slim):
    """Not padded to a multiple of 32, and with objects where the canvas says."""
    dataset, _ = load_splits(shapes)
    loader = make_phase_loader(slim.phases[0], dataset, False, 0, False)
    for images, targets in loader:
        assert images.shape == (3, 3, 300, 300) and images.dtype == torch.uint8
        assert (targets["sizes"] == 300).all()
        assert targets["boxes"].min() >= 0 and targets["boxes"].max() <= 300
    assert loader.batches_per_epoch == 4


def test_evaluation_prepares_as_training_does(shapes, slim, tmp_path):
    dataset, val = load_splits(shapes)
    for phase in (slim.phases[0], get_recipe("ssd300_vgg16_imagenet_both_lr01").phases[0]):
        model = build_model({"detector": "ssd", "num_classes": 4, "width": 8})
        phase = replace(phase, batch_size=2, base_batch=2, workers=0)
        trainer = Trainer(model, phase, dataset, val, tmp_path, "test", 0)
        assert trainer.preprocess == Preprocess((300, 300), fixed=True, mean=MEAN, std=phase.std, warp=True)
        criterion = trainer.stepper.criterion
        assert torch.equal(criterion.std, torch.tensor(phase.std)) and torch.equal(criterion.mean, torch.tensor(MEAN))


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(shapes, slim, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    train(slim, shapes, tmp_path / "whole", device="cpu")
    step, count = Trainer.step, [0]

    def stopping(self: Trainer, batches: list) -> tuple[dict, dict]:
        count[0] += 1
        if count[0] in (2, 5):  # in the middle of the first pass of four batches, and of the second
            interrupt()
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", stopping)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(slim, shapes, tmp_path / "parts", resume=resume, device="cpu")
    train(slim, shapes, tmp_path / "parts", resume=True, device="cpu")
    assert count == [6]
    whole, parts = (load_checkpoint(last(tmp_path / name)) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6 and whole["best"] == parts["best"]
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    rate = [group["lr"] for group in parts["optimizer"]["param_groups"]]
    assert rate == pytest.approx([0.005] * 3)  # after the milestone: weights, BN of the backbone, BN of the head


def last(run: Path) -> Path:
    return run / "scratch" / "checkpoints" / "last.pt"


# ---- Mistakes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.size=512"], "model.size=512: this network takes images of 512x512 only"),
        (["size=320", "model.size=300"], r"model\.size=300: .*--set scratch.size=300$"),
        (["size=192"], r"model\.size: 192 would make 5 maps .*; give 193 to 768"),
        (["resize=edges"], "--set scratch.resize=warp"),
        (["resize=direct"], "--set scratch.resize=warp"),
    ],
)
def test_pictures_of_another_size_are_refused_before_the_first_step(shapes, slim, tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        train(apply_settings(slim, settings), shapes, tmp_path / "run", dry_run=True)


def test_another_size_is_taken_where_it_is_given_everywhere(shapes, slim, tmp_path):
    for settings in (["size=320"], ["size=320", "model.size=320"], ["size=320", "eval_size=320", "model.size=320"]):
        train(apply_settings(slim, settings), shapes, tmp_path / "run", dry_run=True)


def test_warping_for_a_pyramid_needs_multiples_of_32(shapes, tiny, tmp_path):
    warped = apply_settings(tiny, ["pretrain.resize=warp", "pretrain.size=100", "pretrain.eval_size=100"])
    with pytest.raises(UserError, match=r"pretrain\.size: height and width must be multiples of 32, not 100 and 100"):
        train(warped, shapes, tmp_path / "run", dry_run=True)
