"""Two processes, as torchrun starts them, on CPUs: what they learn, and what becomes of a run when one is lost."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_runs import (
    NOISE,
    assert_close,
    assert_learnt,
    checkpoint_of,
    command_line,
    finish,
    one_thread,
    recipe,
    rows_of,
    torchrun,
)
from distributed_worker import (
    PATIENCE,
    Team,
    double_precision,
    gradient_messages,
    synchronised_norm,
    train_double,
    train_evaluated,
    train_interrupted,
    train_watched,
)
from torch import Tensor, nn

from directdet.common.errors import UserError
from directdet.data.augment.transforms import PretrainTransform
from directdet.data.dataset import load_dataset
from directdet.data.loader import make_loader
from directdet.data.sampling import Sampling
from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main
from directdet.infer.accuracy.evaluate import evaluate
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.recipes.recipe import Phase, Recipe
from directdet.train.run import train
from directdet.train.step import Stepper


def doubled(*settings: str) -> Recipe:
    """What one process has to do to make the steps of two with recipe(*settings)."""
    one = recipe(*settings)
    return one.with_phase("pretrain", batch_size=2 * one.phase("pretrain").batch_size)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 train pictures, of which every second has no objects, and 5 val pictures: not the same number for each."""
    root = make_synthetic(tmp_path_factory.mktemp("pictures"), images_train=12, images_val=5, size=(64, 96))
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] % 2]
    path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def pair() -> Iterator[Team]:
    processes = Team()
    yield processes
    processes.close()


@pytest.fixture(autouse=True)
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def objects_by_rank(data: Path, of: Recipe, passes: int) -> np.ndarray:
    """How many objects each of two processes has at every step, int [steps, 2]."""
    phase, counts = of.phase("pretrain"), []
    for epoch in range(passes):
        both = [
            make_loader(
                load_dataset(data, "train"),
                PretrainTransform(phase.size[0], phase.scale),
                Sampling(phase.batch_size, rank=rank, world_size=2),
            )
            for rank in (0, 1)
        ]
        for loader in both:
            loader.set_epoch(epoch)
        counts += [[int(targets["valid"].sum()) for _, targets in batches] for batches in zip(*both, strict=True)]
    return np.array(counts)


def worker(fault: str, at: int, folder: Path, data: Path, out: Path) -> list[str | Path]:
    """What torchrun has to run for a training with a fault; see the script."""
    script = Path(__file__).with_name("distributed_worker.py")
    return [script, fault, str(at), folder, *command_line(data, out)]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """An undisturbed run of `directdet train` by torchrun: its folder, exit code, stdout and stderr."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, *finish(torchrun("-m", "directdet", *command_line(data, out)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ((), ()),
        (("batch_size=1", "accumulate=2"), ()),
        (("model.norm=bn", "norm=sync"), ("norm=live",)),
    ],
    ids=["group norm", "accumulated", "synchronised norm"],
)
def test_two_processes_learn_what_one_with_twice_the_batch_learns(
    pair: Team, data: Path, tmp_path: Path, settings: tuple[str, ...], alone: tuple[str, ...]
) -> None:
    objects = objects_by_rank(data, recipe(*settings), passes=3)
    assert ((objects == 0).sum(1) == 1).any()  # in some step one process has no objects and the other has
    pair(train_double, recipe(*settings), data, tmp_path / "two")
    train_double(doubled(*settings, *alone), data, tmp_path / "one")
    two, one = checkpoint_of(tmp_path / "two"), checkpoint_of(tmp_path / "one")
    assert two["step"] == one["step"] == 9 and two["images_per_step"] == one["images_per_step"] == 4
    assert_learnt(one)
    assert_close(two["model"], one["model"])
    for ours, theirs in zip(rows_of(tmp_path / "two", "step"), rows_of(tmp_path / "one", "step"), strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], abs=NOISE)
        assert ours["positives"] * 2 == pytest.approx(theirs["positives"])  # the mean over processes
        assert ours["mask_dropped"] == theirs["mask_dropped"] == 0  # else it would depend on who shares the slots


def montages(**model: Any) -> Recipe:
    """The recipe with Montage pre-training alone; the settings of its network are given, or those of recipe()."""
    settings = {"batch_size": 2, "epochs": 3, "base_lr": 0.1, "base_batch": 16, "workers": 0, "eval_every": 0}
    phase = Phase(name="montage", resize="direct", size=(64, 64), **settings)
    return replace(recipe(), phases=(phase,), model=model or recipe().model)


def test_two_processes_learn_montages_as_one_with_twice_the_batch(pair: Team, data: Path, tmp_path: Path) -> None:
    """Their receptive fields are those of the pictures of both."""
    pair(train_double, montages(), data, tmp_path / "two", "montage")
    train_double(montages().with_phase("montage", batch_size=4), data, tmp_path / "one", "montage")
    ours, theirs = (load_checkpoint(tmp_path / run / "montage" / "checkpoints" / "last.pt") for run in ("two", "one"))
    assert ours["step"] == theirs["step"] == 9 and "label_weights" in ours["model"]
    assert_close(ours["model"], theirs["model"])


def test_layers_of_maps_that_montage_does_not_take_stay_as_they_are(pair: Team, data: Path, tmp_path: Path) -> None:
    """Swin has a normalisation for each map; gradients of all layers are waited for, unless it is said."""
    pair(train_double, montages(backbone="swin_t", width=32), data, tmp_path / "run", "montage")
    state = load_checkpoint(tmp_path / "run" / "montage" / "checkpoints" / "last.pt")["model"]
    norms = {name: value for name, value in state.items() if name.startswith("backbone.norm")}
    still = {name for name, value in norms.items() if bool((value == float(name.endswith("weight"))).all())}
    assert len(norms) == 8 and len(still) == 6


@pytest.mark.slow
def test_only_the_main_process_speaks_and_writes(whole: tuple[Path, int, str, str]) -> None:
    run, code, out, err = whole
    assert code == 0, err
    assert out.count("mask_rcnn_r18_slim: pretrain") == out.count("pretrain: best box AP") == 1
    assert "2 on each of 2 devices" in out and "Warning" not in err and "error" not in err
    assert [row["step"] for row in rows_of(run, "step")] == [3, 6, 9]
    assert len(list((run / "pretrain" / "tensorboard").iterdir())) == 1
    found = {path.name for path in run.rglob("*") if path.is_file() and path.parent.name != "tensorboard"}
    assert found == {"last.pt", "log.jsonl", "run.json"}
    assert json.loads((run / "pretrain" / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_lost_process_ends_the_run_which_then_goes_on(
    whole: tuple[Path, int, str, str], pair: Team, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, _, err = finish(torchrun(*worker("die", 4, tmp_path, data, out)))
    assert code != 0 and "exitcode  : 9" in err
    assert (tmp_path / "steps1").read_text() == "4"
    assert checkpoint_of(out)["step"] == 3  # what the pass before it ended with
    assert not list(out.rglob("*.part"))
    with pytest.raises(UserError, match="number of processes"):
        train(recipe(), data, out, phase="pretrain", device="cpu", resume=True)
    pair(train_watched, recipe(), data, out, {"resume": True})
    assert checkpoint_of(out)["step"] == 9
    assert_same(checkpoint_of(out)["model"], checkpoint_of(whole[0])["model"])


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_at_the_same_step(
    whole: tuple[Path, int, str, str], pair: Team, data: Path, tmp_path: Path
) -> None:
    """torchrun's processes are in sessions of their own: a terminal's Ctrl-C reaches it alone, and it passes it on."""
    out = tmp_path / "run"
    process = torchrun(*worker("wait", 3, tmp_path, data, out))
    limit = time.monotonic() + PATIENCE
    while not all((tmp_path / f"waits{rank}").exists() for rank in (0, 1)) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code != 0
    lines = err.splitlines()
    last = out / "pretrain" / "checkpoints" / "last.pt"
    said = f"stopped by Ctrl-C at step 5; saved: {last}; go on: directdet train --resume {out}"
    assert said in lines and f"[rank 1] {said}" in lines, err
    assert (tmp_path / "steps0").read_text() == (tmp_path / "steps1").read_text() == "5"
    assert checkpoint_of(out)["step"] == 5
    pair(train_watched, recipe(), data, out, {"resume": True})
    assert_same(checkpoint_of(out)["model"], checkpoint_of(whole[0])["model"])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_in_one_process_stops_both(pair: Team, data: Path, tmp_path: Path, rank: int) -> None:
    """They agree about it where they log, here in the middle of a pass of three steps."""
    assert pair(train_interrupted, recipe(), data, tmp_path / "run", rank, 3, 5) == [5, 5]
    assert checkpoint_of(tmp_path / "run")["step"] == 5


def test_wrong_data_is_told_in_one_line_by_each_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It is found before the processes meet, so none waits for the others; the lines say whose they are."""
    command = [str(word) for word in command_line(tmp_path / "nothing", tmp_path / "run")]
    for world, rank, prefix in (("2", "0", ""), ("2", "1", "[rank 1] "), ("1", "1", "")):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("RANK", rank)
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert err.startswith(f"{prefix}error: {tmp_path / 'nothing'}: ") and err.count("\n") == 1 and not out


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"process 2 of this machine has no GPU.*--nproc-per-node"):
        train(recipe(), data, tmp_path / "run", phase="pretrain")


@pytest.mark.slow
def test_a_process_without_objects_neither_hangs_nor_spoils_the_other(pair: Team, data: Path, tmp_path: Path) -> None:
    settings = ("batch_size=1", "epochs=1")
    objects = objects_by_rank(data, recipe(*settings), passes=1)
    empty = {tuple(row) for row in objects == 0}
    assert {(True, True)} < empty  # in some step neither process has any
    assert empty & {(True, False), (False, True)}  # in some step one of them has
    results = pair(train_watched, recipe(*settings), data, tmp_path / "run", {})
    assert [len(result["losses"]) for result in results] == [6, 6]
    for result in results:
        assert all(math.isfinite(value) for step in result["losses"] for value in step.values())
    assert [bool(result["phases"]) for result in results] == [True, False]  # the main one tells
    state = checkpoint_of(tmp_path / "run")["model"]
    assert all(torch.isfinite(value.float()).all() for value in state.values())


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_synchronised_norm_is_batch_norm_of_all_batches_together(pair: Team, offset: float) -> None:
    """Also with batches of different sizes and contents, and where a mean is large beside its deviation."""
    generator = torch.Generator().manual_seed(0)
    reference = nn.Sequential(nn.BatchNorm2d(6))
    for value in reference.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    sizes = [(2, 6, 9, 12), (3, 6, 7, 5)]
    parts = [torch.randn(size, generator=generator) * (1 + k) + k + offset for k, size in enumerate(sizes)]
    gradients = [torch.randn(size, generator=generator) for size in sizes]
    found = pair(synchronised_norm, reference.state_dict(), parts, gradients)

    # Batches of different shapes cannot be joined, but batch normalisation knows no neighbours: pixels in a row can.
    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.transpose(0, 1).reshape(1, 6, 1, -1) for t in tensors], 3)

    reference, x = reference.double(), joined(parts).double().requires_grad_()
    y = reference.train()(x)
    y.backward(joined(gradients).double())
    # A value near `offset` is itself rounded by 6e-8 of it, and so is the difference from the mean.
    tolerance = 1e-6 * (5 + offset)
    for name, expected in {"y": y, "x": x.grad}.items():
        together = joined([torch.from_numpy(one[name]) for one in found]).double()
        torch.testing.assert_close(together, expected.detach(), rtol=0, atol=tolerance)
    for name in ("weight", "bias"):  # each process has its share's gradient
        total = torch.from_numpy(found[0][name] + found[1][name]).double()
        expected = getattr(reference[0], name).grad
        torch.testing.assert_close(total, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert np.array_equal(found[0][name], found[1][name])
        together = torch.from_numpy(found[0][name]).double()
        torch.testing.assert_close(together, getattr(reference[0], name).double(), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_each_picture_is_evaluated_once_with_the_main_statistics(pair: Team, data: Path, tmp_path: Path) -> None:
    out, settings = (
        tmp_path / "run",
        ("model.norm=bn", "eval_every=3", "model.score_threshold=0", "model.anchor_scale=4"),
    )
    seen = pair(train_evaluated, recipe(*settings), data, out)
    val = load_dataset(data, "val")
    pictures = [one["pictures"] for one in seen]
    assert [len(ids) for ids in pictures] == [3, 2]
    assert sorted(pictures[0] + pictures[1]) == sorted(record.image_id for record in val.records)
    (before, *_), (other, *_) = (one["before"] for one in seen)
    assert any(not np.array_equal(a, b) for a, b in zip(before, other, strict=True))  # batches of their own
    for one in seen:
        assert all(np.array_equal(a, b) for a, b in zip(one["after"][0], before, strict=True))
    expected, (row,) = evaluate(load(out, device="cpu"), val), rows_of(out, "eval")
    assert (row["bbox"], row["segm"]) == (expected.bbox, expected.segm) and row["bbox"]["AR100"] > 0


@pytest.mark.slow
def test_gradients_are_sent_once_a_step_however_many_batches_it_has(pair: Team, data: Path, tmp_path: Path) -> None:
    short = ("batch_size=1", "max_steps=2")
    once = pair(gradient_messages, recipe(*short), data, tmp_path / "once")
    assert pair(gradient_messages, recipe(*short, "accumulate=3"), data, tmp_path / "thrice") == once
    assert min(once) >= 2


def test_two_equal_batches_make_the_step_of_both_together() -> None:
    """In float64, where both are the same to the last digits; everything is sampled, so that chance has no part in it.
    Batches that differ are in test_accumulation."""
    everything = ("model.rpn_samples=2000", "model.roi_samples=200", "model.mask_slots=40")
    phase = recipe(*everything).phase("pretrain")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    corner = torch.rand(2, 3, 2, generator=generator) * 30
    targets = {
        "boxes": torch.cat([corner, corner + 12 + torch.rand(2, 3, 2, generator=generator) * 20], 2),
        "labels": torch.randint(0, 4, (2, 3), generator=generator),
        "valid": torch.tensor([[True, True, False], [True, False, False]]),
        "sizes": torch.full((2, 2), 64.0),
        "masks": torch.randint(0, 2, (2, 3, 56, 56), generator=generator, dtype=torch.uint8),
    }
    both = (images.repeat(2, 1, 1, 1), {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in targets.items()})
    gradients = []
    for batches in ([(images, targets), (images, targets)], [both]):
        torch.manual_seed(0)
        with double_precision():
            model = build_model({"detector": "rcnn", "num_classes": 4, **recipe(*everything).model})
            counts = Stepper(model, phase, Preprocess(size=(64, 64)), 0.1, 0).step(batches, 0, 10)[1]
        assert counts["positives"] > 0 and counts["mask_dropped"] == 0
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[0].values())  # all parts take part
    assert_close(*gradients)
