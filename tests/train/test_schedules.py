"""How long a phase is, how its steps are made of batches, what the rate is, and where a run goes on when resumed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interrupting import interrupt
from slim_models import mask_rcnn
from torch import nn

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.image import fit_size
from directdet.infer.preprocess import Preprocess
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.by_name import get_recipe
from directdet.recipes.derived import evaluation_size, passes_per_epoch
from directdet.recipes.direct.phases import MULTI_SCALE
from directdet.recipes.recipe import Phase, Recipe
from directdet.train import loop
from directdet.train.data import make_phase_loader
from directdet.train.log import read_log
from directdet.train.loop import Trainer
from directdet.train.optim import build_optimizer, factor_at
from directdet.train.prepare import apply_norm
from directdet.train.run import train
from directdet.train.step import Stepper


def phase_of(**changes) -> Phase:
    settings = {"resize": "direct", "size": (64, 64), "batch_size": 2, "workers": 0, "eval_every": 0}
    return Phase(name="pretrain", **{**settings, **changes})


@pytest.fixture(scope="module")
def pictures(shapes):
    """Twelve pictures."""
    return load_dataset(shapes, "train")


def trainer_of(phase: Phase, pictures, folder: Path) -> Trainer:
    model = mask_rcnn(num_classes=4, masks=False)  # masks take time to rasterise
    apply_norm(model, phase, trained=False)
    return Trainer(model, phase, pictures, None, folder, "test", 0)


# ---- Length


@pytest.mark.parametrize(
    ("settings", "steps_per_epoch", "steps", "images"),
    [
        ({"epochs": 3}, 6, 18, 2),
        ({"epochs": 3, "repeat": 4}, 24, 72, 2),
        ({"epochs": 3, "accumulate": 2}, 3, 9, 4),
        ({"epochs": 3, "accumulate": 4}, 1, 3, 8),  # two batches of every six are left over
        ({"epochs": 3, "accumulate": 2, "repeat": 4}, 12, 36, 4),
        ({"batch_size": 5, "epochs": 1}, 2, 2, 5),
        ({"iterations": 7}, 6, 7, 2),
        ({"iterations": 7, "repeat": 4, "epochs": 100}, 24, 7, 2),
        ({"iterations": 7, "accumulate": 3}, 2, 7, 6),
        ({"iterations": 7, "base_batch": 4, "fixed_batch": True}, 3, 7, 4),
        ({"epochs": 3, "base_batch": 12, "fixed_batch": True}, 1, 3, 12),
        ({"iterations": 7, "max_steps": 5}, 6, 5, 2),
        ({"iterations": 7, "max_steps": 9}, 6, 7, 2),
        ({"epochs": 3, "max_steps": 5}, 6, 5, 2),
    ],
)
def test_steps_and_rate(pictures, tmp_path, settings, steps_per_epoch, steps, images):
    phase = phase_of(**{"base_lr": 0.3, "base_batch": 16, **settings})
    trainer = trainer_of(phase, pictures, tmp_path)
    assert (trainer.steps_per_epoch, trainer.steps) == (steps_per_epoch, steps)
    assert trainer.images_per_step == images
    # The linear scaling rule counts what is accumulated.
    assert trainer.rate == pytest.approx(0.3 * images / phase.base_batch)


def test_more_batches_to_a_step_than_there_are(pictures, tmp_path):
    with pytest.raises(
        UserError, match=r"pretrain\.accumulate: .* 7 batches of 2 images, but the data has only 6; .*accumulate=6"
    ):
        trainer_of(phase_of(accumulate=7), pictures, tmp_path)
    with pytest.raises(
        UserError, match=r"pretrain\.base_batch: .* 8 batches of 2 images, but the data has only 6; .*base_batch=12"
    ):
        trainer_of(phase_of(fixed_batch=True), pictures, tmp_path)


def test_milestones_count_epochs_or_steps():
    by_epochs = phase_of(milestones=(2, 3), gamma=0.5, warmup_iterations=4, warmup_factor=0.2, repeat=7)
    rates = [factor_at(by_epochs, step, steps_per_epoch=10) for step in range(35)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:20] == [1.0] * 15 and rates[20:30] == [0.5] * 10 and rates[30:] == [0.25] * 5
    by_steps = replace(by_epochs, iterations=9, milestones=(3, 6))
    rates = [factor_at(by_steps, step, steps_per_epoch=10) for step in range(9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8 * 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    constant = phase_of(warmup_iterations=0)
    assert {factor_at(constant, step, 1) for step in (0, 1, 10**6)} == {1.0}


# ---- From batches to steps


@pytest.fixture
def fed(monkeypatch):
    """What every step is fed, by the pictures' boxes; no step is made."""
    seen: list[list[torch.Tensor]] = []

    def noted(self: Trainer, batches: list) -> tuple[dict, dict]:
        seen.append([targets["boxes"] for _, targets in batches])
        return {"loss": torch.tensor(1.0)}, {"positives": torch.tensor(0.0)}

    monkeypatch.setattr(Trainer, "step", noted)
    return seen


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"accumulate": 4, "epochs": 4}, {"iterations": 8}])
def test_steps_are_fed_pass_by_pass(pictures, tmp_path, fed, settings):
    phase = phase_of(**{"epochs": 1, "repeat": 2, **settings})
    trainer = trainer_of(phase, pictures, tmp_path)
    trainer.run(resumed=False)
    assert trainer.position.step == trainer.steps
    loader, wanted, many = make_phase_loader(phase, pictures, False, 0, False), [], phase.accumulate or 1
    for number in range(8):
        loader.set_epoch(number)
        batches = [targets["boxes"] for _, targets in loader]
        wanted += [batches[i : i + many] for i in range(0, len(batches) - many + 1, many)]
    assert same(fed, wanted[: trainer.steps])
    assert not same(fed[:1], wanted[1:2])  # the pictures tell batches apart


@pytest.mark.parametrize("settings", [{"accumulate": 2, "repeat": 2}, {"iterations": 9}])
def test_resumed_anywhere_steps_are_fed_as_if_nothing_had_been(pictures, tmp_path, fed, monkeypatch, settings):
    phase = phase_of(**{"epochs": 2, **settings})
    trainer_of(phase, pictures, tmp_path / "whole").run(resumed=False)
    whole, noted = list(fed), Trainer.step
    for stop in (4, 6):  # in the middle of a pass, and at its end
        fed.clear()

        def interrupted(self: Trainer, batches: list, stop: int = stop) -> tuple[dict, dict]:
            if self.position.step == stop - 1:
                interrupt()
            return noted(self, batches)

        monkeypatch.setattr(Trainer, "step", interrupted)
        first = trainer_of(phase, pictures, tmp_path / str(stop))
        with pytest.raises(KeyboardInterrupt):
            first.run(resumed=False)
        assert first.position.step == stop
        monkeypatch.setattr(Trainer, "step", noted)
        second = trainer_of(phase, pictures, tmp_path / str(stop))
        second.resume(tmp_path / str(stop) / "checkpoints" / "last.pt")
        assert second.position.step == stop
        second.run(resumed=True)
        assert same(fed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_is_the_same_run(shapes, tiny: Recipe, tmp_path, monkeypatch, precision):
    """Interrupted in the middle of an epoch: every loss that follows, weights and the scale of the loss, bit by bit."""
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    changes = {"batch_size": 2, "accumulate": 2, "milestones": (1,), "eval_every": 0, "precision": precision}
    recipe = tiny.with_phase("pretrain", **changes)
    try:
        train(recipe, shapes, tmp_path / "whole", phase="pretrain")
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        pytest.skip(f"{precision} on this CPU: {error}")
    step = Trainer.step

    def interrupted(self: Trainer, batches: list) -> tuple[dict, dict]:
        if self.position.step == 3:
            interrupt()
        return step(self, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, shapes, tmp_path / "parts", phase="pretrain")
    monkeypatch.setattr(Trainer, "step", step)
    path = Path("pretrain", "checkpoints", "last.pt")
    assert load_checkpoint(tmp_path / "parts" / path)["step"] == 4  # of three in an epoch
    train(recipe, shapes, tmp_path / "parts", phase="pretrain", resume=True)
    whole, parts = (load_checkpoint(tmp_path / run / path) for run in ("whole", "parts"))
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    logs = [read_log(tmp_path / run / "pretrain" / "log.jsonl") for run in ("whole", "parts")]
    kept = [[{key: row[key] for key in ("step", "lr", "loss", "losses")} for row in log] for log in logs]
    assert kept[0] == kept[1] and [row["step"] for row in kept[0]] == [1, 2, 3, 4, 5, 6]
    phase = recipe.phase("pretrain")
    full = phase.base_lr * 4 / phase.base_batch
    assert [row["lr"] for row in kept[0]] == pytest.approx([full * factor_at(phase, step, 3) for step in range(6)])
    assert whole["scaler"] == parts["scaler"]
    if precision == "fp16":  # six steps since the start, whether the scale was too large in some or not
        assert whole["scaler"]["scale"] < 2**16 or whole["scaler"]["_growth_tracker"] == 6
        assert whole["scaler"]["_growth_tracker"] > 2  # more than the resumed part made: it was saved


def test_the_scale_of_the_loss_is_saved():
    phase = phase_of(precision="fp16")
    stepper = Stepper(mask_rcnn(), phase, Preprocess(size=(64, 64)), 0.1, 0)
    stepper.scaler.load_state_dict({**stepper.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 3})
    other = Stepper(mask_rcnn(), phase, Preprocess(size=(64, 64)), 0.1, 0)
    assert other.scaler.get_scale() != 8.0
    other.load_state(stepper.state())
    assert other.scaler.get_scale() == 8.0 and other.state()["scaler"]["_growth_tracker"] == 3
    for precision in ("fp32", "bf16"):
        plain = Stepper(mask_rcnn(), phase_of(precision=precision), Preprocess(size=(64, 64)), 0.1, 0)
        assert plain.state()["scaler"] == {}
        plain.load_state(plain.state())


# ---- What a phase's loader makes of pictures


def test_short_edges_and_shrink_reach_the_pictures(pictures):
    def sizes(**changes) -> list[list[int]]:
        phase = phase_of(resize="edges", size=(64, 1000), batch_size=1, **changes)
        loader, found = make_phase_loader(phase, pictures, False, 0, False), []
        for epoch in range(2):
            loader.set_epoch(epoch)
            found += [targets["sizes"][0].int().tolist() for _, targets in loader]
        return found

    whole = sizes()
    assert {min(size) for size in whole} == {64}
    assert sizes(shrink=2.0) == [[int(side / 2 + 0.5) for side in size] for size in whole]
    many = sizes(short_edges=(48, 80, 96))
    assert {min(size) for size in many} == {48, 80, 96}  # 24 draws of three
    shapes = {(record.height, record.width) for record in pictures.records}
    possible = {fit_size(*shape, short, 1000) for shape in shapes for short in (48, 80, 96)}
    assert {tuple(size) for size in many} <= possible
    long = phase_of(resize="edges", size=(64, 70), batch_size=1)
    assert all(max(t["sizes"][0]) <= 70 for _, t in make_phase_loader(long, pictures, False, 0, False))


def test_the_range_of_direct_resizing_reaches_the_pictures(pictures):
    for scale, longest in (((0.5, 0.5), 32), ((2.0, 2.0), 64)):
        phase = phase_of(scale=scale, batch_size=4)
        for images, targets in make_phase_loader(phase, pictures, False, 0, False):
            assert images.shape == (4, 3, 64, 64)
            assert targets["sizes"].max(1).values.tolist() == [longest] * 4


# ---- Weight decay


@pytest.mark.parametrize(
    ("network", "optimizer"),
    [
        ({"backbone": "resnet18", "width": 8}, "sgd"),
        ({"backbone": "resnet18", "width": 8, "norm": "gn"}, "sgd"),
        ({"backbone": "swin_t", "width": 32}, "adamw"),
    ],
)
def test_what_has_no_weight_decay(network, optimizer):
    model = mask_rcnn(**network)
    kinds = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    norms = {
        f"{owner}.{name}"
        for owner, module in model.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("relative_position_bias_table")}
    assert len(norms) >= 40 and len(biases) == (12 if network["backbone"] == "swin_t" else 0)
    for parameter in model.rpn_head.parameters():
        parameter.requires_grad = False
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    phase = phase_of(optimizer=optimizer, weight_decay=0.05, momentum=0.85, norm_weight_decay=False)
    found = build_optimizer(model, phase, 0.1)
    decay = {names[id(p)]: group["weight_decay"] for group in found.param_groups for p in group["params"]}
    assert decay == {name: 0.0 if name in norms | biases else 0.05 for name in names.values()}
    assert sum(len(group["params"]) for group in found.param_groups) == len(names)
    if optimizer == "adamw":
        assert isinstance(found, torch.optim.AdamW) and {g["betas"] for g in found.param_groups} == {(0.85, 0.999)}
    else:
        assert isinstance(found, torch.optim.SGD) and {g["momentum"] for g in found.param_groups} == {0.85}
    everywhere = build_optimizer(model, replace(phase, norm_weight_decay=True), 0.1)
    assert {group["weight_decay"] for group in everywhere.param_groups} == {0.05}
    shifts = {name for name in names.values() if name.endswith(".bias")} - norms
    assert len(shifts) >= 5
    for kept in (True, False):
        found = build_optimizer(model, replace(phase, norm_weight_decay=kept, bias_weight_decay=False), 0.1)
        decay = {names[id(p)]: group["weight_decay"] for group in found.param_groups for p in group["params"]}
        without = shifts if kept else shifts | norms | biases
        assert decay == {name: 0.0 if name in without else 0.05 for name in names.values()}
        assert sum(len(group["params"]) for group in found.param_groups) == len(names)


# ---- Constants of the authors' code that the tables do not print


def test_constants_of_the_baselines_from_scratch():
    """mmdet's scratch schedules: 73 epochs, reduced after 65 and 71; warm-up from 10 %; no decay on normalisations."""
    for name, norm, batch_norm in (("scratch_gn_6x", "gn", "live"), ("scratch_sync_6x", "bn", "sync")):
        recipe = get_recipe(f"mask_rcnn_r50_fpn_{name}")
        (phase,) = recipe.phases
        assert recipe.init == "random" and recipe.model.get("norm", "bn") == norm and phase.norm == batch_norm
        assert (phase.epochs, passes_per_epoch(phase), phase.milestones) == (73, 1, (65, 71))
        assert (phase.warmup_iterations, phase.warmup_factor, phase.norm_weight_decay) == (500, 0.1, False)
        assert (phase.size, phase.batch_size, phase.base_lr) == ((800, 1333), 2, 0.02)
    (phase,) = get_recipe("mask_rcnn_r50_fpn_scratch_sync_3x_ms").phases
    assert (phase.epochs, phase.milestones) == (36, (28, 34))
    assert phase.short_edges == MULTI_SCALE == (640, 672, 704, 736, 768, 800)


@pytest.mark.parametrize(
    "name", ["mask_rcnn_r50_fpn", "faster_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "retinanet_r50_fpn"]
)
def test_constants_of_direct_pre_training(name):
    recipe = get_recipe(name)
    pretrain, finetune = recipe.phases
    assert (pretrain.size, pretrain.scale, pretrain.batch_size) == ((448, 448), (0.8, 1.2), 8)
    assert (pretrain.epochs, passes_per_epoch(pretrain), pretrain.milestones) == (12, 4, ())
    assert pretrain.warmup_iterations == (1000 if name.startswith("retinanet") else 500)
    assert (pretrain.warmup_factor, pretrain.norm, pretrain.norm_weight_decay) == (0.01, "live", False)
    assert (finetune.size, finetune.batch_size, finetune.epochs) == ((800, 1333), 2, 12)
    assert (finetune.milestones, finetune.gamma) == ((8, 11), 0.1)
    assert (finetune.warmup_iterations, finetune.warmup_factor) == (500, 0.001)
    assert (finetune.norm, finetune.frozen_stages) == ("fixed", 1)
    for phase in recipe.phases:
        assert (phase.momentum, phase.weight_decay, phase.clip_norm, phase.precision) == (0.9, 1e-4, None, "fp32")
        assert (evaluation_size(phase), phase.eval_fixed) == ((800, 1333), False)
