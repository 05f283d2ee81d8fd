"""A run that goes on for longer, from its folder alone, as another run's start, and from another place."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from directdet.common.errors import UserError
from directdet.front.cli import main
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import Phase
from directdet.train.continuing import check_longer
from directdet.train.loop import Trainer
from directdet.train.run import train
from directdet.train.run_file import stored_run


def last(run, phase="pretrain"):
    return load_checkpoint(run / phase / "checkpoints" / "last.pt")


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def short(module_tiny, shapes, tmp_path_factory):
    """Pre-training alone: 2 epochs of 3 steps, with a drop after the first."""
    out = tmp_path_factory.mktemp("short") / "run"
    train(module_tiny.with_phase("pretrain", milestones=(1,)), shapes, out, phase="pretrain", device="cpu")
    return out


@pytest.fixture
def run(short, tmp_path):
    """The same in a folder of its own, as somebody moves it."""
    return shutil.copytree(short, tmp_path / "run")


def resume(run, *more):
    return main(["train", "--resume", str(run), "--device", "cpu", *more])


@pytest.mark.parametrize("words", [("--epochs", "4"), ("--set", "pretrain.epochs=4")])
def test_longer_is_the_run_that_it_would_have_been(run, tiny, shapes, tmp_path, capsys, words):
    assert resume(run, *words) == 0
    text = capsys.readouterr().out
    assert "pretrain: epochs 4 instead of 2; learning rate x0.1 after epochs 1" in " ".join(text.split())
    assert last(run)["step"] == 12
    whole = tiny.with_phase("pretrain", epochs=4).with_phase("pretrain", milestones=(1,))
    train(whole, shapes, tmp_path / "whole", phase="pretrain", device="cpu")
    assert_same(last(run)["model"], last(tmp_path / "whole")["model"])
    assert stored_run(run).recipe.phase("pretrain").epochs == 4
    assert resume(run) == 0 and last(run)["step"] == 12  # it is so long from now on


def test_shorter_is_refused(run, capsys):
    assert resume(run, "--epochs", "1", "--set", "pretrain.milestones=") == 1
    assert "pretrain.epochs: was 2, now 1; a phase that has begun can only be made longer" in capsys.readouterr().err


def test_drops_that_have_passed_stay(run, capsys):
    assert resume(run, "--epochs", "6", "--set", "pretrain.milestones=4") == 1
    err = capsys.readouterr().err
    assert "pretrain.milestones: were 1, now 4, but steps that are done would have had another rate" in err
    assert err.count("\n") == 1 and last(run)["step"] == 6


def test_a_cosine_that_has_begun_to_fall_is_refused(tiny, shapes, tmp_path, capsys):
    out = tmp_path / "run"
    train(tiny.with_phase("pretrain", schedule="cosine"), shapes, out, phase="pretrain", device="cpu")
    assert resume(out, "--epochs", "4") == 1
    err = capsys.readouterr().err
    assert "pretrain.schedule: cosine has been falling towards the end of 2 epochs" in err and err.count("\n") == 1
    assert "--init RUN --out OTHER" in err


@pytest.mark.parametrize(
    ("schedule", "step", "possible"),
    [
        ("steps", 90, True),
        ("cosine", 9, True),
        ("cosine", 20, False),
        ("flat-cosine", 51, True),
        ("flat-cosine", 60, False),
    ],
)
def test_which_schedules_allow_it(schedule, step, possible):
    """10 steps of warm-up, 10 epochs of 10; the flat cosine falls from step 50 on."""
    phase = Phase("pretrain", "direct", (64, 64), epochs=10, schedule=schedule, milestones=(6,), warmup_iterations=10)
    longer = replace(phase, epochs=20)
    if possible:
        check_longer(phase, longer, step, 10)
    else:
        with pytest.raises(UserError, match=rf"pretrain\.schedule: {schedule} has been falling"):
            check_longer(phase, longer, step, 10)


def test_pretraining_that_finetuning_began_from(run, tiny, shapes, capsys):
    folder = run / "finetune"
    folder.mkdir()
    (folder / "run.json").write_text(
        (run / "pretrain" / "run.json").read_text().replace('"phase": "pretrain"', '"phase": null')
    )
    assert resume(run, "--set", "pretrain.epochs=4") == 1
    assert "has begun from the end of pretrain, which cannot be longer now" in capsys.readouterr().err


def test_a_phase_that_patience_ended(tiny, shapes, tmp_path, capsys):
    out = tmp_path / "run"
    patient = tiny.with_phase("pretrain", epochs=9, patience=1, base_lr=0.0)
    train(patient, shapes, out, phase="pretrain", device="cpu")
    assert last(out)["step"] < 27
    assert resume(out, "--epochs", "12") == 1
    assert "ended since AP has not risen in 1 evaluations (patience)" in capsys.readouterr().err


def test_epochs_of_a_new_run(shapes, tmp_path, capsys):
    assert main(["train", "demo", "--data", str(shapes), "--out", str(tmp_path / "run"), "--epochs", "3"]) == 2
    assert "--epochs is for --resume RUN; give a new run's by --set PHASE.epochs=N" in capsys.readouterr().err


def test_a_run_folder_is_a_start(run, tiny, shapes, tmp_path, capsys):
    train(tiny, shapes, tmp_path / "next", phase="finetune", init=run, device="cpu")
    assert f"{run / 'pretrain' / 'checkpoints' / 'best.pt'}" in "".join(capsys.readouterr().out.split()).replace(
        "│", ""
    )
    with pytest.raises(UserError, match="contains neither"):
        train(tiny, shapes, tmp_path / "other", phase="finetune", init=tmp_path, device="cpu")


def test_an_artefact_is_no_start(artefact, tiny, shapes, tmp_path):
    with pytest.raises(UserError, match="is an artefact, which has no weights to train on"):
        train(tiny, shapes, tmp_path / "run", init=artefact, device="cpu")


def test_a_run_knows_its_data_wherever_it_is(run, shapes, tmp_path, monkeypatch, capsys):
    """From another working directory, and with data that was named by a relative path."""
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "run", "--device", "cpu"]) == 0
    seen = capsys.readouterr()
    assert seen.err == f"data: {shapes}, of the run\n" and "COCO AP on 4 images" in seen.out
    assert main(["export", "run", "--out", "artefact", "--ap-images", "2"]) == 0
    seen = capsys.readouterr()
    assert f"data: {shapes}, of the run" in seen.err and "PASS" in seen.out
    meta = json.loads((tmp_path / "artefact" / "meta.json").read_text())
    assert meta["verification"]["ap_images"] == 2 and "box" in meta["verification"]["pytorch"]["ap"]  # so it had truth
    assert main(["eval", "artefact"]) == 2
    assert "--data is missing; only a run folder knows its data" in capsys.readouterr().err


def test_data_that_is_named_by_a_relative_path(tiny, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes.parent)
    train(tiny.with_phase("pretrain", max_steps=1), shapes.name, tmp_path / "run", phase="pretrain", device="cpu")
    assert stored_run(tmp_path / "run").data == str(shapes)


def test_data_that_is_gone(run, tmp_path, capsys):
    file = run / "pretrain" / "run.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "data": str(tmp_path / "gone")}))
    says = f"data: {tmp_path / 'gone'}: was moved or deleted; give --data DATA"
    for words in (["eval", str(run)], ["train", "--resume", str(run)]):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert main(["export", str(run), "--out", str(tmp_path / "artefact")]) == 0  # on pictures of its own
    assert f"{says}; goes on without" in capsys.readouterr().err


def test_a_moved_run_whose_finetuning_was_killed_early(short, tiny, shapes, tmp_path):
    """It had begun from the old place's pre-training, and had no checkpoint of its own yet."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(short, old)
    one_step = tiny.with_phase("pretrain", milestones=(1,)).with_phase("finetune", max_steps=1, eval_every=0)
    train(one_step, shapes, old, phase="finetune", device="cpu")
    (old / "finetune" / "checkpoints" / "last.pt").unlink()
    old.rename(new)
    train(one_step, shapes, new, phase="finetune", device="cpu", resume=True)
    assert last(new, "finetune")["step"] == 1


def test_a_dry_run_says_how_long_it_takes(tiny, shapes, tmp_path, capsys):
    train(tiny, shapes, tmp_path / "run", device="cpu", dry_run=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "about" in line]
    assert not (tmp_path / "run").exists()
    assert (
        lines[0].startswith("pretrain: about ") and ": 6 steps of " in lines[0] and " and 2 evaluations of " in lines[0]
    )
    assert lines[1].startswith("finetune: about ") and " and 1 evaluation of " in lines[1]
    assert lines[2].startswith("all phases: about ") and len(lines) == 3


def test_a_dry_run_finds_that_memory_is_too_small(tiny, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"pretrain: memory ran out at step 1 with batch_size 4; lower it"):
        train(tiny, shapes, tmp_path / "run", device="cpu", dry_run=True)


def test_a_dry_run_of_a_run_that_goes_on_counts_what_is_left(run, capsys):
    assert resume(run, "--dry-run") == 0
    assert "about" not in capsys.readouterr().out  # the phase is at its end
    assert resume(run, "--dry-run", "--epochs", "3") == 0
    assert "pretrain: about " in (text := capsys.readouterr().out) and ": 3 steps of " in text
    assert last(run)["step"] == 6 and stored_run(run).recipe.phase("pretrain").epochs == 2
