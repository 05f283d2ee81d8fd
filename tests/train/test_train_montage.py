"""Montage pre-training as a phase: it learns, hands its backbone on bit by bit, resumes exactly, says what is wrong."""

from dataclasses import replace

import pytest
import torch
from distributed_worker import train_double
from interrupting import interrupt

from directdet.common.errors import UserError
from directdet.common.settings import SettingError
from directdet.front.cli import main
from directdet.infer.runtimes.load import load
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import PARTS, Phase, Recipe
from directdet.train.log import read_log
from directdet.train.loop import Trainer
from directdet.train.montage import stepper
from directdet.train.prepare import network_of
from directdet.train.run import train

MONTAGE = {
    "resize": "direct",
    "size": (64, 64),
    "scale": (0.8, 1.5),
    "batch_size": 4,
    "epochs": 2,
    "base_lr": 0.05,
    "base_batch": 4,
    "schedule": "cosine",
    "warmup_iterations": 2,
    "workers": 0,
    "eval_every": 0,
    "channels_last": False,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def recipe(tiny) -> Recipe:
    tune = replace(tiny.phase("finetune"), epochs=1, milestones=(), eval_every=0, channels_last=False)
    return replace(tiny, phases=(Phase(name="montage", **MONTAGE), tune))


def state_of(run, phase):
    return load_checkpoint(run / phase / "checkpoints" / "last.pt")["model"]


def test_a_few_steps_lower_the_loss_and_move_the_labels(shapes, recipe, tmp_path):
    result = train(recipe.with_phase("montage", epochs=20), shapes, tmp_path / "run", phase="montage")
    assert result.evaluation is None and result.best == tmp_path / "run" / "montage" / "checkpoints" / "last.pt"
    rows = read_log(tmp_path / "run" / "montage" / "log.jsonl")
    losses = [row["losses"]["classification"] for row in rows]
    assert {row["kind"] for row in rows} == {"step"} and rows[-1]["step"] == 60
    assert losses[0] == pytest.approx(torch.tensor(5.0).log().item(), abs=0.2)  # four classes and the background
    assert sum(losses[-4:]) / 4 < 0.8 * losses[0]
    assert all(8 < row["positives"] <= 16 for row in rows)  # of 16 samples in a batch
    shares = state_of(tmp_path / "run", "montage")["label_weights"]
    assert shares.shape == (4, 2, 2)
    torch.testing.assert_close(shares.sum(0), torch.ones(2, 2))
    assert (shares.amax(0) >= 0.7).all() and (shares.amin() > 0)  # every cell sees something of every region


def test_the_backbone_arrives_in_the_detector_bit_by_bit(shapes, recipe, tmp_path, monkeypatch):
    seen = {}
    run = Trainer.run

    def looked(self, resumed):
        seen[self.phase.name] = {name: value.clone() for name, value in self.model.state_dict().items()}
        return run(self, resumed)

    monkeypatch.setattr(Trainer, "run", looked)
    result = train(recipe, shapes, tmp_path / "run")
    assert [phase["name"] for phase in result.phases] == ["montage", "finetune"]
    trained, given = state_of(tmp_path / "run", "montage"), seen["finetune"]
    names = [name for name in given if name.startswith("backbone.")]
    assert len(names) == 120 and not any("classifier" in name or "label" in name for name in given)
    for name in names:
        assert torch.equal(given[name], trained[name]), name
    changed = [name for name in names if not torch.equal(trained[name], seen["montage"][name])]
    assert len(changed) == len(names)
    torch.manual_seed(0)  # the heads are those that a detector of the run's seed begins with
    fresh = network_of(recipe, recipe.phases[1], 4).state_dict()
    for name in given.keys() - set(names):
        assert torch.equal(given[name], fresh[name]), name


@pytest.mark.parametrize("parts", [PARTS, PARTS[:1]])
def test_fine_tuning_alone_starts_from_the_montage_phase(shapes, recipe, tmp_path, parts):
    recipe = recipe.with_phase("finetune", parts=parts)
    train(recipe, shapes, tmp_path / "whole")
    train(recipe, shapes, tmp_path / "parts", phase="montage")
    train(recipe, shapes, tmp_path / "parts", phase="finetune")
    file = tmp_path / "parts" / "montage" / "checkpoints" / "last.pt"
    train(recipe, shapes, tmp_path / "given", phase="finetune", init=file)
    train(recipe, shapes, tmp_path / "folder", phase="finetune", init=tmp_path / "parts" / "montage")
    states = [state_of(tmp_path / name, "finetune") for name in ("whole", "parts", "given", "folder")]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())


def test_resume_is_exact(shapes, recipe, tmp_path, monkeypatch):
    recipe = recipe.with_phase("montage", epochs=5)  # 15 steps; the fields are measured at every one
    train(recipe, shapes, tmp_path / "whole", phase="montage")
    plain = Trainer.step

    def interrupted(self, batches):
        if self.position.step == 4:
            interrupt()
        return plain(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, shapes, tmp_path / "parts", phase="montage")
    assert load_checkpoint(tmp_path / "parts" / "montage" / "checkpoints" / "last.pt")["step"] == 5
    monkeypatch.setattr(Trainer, "step", plain)
    train(recipe, shapes, tmp_path / "parts", phase="montage", resume=True)
    whole, parts = state_of(tmp_path / "whole", "montage"), state_of(tmp_path / "parts", "montage")
    assert whole.keys() == parts.keys() and "label_weights" in whole
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_labels_between_two_measurements_are_kept_in_the_checkpoint(shapes, recipe, tmp_path, monkeypatch):
    """Of 45 steps the fields are measured at every fourth: a run resumed after the sixth has those of the fifth."""
    recipe = recipe.with_phase("montage", epochs=15)
    train(recipe, shapes, tmp_path / "whole", phase="montage")
    plain = Trainer.step

    def interrupted(self, batches):
        if self.position.step == 5:
            interrupt()
        return plain(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, shapes, tmp_path / "parts", phase="montage")
    monkeypatch.setattr(Trainer, "step", plain)
    train(recipe, shapes, tmp_path / "parts", phase="montage", resume=True)
    whole, parts = state_of(tmp_path / "whole", "montage"), state_of(tmp_path / "parts", "montage")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_run_stopped_in_its_second_phase_goes_on_from_its_folder(shapes, recipe, tmp_path, monkeypatch, capsys):
    train(recipe, shapes, tmp_path / "whole")
    run = Trainer.run

    def stopped(self, resumed):
        if self.phase.name == "finetune":
            raise KeyboardInterrupt
        return run(self, resumed)

    monkeypatch.setattr(Trainer, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, shapes, tmp_path / "first")
    monkeypatch.setattr(Trainer, "run", run)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert main(["train", "--resume", str(tmp_path / "moved"), "--log", "none"]) == 0
    one, other = state_of(tmp_path / "whole", "finetune"), state_of(tmp_path / "moved", "finetune")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_another_retinanet_takes_the_backbone(shapes, recipe, tmp_path):
    train(recipe, shapes, tmp_path / "run", phase="montage")
    model = {"backbone": "resnet18", "width": 8, "fpn_channels": 16, "head_convs": 1}
    other = replace(recipe, phases=recipe.phases[1:], detector="retinanet", model=model)
    train(other, shapes, tmp_path / "other", init=tmp_path / "run")
    one, given = state_of(tmp_path / "run", "montage"), state_of(tmp_path / "other", "finetune")
    assert torch.equal(one["backbone.bn1.running_mean"], given["backbone.bn1.running_mean"])  # it stays fixed


def test_an_ssd_is_pre_trained_at_another_size_than_its_own(shapes, recipe, tmp_path):
    model = {"backbone": "vgg16", "width": 8, "norm": "bn", "head_norm": True}
    ssd = replace(recipe, phases=recipe.phases[:1], detector="ssd", model=model)
    train(ssd, shapes, tmp_path / "run")
    state = state_of(tmp_path / "run", "montage")
    assert state["label_weights"].shape == (4, 4, 4)  # of stride 16


def test_a_backbone_is_no_detector(shapes, recipe, tmp_path, capsys):
    train(recipe, shapes, tmp_path / "run", phase="montage")
    last = tmp_path / "run" / "montage" / "checkpoints" / "last.pt"
    for place in (tmp_path / "run", last):
        with pytest.raises(UserError, match="holds a backbone trained by Montage, not a detector; fine-tune one"):
            load(place)
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "artefact")]) == 1
    text = capsys.readouterr().err
    (line,) = [line for line in text.splitlines() if not line.startswith("data:")]
    assert line.startswith("error:") and f"--init {last}" in line


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"eval_every": 1}, "montage.eval_every: 1 is for phases that train a detector.*--set montage.eval_every=0"),
        ({"mosaic": 0.5}, "montage.mosaic: 0.5 is for .*--set montage.mosaic=0"),
        ({"resize": "edges"}, "montage.resize: edges is for .*--set montage.resize=direct"),
        ({"size": (100, 100)}, "montage.size: 100 is not a multiple of 32 of at least 64; give 96"),
        ({"size": (32, 32)}, "montage.size: 32 is not a multiple of 32 of at least 64; give 64"),
    ],
)
def test_settings_that_a_classifier_has_no_use_for(recipe, setting, says):
    with pytest.raises(SettingError, match=says):
        recipe.with_phase("montage", **setting)


def test_the_command_says_what_was_cut_out_and_what_comes_next(shapes, tmp_path, capsys):
    settings = ["model.width=8", "montage.size=64", "montage.batch_size=4", "montage.max_steps=2", "montage.workers=0"]
    options = [word for setting in settings for word in ("--set", setting)]
    words = ["train", "mask_rcnn_r18_slim_montage", "--data", str(shapes), "--out", str(tmp_path / "run"), *options]
    assert main([*words, "--phase", "montage", "--log", "none", "--device", "cpu"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "montage: a backbone, " in text and "best box AP" not in text
    assert "pieces of background:" in text and "a classifier is trained, for its backbone" in text
    assert f"next: directdet train RECIPE --init {tmp_path / 'run'}/montage/checkpoints/last.pt" in text.replace(
        "- ", "-"
    )
    assert main(["plan", "mask_rcnn_r18_slim_montage", "--memory", "11GB"]) == 2
    assert "montage: trains a classifier; choose a recipe with direct pre-training" in capsys.readouterr().err


def test_accumulated_batches_are_one_batch(shapes, recipe, tmp_path, monkeypatch):
    """Of a network without batch normalisation, whose fields are measured on the same two pictures."""
    monkeypatch.setattr(stepper, "FIELD_IMAGES", 2)
    recipe = replace(recipe, model={**recipe.model, "norm": "gn"})
    train_double(recipe, shapes, tmp_path / "whole", "montage")
    train_double(recipe.with_phase("montage", batch_size=2, accumulate=2), shapes, tmp_path / "parts", "montage")
    whole, parts = state_of(tmp_path / "whole", "montage"), state_of(tmp_path / "parts", "montage")
    for name, value in whole.items():
        assert float((value - parts[name]).abs().max()) < 1e-10, name


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"accumulate": 2, "batch_size": 2}, {"precision": "bf16"}])
def test_what_other_phases_can_do(shapes, recipe, tmp_path, changes):
    train(recipe.with_phase("montage", **changes), shapes, tmp_path / "run")
    assert (tmp_path / "run" / "finetune" / "checkpoints" / "last.pt").is_file()
