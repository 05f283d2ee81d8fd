"""Early stopping: a phase ends when AP has not risen for a number of evaluations, also if it was resumed meanwhile."""

from pathlib import Path

import pytest

from directdet.infer.accuracy import evaluate
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import Recipe
from directdet.train import loop
from directdet.train.log import read_log
from directdet.train.loop import Trainer
from directdet.train.run import train

LAST = Path("pretrain", "checkpoints", "last.pt")


@pytest.fixture
def scores(monkeypatch) -> list[float]:
    """The AP of the evaluations to come; a step does nothing."""
    coming: list[float] = []

    def scored(found, dataset):
        evaluation = evaluate.scored(found, dataset)
        evaluation.metrics.bbox["AP"] = coming.pop(0)
        return evaluation

    monkeypatch.setattr(loop, "scored", scored)
    return coming


def evaluated(run: Path) -> list[float]:
    return [row["bbox"]["AP"] for row in read_log(run / "pretrain" / "log.jsonl") if row["kind"] == "eval"]


def patient(tiny: Recipe, patience: int | None) -> Recipe:
    return tiny.with_phase("pretrain", epochs=6, patience=patience, batch_size=12, eval_size=(32, 32), size=(32, 32))


def test_a_phase_ends_when_ap_does_not_rise(shapes, tiny, tmp_path, scores, capsys):
    scores += [0.1, 0.3, 0.3, 0.2, 0.9, 0.9]
    result = train(patient(tiny, 2), shapes, tmp_path, phase="pretrain")
    assert evaluated(tmp_path) == [0.1, 0.3, 0.3, 0.2] and scores == [0.9, 0.9]
    assert result.phases[0]["best_ap"] == 0.3
    found = load_checkpoint(tmp_path / LAST)
    assert (found["step"], found["steps"], found["stopped_early"], found["waited"]) == (4, 6, True, 2)
    assert load_checkpoint(tmp_path / LAST.with_name("best.pt"))["step"] == 2
    assert "stopped at step 4 of 6: AP has not risen in 2 evaluations" in " ".join(capsys.readouterr().out.split())
    # It stays at its end when resumed, and fine-tuning starts from it.
    train(patient(tiny, 2), shapes, tmp_path, phase="pretrain", resume=True)
    assert load_checkpoint(tmp_path / LAST)["step"] == 4 and len(scores) == 2
    train(patient(tiny, 2), shapes, tmp_path, phase="finetune", dry_run=True)


def test_a_rise_starts_the_count_again_and_none_never_stops(shapes, tiny, tmp_path, scores):
    scores += [0.3, 0.2, 0.4, 0.1, 0.5, 0.5]
    train(patient(tiny, 2), shapes, tmp_path / "patient", phase="pretrain")
    assert len(evaluated(tmp_path / "patient")) == 6
    scores += [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    train(patient(tiny, None), shapes, tmp_path / "never", phase="pretrain")
    assert len(evaluated(tmp_path / "never")) == 6


def test_the_count_is_resumed(shapes, tiny, tmp_path, scores, monkeypatch):
    scores += [0.5, 0.4, 0.3]
    step = Trainer.step

    def interrupted(self: Trainer, batches: list) -> tuple[dict, dict]:
        if self.position.step == 2:
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(patient(tiny, 2), shapes, tmp_path, phase="pretrain")
    assert load_checkpoint(tmp_path / LAST)["waited"] == 1
    monkeypatch.setattr(Trainer, "step", step)
    train(patient(tiny, 2), shapes, tmp_path, phase="pretrain", resume=True)
    assert load_checkpoint(tmp_path / LAST)["step"] == 3 and scores == []
