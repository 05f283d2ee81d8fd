"""`directdet landscape`: every variant's curves, on the same data, checked against numbers computed here."""

import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from directdet.common.errors import UserError
from directdet.data.pixels.format import MEAN
from directdet.front import cli
from directdet.models.build import build_model
from directdet.models.parts.targets import Targets
from directdet.models.ssd.loss import ssd_losses
from directdet.reproduce import landscape as module
from directdet.reproduce.landscape import FIGURES, SMOOTHING, Size, landscape
from directdet.reproduce.landscape_plot import draw_landscape, smoothed
from directdet.train.step import Stepper

MICRO = Size(300, 4, 8, 4, 0)  # four steps: a pass over the 12 pictures, and the first of the next
VARIANTS = ["none_1x", "head_1x", "head_10x", "backbone_1x", "backbone_10x"]
SETTINGS = {"none": ("none", False), "head": ("none", True), "backbone": ("bn", False)}


@pytest.fixture(autouse=True)
def micro(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(module.SIZES, "micro", MICRO)
    monkeypatch.setitem(module.SIZES, "small", replace(MICRO, steps=2))


@pytest.fixture(scope="module")
def watched(shapes):
    """A landscape; the batches of every step of it; the gradient's norm and the settings that the optimiser saw."""
    torch.set_num_threads(1)
    batches: list[tuple[Tensor, dict[str, Tensor]]] = []
    optimisers: list[dict] = []

    def look(optimiser: torch.optim.Optimizer, *_) -> None:
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"]]
        square = sum(g.double().pow(2).sum().item() for g in gradients)
        settings = [(group["lr"], group["momentum"], group["weight_decay"]) for group in optimiser.param_groups]
        optimisers.append({"norm": square**0.5, "settings": settings})

    step = Stepper.step

    def counted(self: Stepper, given: list, number: int, per_epoch: int) -> tuple[dict, dict]:
        assert len(given) == 1 and number == len(batches) % MICRO.steps
        batches.extend(given)
        return step(self, given, number, per_epoch)

    hook = register_optimizer_step_pre_hook(look)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", counted)
        patch.setitem(module.SIZES, "micro", MICRO)
        out = shapes.parent / "landscape"
        found = landscape(shapes, out, "micro", device="cpu", base_lr=0.002, seed=3)
    hook.remove()
    assert json.loads((out / "landscape.json").read_text()) == json.loads(json.dumps(found))
    return found, batches, optimisers


@pytest.mark.slow
def test_every_variant_has_its_curves(watched):
    found, batches, optimisers = watched
    assert [run["name"] for run in found["runs"]] == VARIANTS
    assert len(batches) == len(optimisers) == len(VARIANTS) * MICRO.steps
    for run in found["runs"]:
        assert run["stopped"] is None and len(run["loss"]) == len(run["norm"]) == MICRO.steps
        # Between one step and the next: one number fewer.
        assert run["fluctuation"] == [abs(run["norm"][t] - run["norm"][t - 1]) for t in range(1, MICRO.steps)]
        assert np.isfinite(run["loss"] + run["norm"]).all()
    assert found["figures"] == {
        "Figure 1": ["none_1x", "head_1x", "head_10x"],
        "Figure 7": ["none_1x", "backbone_1x", "backbone_10x"],
    }
    assert (found["base_lr"], found["seed"], found["size"]["batch"], found["size"]["name"]) == (0.002, 3, 4, "micro")


@pytest.mark.slow
def test_every_variant_sees_the_same_pictures_in_the_same_order(watched):
    _, batches, _ = watched
    first = batches[: MICRO.steps]
    for variant in range(1, len(VARIANTS)):
        for (images, targets), (others, theirs) in zip(first, batches[variant * MICRO.steps :], strict=False):
            assert torch.equal(images, others)
            assert all(torch.equal(value, theirs[name]) for name, value in targets.items())
    for i, (images, _) in enumerate(first):  # and never the same ones twice, in the second pass neither
        assert images.shape == (4, 3, 300, 300)
        assert not any(torch.equal(images, others) for others, _ in first[:i])


@pytest.mark.slow
def test_equal_networks_start_equal_and_part_at_the_learning_rate(watched):
    runs = {run["name"]: run for run in watched[0]["runs"]}
    for place in ("head", "backbone"):
        one, ten = runs[f"{place}_1x"], runs[f"{place}_10x"]
        assert (one["loss"][0], one["norm"][0]) == (ten["loss"][0], ten["norm"][0])
        assert one["loss"][1] != ten["loss"][1] and one["norm"][1] != ten["norm"][1]
    assert len({runs[name]["loss"][0] for name in ("none_1x", "head_1x", "backbone_1x")}) == 3


@pytest.mark.slow
def test_norms_are_those_of_the_gradient_that_the_optimiser_takes(watched):
    found, _, optimisers = watched
    for number, run in enumerate(found["runs"]):
        seen = optimisers[number * MICRO.steps : (number + 1) * MICRO.steps]
        rate = 0.002 * (10 if run["name"].endswith("10x") else 1)
        assert run["learning_rate"] == rate and f"learning rate {rate:g}" in run["label"]
        settings = {setting for one in seen for setting in one["settings"]}
        assert settings - {(rate, 0.9, 0.0)} == {
            (rate, 0.9, 0.0005),
            (2 * rate, 0.9, 0.0),
        }  # head's BN; weights; biases
        assert run["norm"] == pytest.approx([one["norm"] for one in seen], rel=1e-5)  # float32 sums there


def gradient(model: torch.nn.Module) -> float:
    return sum(p.grad.double().pow(2).sum().item() for p in model.parameters()) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("place", SETTINGS)
def test_first_step_is_the_networks_own(watched, place):
    """The network of the variant, built here, on the batch that it saw: pixels less their mean, live statistics."""
    found, batches, _ = watched
    run = next(run for run in found["runs"] if run["name"] == f"{place}_1x")
    norm, head_norm = SETTINGS[place]
    torch.manual_seed(3)
    model = build_model({"detector": "ssd", "num_classes": 4, "width": 8, "norm": norm, "head_norm": head_norm})
    assert model.config.backbone == "vgg16" and model.config.extras == "ssd" and not model.config.l2_norm
    images, targets = batches[0]
    # Contiguous, as the phase has it: over the four values of the last map normalisation magnifies what rounds.
    pixels = (images.float() - torch.tensor(MEAN)[:, None, None]).contiguous()
    losses, _ = ssd_losses(model, model.train()(pixels), Targets(**targets))
    sum(losses.values()).backward()
    assert run["loss"][0] == pytest.approx(sum(losses.values()).item(), rel=1e-6)
    assert run["norm"][0] == pytest.approx(gradient(model), rel=1e-5)


# ---- Divergence


@pytest.fixture(scope="module")
def diverged(shapes):
    """At a learning rate that nothing without normalisation survives."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.SIZES, "micro", MICRO)
        patch.setattr(module, "FIGURES", {"Figure 1": FIGURES["Figure 1"]})
        return landscape(shapes, shapes.parent / "diverged", "micro", device="cpu", base_lr=1e5)


def test_a_variant_that_is_not_finite_stops_there_and_the_others_go_on(diverged):
    assert [run["name"] for run in diverged["runs"]] == VARIANTS[:3]
    first = diverged["runs"][0]
    assert first["stopped"] is not None and 1 <= first["stopped"] < MICRO.steps
    for run in diverged["runs"]:
        length = MICRO.steps if run["stopped"] is None else run["stopped"]
        assert len(run["loss"]) == len(run["norm"]) == length and len(run["fluctuation"]) == max(0, length - 1)
        assert np.isfinite(run["loss"] + run["norm"]).all()


def test_a_picture_of_what_diverged(diverged, tmp_path):
    draw_landscape(diverged, tmp_path / "some.png", SMOOTHING)
    at_once = [{**run, "stopped": 0, "loss": [], "norm": [], "fluctuation": []} for run in diverged["runs"]]
    draw_landscape({**diverged, "runs": at_once}, tmp_path / "none.png", SMOOTHING)
    for name in ("some", "none"):
        assert cv2.imread(str(tmp_path / f"{name}.png")).std() > 5


# ---- The picture


def test_a_full_disk_at_the_end_costs_no_training(shapes, tmp_path, monkeypatch):
    write, trained = module.write_json_atomic, []
    run = module._run

    def full(path, value):
        if path.name == "landscape.json":
            raise UserError(f"{path}: cannot be written: No space left on device")
        return write(path, value)

    def counted(variant, *rest):
        trained.append(variant.name)
        return run(variant, *rest)

    monkeypatch.setattr(module, "write_json_atomic", full)
    monkeypatch.setattr(module, "_run", counted)
    with pytest.raises(UserError, match="No space left"):
        landscape(shapes, tmp_path / "out", "small", device="cpu")
    monkeypatch.setattr(module, "write_json_atomic", write)
    found = landscape(shapes, tmp_path / "out", "small", device="cpu")
    assert trained == VARIANTS and [row["name"] for row in found["runs"]] == VARIANTS
    assert json.loads((tmp_path / "out" / "landscape.json").read_text()) == found
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["landscape.json"]


def test_the_variants_of_another_landscape_are_not_taken(shapes, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(module, "_run", lambda variant, *_: trained.append(variant.name) or {"name": variant.name})
    part = tmp_path / module.PART_FILE
    empty = {"label": "", "learning_rate": 1.0, "stopped": None, "loss": [], "norm": [], "fluctuation": []}
    part.write_text(json.dumps({"asked": {"seed": 1}, "runs": [{"name": "none_1x", **empty}]}))
    landscape(shapes, tmp_path, "small", device="cpu")
    assert trained == VARIANTS
    part.write_text(json.dumps({"asked": {"seed": 1}, "runs": [{"name": "none_1x", **empty, "loss": ["a"]}]}))
    with pytest.raises(UserError, match=r"landscape\.part\.json: runs\[0\]: loss: 'a' is not a number; remove it"):
        landscape(shapes, tmp_path, "small", device="cpu")


@pytest.mark.parametrize("width", [1, 4, 15])
def test_smoothing_is_the_mean_of_the_last_values(width):
    values = np.random.default_rng(0).normal(size=40)
    values[7] = 1e30  # of which nothing may be left, once it is past
    wanted = [values[max(0, i - width + 1) : i + 1].mean() for i in range(40)]
    np.testing.assert_allclose(smoothed(values, width), wanted, rtol=1e-12)
    assert np.abs(smoothed(values, width)[7 + width :]).max() < 3
    assert len(smoothed(values[:0], width)) == 0


def painted(image: np.ndarray, colour: str) -> np.ndarray:
    """Whether each of six panels, a row for each figure, holds lines of a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (5, 3, 1)]
    hit = (np.abs(image.astype(int) - wanted).max(2) < 8).astype(int)
    rows = [np.array_split(half, 3, axis=1) for half in np.array_split(hit, 2, axis=0)]
    return np.array([[panel.sum() > 50 for panel in row] for row in rows])


@pytest.mark.slow
def test_the_picture_has_a_curve_of_every_variant_in_every_panel(watched, tmp_path):
    found, *_ = watched
    draw_landscape(found, tmp_path / "all.png", SMOOTHING)
    image = cv2.imread(str(tmp_path / "all.png"))
    for colour in ("#2b6cb0", "#c53030", "#2f855a"):
        assert painted(image, colour).all()
    nothing = {"loss": [], "norm": [], "fluctuation": []}
    lone = [run if run["name"] == "none_1x" else {**run, **nothing} for run in found["runs"]]
    draw_landscape({**found, "runs": lone}, tmp_path / "one.png", SMOOTHING)
    image = cv2.imread(str(tmp_path / "one.png"))
    assert painted(image, "#2b6cb0").all()
    for colour in ("#c53030", "#2f855a"):  # the legend, in the first panel of each row, still names it
        assert not painted(image, colour)[:, 1:].any()


# ---- The command


@pytest.mark.slow
def test_the_command_writes_curves_and_picture(shapes, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["landscape", "--data", str(shapes), "--out", str(out), "--device", "cpu", "--size", "small"]
    assert cli.main([*arguments, "--steps", "3", "--base-lr", "1e5"]) == 0
    found = json.loads((out / "landscape.json").read_text())
    assert found["size"] == {**MICRO.__dict__, "steps": 3, "name": "small"} and found["base_lr"] == 1e5
    said = capsys.readouterr().out
    for run in found["runs"]:
        end = f"not finite at step {run['stopped']}" if run["stopped"] is not None else f"loss {run['loss'][-1]:.2f}"
        assert f"{run['label']}: {end}" in said
    assert "SSD without BN, learning rate 100000: not finite at step 1" in said
    assert cv2.imread(str(out / "landscape.png")).shape[2] == 3
    assert sorted(path.name for path in out.iterdir()) == ["landscape.json", "landscape.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--size", "huge"], 2, "--size huge: unknown; choose one of small, paper"),
        (["--steps", "1"], 2, "1 is not in the range"),
        (["--base-lr", "0"], 2, "0.0 is not in the range"),
        (["--size", "paper"], 1, "12 images do not fill one batch of 128"),
    ],
)
def test_mistakes_end_in_one_line(shapes, tmp_path, capsys, arguments, code, says):
    given = ["landscape", "--data", str(shapes), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*given, *arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "out").exists()


def test_help_imports_nothing_heavy():
    lines = (
        "import json, sys",
        "from directdet.front.cli import main",
        "assert main(['landscape', '--help']) == 0",
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    assert "L2 norm of the gradient" in done.stdout
    assert not {"torch", "numpy", "cv2", "matplotlib", "rich"} & set(json.loads(done.stdout.splitlines()[-1]))
