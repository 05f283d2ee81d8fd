"""Training runs: both phases, exact resumption, fixed normalisation, and runs that cannot work."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from interrupting import interrupt
from torch import nn

from directdet.common.errors import UserError
from directdet.data.image import resize
from directdet.data.pixels.format import MEAN, STD
from directdet.data.synthetic import make_synthetic
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.settings import apply_settings
from directdet.train import loop
from directdet.train.log import read_log
from directdet.train.loop import Trainer
from directdet.train.prepare import load_weights
from directdet.train.run import train
from directdet.train.step import normalise


def state_of(run, phase="pretrain"):
    return load_checkpoint(run / phase / "checkpoints" / "last.pt")["model"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_both_phases(shapes, tiny, tmp_path):
    result = train(tiny, shapes, tmp_path / "run")
    assert [phase["name"] for phase in result.phases] == ["pretrain", "finetune"]
    rows = read_log(tmp_path / "run" / "pretrain" / "log.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    assert steps[-1]["step"] == 6 and set(steps[-1]["losses"]) == {"rpn_class", "rpn_box", "class", "box", "mask"}
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert [row["epoch"] for row in evaluations] == [1, 2] and "AP50" in evaluations[0]["segm"]
    kept = json.loads((tmp_path / "run" / "pretrain" / "run.json").read_text())
    assert kept["recipe"]["name"] == "mask_rcnn_r18_slim"
    assert not list((tmp_path / "run").rglob("*.part"))
    assert load(tmp_path / "run").classes  # the run folder is a MODEL


def test_fixed_batch_norm_does_not_change_by_a_bit(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run")
    before, after = state_of(tmp_path / "run", "pretrain"), state_of(tmp_path / "run", "finetune")
    norms = [name for name in before if ".bn" in name or "downsample.1" in name]
    assert len(norms) == 20 * 5
    for name in norms:
        assert torch.equal(before[name], after[name]), name
    changed = [name for name in before if name not in norms and not torch.equal(before[name], after[name])]
    assert len(changed) == len(before) - len(norms)  # everything else learnt


def test_frozen_stages_do_not_change(shapes, tiny, tmp_path):
    train(apply_settings(tiny, ["finetune.frozen_stages=1"]), shapes, tmp_path / "run")
    before, after = state_of(tmp_path / "run", "pretrain"), state_of(tmp_path / "run", "finetune")
    frozen = [n for n in before if n.startswith(("backbone.conv1", "backbone.layer1"))]
    assert frozen
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["backbone.layer2.0.conv1.weight"], after["backbone.layer2.0.conv1.weight"])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("finetune.batch_size=13", "12 images do not fill one batch of 13"),
        ("finetune.accumulate=9", "accumulate: a step takes 9 batches of 4 images, but the data has only 3"),
        ("finetune.parts=fpn,rpn", "fixed batch normalisation would freeze layers that still hold random weights"),
    ],
)
def test_what_a_later_phase_cannot_run_with_is_told_before_the_first(shapes, tiny, tmp_path, setting, says):
    with pytest.raises(UserError, match=says):
        train(apply_settings(tiny, [setting]), shapes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_is_exact(shapes, tiny, tmp_path, monkeypatch):
    train(tiny, shapes, tmp_path / "whole", phase="pretrain")
    step = Trainer.step

    def interrupted(self, batches):
        if self.position.step == 3:
            interrupt()  # in the middle of the fourth step
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, shapes, tmp_path / "parts", phase="pretrain")
    checkpoint = load_checkpoint(tmp_path / "parts" / "pretrain" / "checkpoints" / "last.pt")
    assert checkpoint["step"] == 4  # in the middle of the second epoch
    monkeypatch.setattr(Trainer, "step", step)
    train(tiny, shapes, tmp_path / "parts", phase="pretrain", resume=True)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    whole, parts = (
        [r for r in read_log(tmp_path / run / "pretrain" / "log.jsonl") if r["kind"] == "eval"]
        for run in ("whole", "parts")
    )
    assert [r["bbox"] for r in whole] == [r["bbox"] for r in parts]


def test_resume_of_a_finished_run_changes_nothing(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run")
    before = state_of(tmp_path / "run", "finetune")
    train(tiny, shapes, tmp_path / "run", resume=True)
    assert_same(before, state_of(tmp_path / "run", "finetune"))


def test_resume_with_other_settings_is_refused(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run", phase="pretrain")
    with pytest.raises(UserError, match="other settings"):
        train(apply_settings(tiny, ["batch_size=2"]), shapes, tmp_path / "run", phase="pretrain", resume=True)


def test_a_run_is_not_overwritten(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run", phase="pretrain")
    before = state_of(tmp_path / "run")
    with pytest.raises(UserError, match="--resume"):
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
    assert_same(before, state_of(tmp_path / "run"))


@pytest.mark.parametrize("settings", [[], ["finetune.norm=live", "finetune.frozen_stages=1"]])
def test_freezing_random_weights_is_refused(shapes, tiny, tmp_path, settings):
    with pytest.raises(UserError, match="random weights"):
        train(apply_settings(tiny, settings), shapes, tmp_path / "run", phase="finetune")
    assert not (tmp_path / "run" / "finetune").exists()


def test_not_finite_loss_stops_and_keeps_the_last_checkpoint(shapes, tiny, tmp_path, monkeypatch):
    step = Trainer.step

    def broken(self, batches):
        losses, counts = step(self, batches)
        return ({**losses, "box": losses["box"] * float("nan")} if self.position.step >= 3 else losses), counts

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(UserError, match=r"the loss became nan \(box\).*--init.*--set pretrain.base_lr=0.01") as caught:
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
    assert "\n" not in str(caught.value)
    kept = load_checkpoint(tmp_path / "run" / "pretrain" / "checkpoints" / "last.pt")
    assert kept["step"] == 3 and all(torch.isfinite(v.float()).all() for v in kept["model"].values())


def test_init_from_another_number_of_classes(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "first", phase="pretrain")
    path = tmp_path / "first" / "pretrain" / "checkpoints" / "last.pt"
    checkpoint = torch.load(path, weights_only=True)
    for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
        key = f"box_predictor.{name}"
        checkpoint["model"][key] = torch.cat([checkpoint["model"][key]] * 2)
    torch.save(checkpoint, path)
    result = train(tiny, shapes, tmp_path / "second", phase="finetune", init=path)
    assert result.phases[0]["name"] == "finetune"


def test_max_steps_and_no_evaluation(shapes, tiny, tmp_path):
    train(apply_settings(tiny, ["max_steps=5", "eval_every=0"]), shapes, tmp_path / "run", phase="pretrain")
    rows = read_log(tmp_path / "run" / "pretrain" / "log.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [("step", 3), ("step", 5)]
    assert load_checkpoint(tmp_path / "run" / "pretrain" / "checkpoints" / "last.pt")["step"] == 5


def test_dry_run_writes_nothing(shapes, tiny, tmp_path, capsys):
    train(tiny, shapes, tmp_path / "run", dry_run=True)
    assert not (tmp_path / "run").exists()
    shown = capsys.readouterr().out
    assert "20 live batch normalisations over 4 images" in shown and "fixed" in shown and "linear scaling" in shown


def test_resume_of_nothing_is_refused(shapes, tiny, tmp_path):
    with pytest.raises(UserError, match="finds no run there"):
        train(tiny, shapes, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_resume_before_the_first_checkpoint_starts_as_before(shapes, tiny, tmp_path):
    """From the same weights, as run.json says: --init is not given again."""
    train(apply_settings(tiny, ["max_steps=3"]), shapes, tmp_path / "first", phase="pretrain")
    start = tmp_path / "first" / "pretrain" / "checkpoints" / "last.pt"
    finetune = replace(tiny, phases=tiny.phases[1:])
    wanted = train(finetune, shapes, tmp_path / "whole", init=start).phases[0]["checkpoint"]
    run = tmp_path / "run" / "finetune"
    run.mkdir(parents=True)
    content = (tmp_path / "whole" / "finetune" / "run.json").read_text()
    (run / "run.json").write_text(content)  # what a run leaves that is killed in its first steps
    (run / "log.jsonl").write_text("")
    with pytest.raises(UserError, match="other settings"):
        train(apply_settings(finetune, ["base_lr=0.5"]), shapes, tmp_path / "run", resume=True)
    train(finetune, shapes, tmp_path / "run", resume=True)
    found, wanted = load_checkpoint(run / "checkpoints" / "last.pt"), load_checkpoint(wanted)
    assert all(torch.equal(value, wanted["model"][name]) for name, value in found["model"].items())
    assert json.loads((run / "run.json").read_text())["init"] == str(start)


def test_dry_run_refuses_what_the_run_would(shapes, tiny, tmp_path):
    with pytest.raises(UserError, match="random weights"):
        train(tiny, shapes, tmp_path / "run", phase="finetune", dry_run=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="give a folder"):
        train(tiny, shapes, tmp_path / "file", dry_run=True)


def test_refusals_write_nothing(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run", phase="pretrain")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a run"):
        train(apply_settings(tiny, ["base_lr=0.5"]), shapes, tmp_path / "run", phase="pretrain")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    train(tiny, shapes, tmp_path / "run", phase="pretrain", resume=True)


def test_finetune_does_not_start_from_half_a_pretrain_phase(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run", phase="pretrain")
    path = tmp_path / "run" / "pretrain" / "checkpoints" / "last.pt"
    torch.save({**torch.load(path, weights_only=True), "step": 3}, path)
    with pytest.raises(UserError, match="stopped at step 3 of 6"):
        train(tiny, shapes, tmp_path / "run", phase="finetune")


def test_an_interrupted_evaluation_is_made_up_for(shapes, tiny, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "detect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(apply_settings(tiny, ["eval_every=2"]), shapes, tmp_path / "run", phase="pretrain")
    result = train(apply_settings(tiny, ["eval_every=2"]), shapes, tmp_path / "run", phase="pretrain", resume=True)
    assert result.phases[0]["best_ap"] is not None
    assert (tmp_path / "run" / "pretrain" / "checkpoints" / "best.pt").is_file()


def test_other_data_do_not_resume(shapes, tiny, tmp_path):
    """A phase whose length is given in steps is as long on any data."""
    recipe = apply_settings(tiny, ["iterations=3", "eval_every=0"])
    train(recipe, shapes, tmp_path / "run", phase="pretrain")
    more = make_synthetic(tmp_path / "more", images_train=13, images_val=1, size=(64, 96))
    with pytest.raises(UserError, match="was started on 12 images, but --data has 13"):
        train(recipe, more, tmp_path / "run", phase="pretrain", resume=True)


def test_other_classes_do_not_inherit_the_class_layers(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run", phase="pretrain")
    path = tmp_path / "run" / "pretrain" / "checkpoints" / "last.pt"
    names = tuple(load_checkpoint(path)["classes"])
    model = build_model({"detector": "rcnn", "num_classes": len(names), **tiny.model})
    assert not any(load_weights(model, path, names).left.values())
    left = load_weights(model, path, tuple(f"other {name}" for name in names)).left
    assert not left["backbone"] and not left["fpn"] and not left["rpn"] and left["box"] and left["mask"]
    for name, why in (*left["box"], *left["mask"]):
        assert name.startswith(("box_predictor", "mask_predictor.mask_fcn")) and why == "of other classes"


def test_cuda_without_a_gpu_is_refused(shapes, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        train(tiny, shapes, tmp_path / "run", device="cuda")


# With a std of 1, values of up to 150 are rounded to 8e-6, and so are the mean and the difference on the way there.
@pytest.mark.parametrize(("warp", "std", "atol"), [(False, STD, 1e-5), (True, (1.0, 1.0, 1.0), 2e-5)])
def test_training_pixels_are_those_of_evaluation(warp, std, atol):
    """Normalising on the device gives what Preprocess gives on the host, padding and all."""
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    wanted, placement = Preprocess(size=(64, 64), std=std, warp=warp)(picture[..., ::-1])
    canvas = np.full((1, 3, 64, 64), 99, np.uint8)
    resized = resize(picture, placement.height, placement.width)
    canvas[0, :, : placement.height, : placement.width] = resized.transpose(2, 0, 1)
    sizes = torch.tensor([[placement.height, placement.width]], dtype=torch.float32)
    found = normalise(torch.from_numpy(canvas), sizes, torch.tensor(MEAN), torch.tensor(std))[0]
    torch.testing.assert_close(found, torch.from_numpy(wanted), atol=atol, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
def test_training_on_a_gpu(shapes, tiny, tmp_path):
    settings = ["precision=bf16"]
    result = train(apply_settings(tiny, settings), shapes, tmp_path / "run", device="cuda")
    assert result.phases[1]["best_ap"] is not None


@pytest.mark.slow
def test_learns_a_small_set(shapes, tiny, tmp_path):
    """From random weights to a dozen pictures known by heart: the whole of training works, or it could not."""
    model = {**tiny.model, "width": 16, "fpn_channels": 32, "box_features": 64, "roi_samples": 32, "anchor_scale": 4.0}
    settings = ["pretrain.epochs=100", "pretrain.scale=1,1", "pretrain.eval_every=100", "pretrain.flip=0"]
    recipe = apply_settings(replace(tiny, model=model), settings)
    both = recipe.with_phase("pretrain", eval_size=(64, 64))
    train_only = tmp_path / "data"
    annotations = json.loads((shapes / "annotations" / "instances_train2017.json").read_text())
    for split in ("train", "val"):
        (train_only / "annotations").mkdir(parents=True, exist_ok=True)
        (train_only / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(annotations))
        (train_only / f"{split}2017").symlink_to(shapes / "train2017")
    result = train(both, train_only, tmp_path / "run", phase="pretrain")
    row = [r for r in read_log(tmp_path / "run" / "pretrain" / "log.jsonl") if r["kind"] == "eval"][-1]
    assert row["bbox"]["AP50"] > 0.9, row["bbox"]
    assert result.phases[0]["best_ap"] == row["bbox"]["AP"]
    assert isinstance(load(tmp_path / "run").backend.model, nn.Module)


def test_a_killed_worker_loses_nothing(shapes, tiny, tmp_path, monkeypatch):
    """The steps done are saved, and --resume goes on, with another number of workers, to the same end."""
    train(tiny, shapes, tmp_path / "whole", phase="pretrain")
    step = Trainer.step

    def killed(self, batches):
        if self.position.step == 3:
            for process in self.loader._processes:
                process.kill()
                process.join()
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(
            UserError, match=r"killed.*--set pretrain.workers=0.*--resume: step [45] is saved"
        ) as caught:
            train(apply_settings(tiny, ["workers=1"]), shapes, tmp_path / "run", phase="pretrain")
    assert "\n" not in str(caught.value)
    train(tiny, shapes, tmp_path / "run", phase="pretrain", resume=True)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "run"))


def test_weights_that_the_last_step_broke_are_not_saved(shapes, tiny, tmp_path, monkeypatch):
    """Its loss tells of the weights before it, and was finite."""
    step = Trainer.step

    def broken(self, batches):
        found = step(self, batches)
        if self.position.step == 5:
            next(self.model.parameters()).data[0] = float("inf")
        return found

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(loop.Diverged, match=r"no longer finite at step 6; try again.*--init.*base_lr=0.01"):
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
    assert load_checkpoint(tmp_path / "run" / "pretrain" / "checkpoints" / "last.pt")["step"] == 3


@pytest.mark.parametrize("eval_every", [0, 1])
def test_a_rate_far_too_high_ends_in_advice(shapes, tiny, tmp_path, eval_every):
    settings = ["base_lr=1000", "warmup_iterations=0", "epochs=6", "clip_norm=none", f"eval_every={eval_every}"]
    with pytest.raises(loop.Diverged, match="a lower rate"):
        train(apply_settings(tiny, settings), shapes, tmp_path / "run", phase="pretrain")
    for path in (tmp_path / "run").rglob("*.pt"):
        load_checkpoint(path)  # refuses weights that are not finite


def memory_of_the_cpu():
    torch.empty(2**60, dtype=torch.uint8)  # what torch itself raises


def memory_of_the_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


def memory_of_python():
    raise MemoryError


@pytest.mark.parametrize("run_out", [memory_of_the_cpu, memory_of_the_gpu, memory_of_python])
def test_out_of_memory_is_one_line_with_the_way_out(shapes, tiny, tmp_path, monkeypatch, run_out):
    step = Trainer.step

    def greedy(self, batches):
        return run_out() if self.position.step == 4 else step(self, batches)

    monkeypatch.setattr(Trainer, "step", greedy)
    says = r"at step 5 with batch_size 4.*--set pretrain.batch_size=2.*`directdet plan mask_rcnn_r18_slim`.*last.pt"
    with pytest.raises(UserError, match=says) as caught:
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path / "run" / "pretrain" / "checkpoints" / "last.pt")["step"] == 3


def test_another_runtime_error_keeps_its_traceback(shapes, tiny, tmp_path, monkeypatch):
    def wrong(self, batches):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "step", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
