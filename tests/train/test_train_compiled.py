"""Training compiled: taken only where a trial finds it equal and faster, and then the same run."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from directdet.data.synthetic import make_synthetic
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Recipe
from directdet.train.compiled import trial
from directdet.train.compiled.trial import choose_form
from directdet.train.data import load_splits
from directdet.train.loop import Trainer
from directdet.train.run import train
from directdet.train.step import with_fixed_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data"), 8, 2)


def trainer_of(recipe: Recipe, data: Path, folder: Path, phase: str = "pretrain") -> Trainer:
    from directdet.models.build import build_model

    torch.manual_seed(0)
    train_set, _ = load_splits(data)
    config = {"detector": recipe.detector, "num_classes": len(train_set.classes), **recipe.model}
    chosen = next(one for one in recipe.phases if one.name == phase)
    return Trainer(build_model(config), chosen, train_set, None, folder, recipe.name, 0)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of torch.compile."""
    return lambda compiler: monkeypatch.setattr(torch, "compile", lambda eager, **_: compiler(eager))


@pytest.fixture
def slow_eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each step of the first 20, which are eager, takes a fifth of a second more."""
    steps = []

    def wait(device: torch.device) -> None:
        steps.append(device)
        time.sleep(0.2 * (len(steps) <= trial.STEPS))

    monkeypatch.setattr(trial, "wait", wait)
    monkeypatch.setattr(trial, "TIMED", 3)
    monkeypatch.setattr(trial, "STEPS", 4)
    yield
    assert len(steps) in (0, 4, 8)


def test_equal_and_faster_is_taken_and_nothing_is_lost(
    tiny: Recipe, data: Path, tmp_path: Path, faked: Any, slow_eager: None
) -> None:
    faked(lambda eager: lambda *given: eager(*given))
    trainer = trainer_of(tiny, data, tmp_path)
    before = copy.deepcopy(trainer.stepper.state())
    verdict = choose_form(trainer)
    assert verdict.compiled and trainer.stepper.compiled, verdict
    assert "times as fast in 4 steps each, the losses within 0 % of eager's" in verdict.words
    after = trainer.stepper.state()
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    assert not after["optimizer"]["state"] and trainer.position.step == 0


def test_other_losses_are_not_taken(tiny: Recipe, data: Path, tmp_path: Path, faked: Any, slow_eager: None) -> None:
    def wrong(eager: Callable[..., Any]) -> Callable[..., Any]:
        def compute(*given: Any) -> Any:
            losses, counts = eager(*given)
            return {name: 1.02 * value for name, value in losses.items()}, counts

        return compute

    faked(wrong)
    trainer = trainer_of(tiny, data, tmp_path)
    verdict = choose_form(trainer)
    assert not verdict.compiled and not trainer.stepper.compiled and verdict.words.endswith("more than 1 %")


def test_a_loss_that_is_not_finite_is_not_taken(
    tiny: Recipe, data: Path, tmp_path: Path, faked: Any, slow_eager: None
) -> None:
    faked(lambda eager: lambda *given: ({"box": eager(*given)[0]["box"] * torch.nan}, {}))
    assert not choose_form(trainer_of(tiny, data, tmp_path)).compiled


def test_no_faster_is_not_taken(
    tiny: Recipe, data: Path, tmp_path: Path, faked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "STEPS", 3)
    faked(lambda eager: lambda *given: (time.sleep(0.5), eager(*given))[1])
    verdict = choose_form(trainer_of(tiny, data, tmp_path))
    assert not verdict.compiled and verdict.words.startswith("0.")


def test_a_compiler_that_fails_is_told(tiny: Recipe, data: Path, tmp_path: Path, faked: Any, slow_eager: None) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("\nno C++ compiler\nmore")

    faked(lambda _: fails)
    trainer = trainer_of(tiny, data, tmp_path)
    verdict = choose_form(trainer)
    assert (verdict.compiled, verdict.words) == (False, "it failed: no C++ compiler")
    trainer.step(next(iter([[batch] for batch in trainer.loader])))  # eager, as before


def test_phases_of_many_shapes_stay_eager(tiny: Recipe, data: Path, tmp_path: Path) -> None:
    verdict = choose_form(trainer_of(tiny, data, tmp_path, "finetune"))
    assert not verdict.compiled and "resize=edges" in verdict.words
    accumulating = tiny.with_phase("pretrain", accumulate=2)
    assert "accumulates 2" in choose_form(trainer_of(accumulating, data, tmp_path)).words


def test_a_dry_run_says_that_it_does_not_compile(
    tiny: Recipe, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny.with_phase("pretrain", compiled=True), data, tmp_path / "run", phase="pretrain", dry_run=True)
    assert "(measured, not compiled)" in " ".join(capsys.readouterr().out.split())


def test_rows_of_padding_change_no_loss(tiny: Recipe, data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tiny, data, tmp_path)
    images, targets = next(iter(trainer.loader))
    rows = targets["valid"].shape[1]
    more = with_fixed_rows(targets)
    wanted = next(count for count in (8, 16, 32) if count >= rows)
    assert more["valid"].shape[1] == more["boxes"].shape[1] == wanted and more["sizes"] is targets["sizes"]
    assert not more["valid"][:, rows:].any()
    plain = trainer.stepper._losses((images, targets), 0)[0]
    padded = trainer.stepper._losses((images, more), 0)[0]
    for name, value in plain.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-6, atol=0)


def test_the_run_says_so_and_continues_the_same_way(
    tiny: Recipe, data: Path, tmp_path: Path, faked: Any, slow_eager: None, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    faked(lambda eager: lambda *given: (calls.append(1), eager(*given))[1])
    recipe = tiny.with_phase("pretrain", compiled=True, eval_every=0)
    short = recipe.with_phase("pretrain", max_steps=2)
    train(short, data, tmp_path / "run", phase="pretrain", device="cpu")
    assert "pretrain: compiled: " in capsys.readouterr().out and len(calls) == 4 + 2
    train(recipe, data, tmp_path / "run", phase="pretrain", device="cpu", resume=True)
    assert "compiled: " not in capsys.readouterr().out and len(calls) == 4 + 4
    eager = tiny.with_phase("pretrain", eval_every=0)
    train(eager, data, tmp_path / "eager", phase="pretrain", device="cpu")
    found = [
        torch.load(tmp_path / name / "pretrain" / "checkpoints" / "last.pt", weights_only=True)
        for name in ("run", "eager")
    ]
    assert [one["compiled"] for one in found] == [True, False]
    # Rows of padding may add zeros in another order.
    for name, value in found[1]["model"].items():
        torch.testing.assert_close(found[0]["model"][name], value, rtol=1e-5, atol=1e-6)


def one_graph(recipe: Recipe, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Compile for real, and compare two steps. Whether that is faster is the machine's."""
    monkeypatch.setattr(trial, "STEPS", 2)
    monkeypatch.setattr(trial, "TIMED", 1)
    if options:
        real = torch.compile
        monkeypatch.setattr(torch, "compile", lambda eager, **_: real(eager, fullgraph=True, dynamic=False, **options))
    small = {"size": (64, 64), "batch_size": 2, "workers": 0, "mosaic": 0.0, "mixup": 0.0, "warmup_iterations": 2}
    first = recipe.phases[0].name
    trainer = trainer_of(recipe.with_phase(first, **small), data, folder, first)
    torch.compiler.reset()
    try:
        verdict = choose_form(trainer)
    finally:
        torch.compiler.reset()
    assert "the losses within" in verdict.words and "more than" not in verdict.words, verdict


RTMDET_MODEL = {"backbone": "cspnext_tiny", "width": 8, "fpn_channels": 16}
ONE_OF_EACH = {  # a recipe of other detectors than the tiny one, with what makes its network small
    "retinanet_r18_slim": {"backbone": "resnet18", "width": 8, "fpn_channels": 16, "head_convs": 1},
    "rtmdet_nano": RTMDET_MODEL,
    "rtmdet_ins_nano": RTMDET_MODEL,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", *ONE_OF_EACH])
def test_every_step_is_one_graph(
    name: str, tiny: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny if name == "demo" else replace(get_recipe(name), model=ONE_OF_EACH[name])
    one_graph(recipe, data, tmp_path, monkeypatch, backend="eager")


@pytest.mark.slow
def test_the_real_compiler(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_graph(get_recipe("retinanet_r18_slim"), data, tmp_path, monkeypatch)
