"""The moving average of the weights: its values, and what is evaluated, saved, resumed and handed on."""

import math
from pathlib import Path

import pytest
import torch
from interrupting import interrupt
from slim_models import mask_rcnn
from torch.optim.swa_utils import AveragedModel

from directdet.models.checkpoint import load_checkpoint
from directdet.models.parts.norm import fix_batch_norm
from directdet.recipes.recipe import Recipe
from directdet.train.averages.weights import WeightAverage
from directdet.train.log import read_log
from directdet.train.loop import Trainer
from directdet.train.run import train

LAST = Path("pretrain", "checkpoints", "last.pt")


def changed(model: torch.nn.Module, seed: int) -> None:
    """Other weights and statistics, and a batch more in the counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


@pytest.mark.parametrize("warmup", [0, 5])
def test_values_are_torchs(warmup):
    """Against torch's AveragedModel with the same decay at each step."""
    model = mask_rcnn()
    own = WeightAverage(model, 0.9, warmup)
    decays = [0.9 * (1 - math.exp(-n / 5)) if warmup else 0.9 for n in range(1, 5)]
    assert [own.decay_at(n) for n in range(1, 5)] == pytest.approx(decays)
    step = 0

    def average(mean: torch.Tensor, value: torch.Tensor, _: object) -> torch.Tensor:
        return value.clone() if not value.is_floating_point() else decays[step] * mean + (1 - decays[step]) * value

    other = AveragedModel(model, avg_fn=average, use_buffers=True)
    other.n_averaged.fill_(1)  # torch would only copy the first time
    for step in range(4):
        changed(model, step)
        own.update(step + 1)
        other.update_parameters(model)
    expected = other.module.state_dict()
    for name, value in own.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
        if value.is_floating_point():
            assert not torch.equal(value, model.state_dict()[name]), name
        else:
            assert torch.equal(value, model.state_dict()[name]), name
    assert not any(p.requires_grad for p in own.model.parameters())


def test_what_is_fixed_does_not_change_by_a_bit():
    model = mask_rcnn()
    changed(model, 0)
    fix_batch_norm(model)
    average = WeightAverage(model, 0.5, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    average.update(1)
    moved = {name for name, value in average.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def averaging(tiny: Recipe) -> Recipe:
    """Quick to forget, so that six steps show; and a schedule that follows the steps."""
    changes = {"ema": 0.8, "ema_warmup": 2, "schedule": "flat-cosine", "milestones": ()}
    return tiny.with_phase("pretrain", **changes).with_phase("finetune", **changes)


def test_a_run_keeps_evaluates_and_hands_on_the_average(shapes, averaging, tmp_path, monkeypatch):
    phase = averaging.phase("pretrain")
    history, step = [], Trainer.step

    def noted(self: Trainer, batches: list) -> tuple[dict, dict]:
        if not history:
            history.append({k: v.clone() for k, v in self.model.state_dict().items()})
        result = step(self, batches)
        history.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return result

    monkeypatch.setattr(Trainer, "step", noted)
    train(averaging, shapes, tmp_path / "run", phase="pretrain")
    found = load_checkpoint(tmp_path / "run" / LAST)
    assert len(history) == 7
    mean = history[0]
    for number, values in enumerate(history[1:], 1):
        decay = phase.ema * (1 - math.exp(-number / 2))
        mean = {k: decay * v + (1 - decay) * values[k] if v.is_floating_point() else values[k] for k, v in mean.items()}
    for name, value in found["model"].items():
        torch.testing.assert_close(value, mean[name].contiguous(), atol=1e-5, rtol=1e-4)
        assert torch.equal(found["raw_model"][name], history[-1][name].contiguous())
    assert any(not torch.equal(value, found["raw_model"][name]) for name, value in found["model"].items())
    monkeypatch.undo()
    # The next phase starts from the average, with its statistics.
    start = {}

    def first(self: Trainer, batches: list) -> tuple[dict, dict]:
        start.setdefault("model", {k: v.clone() for k, v in self.model.state_dict().items()})
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", first)
    train(averaging, shapes, tmp_path / "run", phase="finetune")
    assert all(torch.equal(value.contiguous(), found["model"][name]) for name, value in start["model"].items())


def test_the_average_is_what_is_evaluated(shapes, averaging, tmp_path, monkeypatch):
    """Weights in training that are not finite do not touch the evaluation, only the file that it is saved in."""
    seen = []
    evaluate = Trainer._evaluate

    def evaluating(self: Trainer, *args: object) -> object:
        average = self.stepper.average
        assert average is not None and self.stepper.deployed is average.model
        modes = [m.training for m in average.model.modules()]
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(math.nan)
        with pytest.raises(Exception, match="no longer finite"):
            evaluate(self, *args)
        seen.append([m.training for m in average.model.modules()] == modes)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_evaluate", evaluating)
    with pytest.raises(KeyboardInterrupt):
        train(averaging, shapes, tmp_path / "run", phase="pretrain")
    assert seen == [True]
    (row,) = [row for row in read_log(tmp_path / "run" / "pretrain" / "log.jsonl") if row["kind"] == "eval"]
    assert row["bbox"]["AP"] >= 0  # noted before the file was refused


def test_resuming_continues_the_average_bit_by_bit(shapes, averaging, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    recipe = averaging.with_phase("pretrain", eval_every=0)
    train(recipe, shapes, tmp_path / "whole", phase="pretrain")
    step = Trainer.step

    def interrupted(self: Trainer, batches: list) -> tuple[dict, dict]:
        if self.position.step == 3:
            interrupt()
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, shapes, tmp_path / "parts", phase="pretrain")
    assert load_checkpoint(tmp_path / "parts" / LAST)["step"] == 4
    monkeypatch.setattr(Trainer, "step", step)
    train(recipe, shapes, tmp_path / "parts", phase="pretrain", resume=True)
    whole, parts = (load_checkpoint(tmp_path / run / LAST) for run in ("whole", "parts"))
    for key in ("model", "raw_model"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())


def test_without_it_a_checkpoint_has_one_set_of_weights(shapes, tiny, tmp_path):
    recipe = tiny.with_phase("pretrain", eval_every=0)
    train(recipe, shapes, tmp_path, phase="pretrain")
    assert "raw_model" not in load_checkpoint(tmp_path / LAST)
