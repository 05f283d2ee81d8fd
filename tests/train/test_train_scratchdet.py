"""ScratchDet's recipes are the paper's rows and say where their constants come from; they run, resume and compare."""

import json
import os
import re
import signal
from dataclasses import fields, replace
from pathlib import Path

import cv2
import pytest
import torch
from rich.console import Console
from slim_models import MICRO

from directdet.common.errors import UsageProblem, UserError
from directdet.infer.preprocess import MEAN, STD, Preprocess
from directdet.models.backbones.builders import SSD_BACKBONES
from directdet.models.build import build_model
from directdet.models.checkpoint import load_checkpoint
from directdet.models.ssd.config import SSDConfig
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Phase, Recipe
from directdet.recipes.scratchdet import SCRATCHDET_RECIPES
from directdet.recipes.settings import apply_settings
from directdet.recipes.show import describe_recipe
from directdet.recipes.table_rows import ROWS, paper_table, results_of
from directdet.reproduce import budget as planning
from directdet.reproduce.comparison_plot import draw_comparison
from directdet.reproduce.experiments import EXPERIMENTS, SCALES
from directdet.reproduce.run import reproduce
from directdet.train import loop
from directdet.train.loop import Trainer, make_phase_loader
from directdet.train.optim import learning_rate
from directdet.train.run import load_splits, train

GPUS = 4  # section 4.1
RATES = (0.001, 0.01, 0.05)
# Table 1: from ImageNet, BN in the backbone, BN in the head; mAP at each of the rates, None for NaN.
TABLE1 = (
    (False, False, False, (67.6, None, None)),
    (False, False, True, (71.0, 75.6, None)),
    (False, True, False, (72.8, 77.8, 78.0)),
    (False, True, True, (71.8, 77.3, 78.7)),
    (True, False, False, (77.1, 76.9, None)),
    (True, True, True, (77.6, 78.2, 75.5)),
)
# Table 2: stride of the first convolution, convolutions of the root and their kernel, fps, mAP.
TABLE2 = (
    (2, 1, 7, 59.5, 73.1),
    (2, 1, 3, 62.9, 73.2),
    (2, 2, 3, 58.1, 74.9),
    (2, 3, 3, 54.5, 75.4),
    (1, 1, 7, 37.0, 77.6),
    (1, 1, 3, 37.2, 77.8),
    (1, 2, 3, 31.5, 78.1),
    (1, 3, 3, 26.9, 78.5),
    (1, 4, 3, 24.3, 78.4),
    (1, 5, 3, 21.8, 78.5),
)
SSDS = [name for name, build in SCRATCHDET_RECIPES.items() if build().detector == "ssd"]
COCO = "ssd300_root_resnet34_coco"


# ---- The paper's tables


def test_table1_is_the_papers():
    names, rows = iter(ROWS["ScratchDet 1"]), iter(paper_table("ScratchDet 1").rows)
    for imagenet, backbone, head, figures in TABLE1:
        for rate, figure in zip(RATES, figures, strict=True):
            name = next(names)
            recipe = get_recipe(name)
            assert next(rows).ap == figure, name
            wanted = {"backbone": "vgg16", "norm": "bn" if backbone else "none", "head_norm": head}
            assert recipe.model == wanted and recipe.init == ("imagenet" if imagenet else "random"), name
            images = 32 if imagenet else 32 * GPUS  # section 4.1
            assert learning_rate(recipe.phases[0], images) == rate, name
            (shown,) = results_of(name)
            assert shown.startswith("ScratchDet, Table 1, ") and f"learning rate {rate:g}: " in shown
            assert shown.endswith("did not converge" if figure is None else f": mAP {figure}")
            assert ("ImageNet" in shown) == imagenet
    assert not list(names) and not list(rows)


def test_table2_is_the_papers():
    names, rows = ROWS["ScratchDet 2"], paper_table("ScratchDet 2").rows
    for name, row, (stride, convs, kernel, fps, figure) in zip(names, rows, TABLE2, strict=True):
        recipe = get_recipe(name)
        root = SSD_BACKBONES[recipe.model["backbone"]](8)
        assert root.conv1.stride == (stride, stride) and root.conv1.kernel_size == (kernel, kernel), name
        assert root.root_convs == convs and [len(stage) for stage in root._stages().values()] == [2, 2, 2, 2], name
        assert (row.fps, row.ap) == (fps, figure), name
        words = ("one", "two", "three", "four", "five")[convs - 1]
        assert row.method.startswith(f"stride {stride}, {words} {kernel}x{kernel}"), name
        assert results_of(name) == [f"ScratchDet, Table 2, {row.method}: mAP {figure}; {fps} fps"]
        assert recipe.model["extras"] == "residual" and learning_rate(recipe.phases[0], 128) == 0.05


def test_recipes_beside_the_tables():
    a = SSD_BACKBONES["resnet18_a"](8)  # Figure 3
    assert a.conv1.stride == (2, 2) and isinstance(a.maxpool, torch.nn.Identity)
    deep = SSD_BACKBONES[get_recipe("ssd300_root_resnet34").model["backbone"]](8)
    assert deep.root_convs == 3 and [len(stage) for stage in deep._stages().values()] == [3, 4, 6, 3]
    assert get_recipe("ssd300_resnet101").model["backbone"] == "resnet101"
    assert get_recipe("dsod300").model == {"backbone": "dsod", "extras": "dsod", "norm": "bn", "head_norm": True}
    without = {"backbone": "dsod", "extras": "dsod", "norm": "none", "head_norm": False}
    assert get_recipe("dsod300_no_bn").model == without


@pytest.mark.parametrize("name", SSDS)
def test_constants_are_those_of_section_4(name):
    recipe = get_recipe(name)
    (phase,) = recipe.phases
    assert phase.name == ("finetune" if recipe.init == "imagenet" else "scratch")
    assert (phase.resize, phase.size, phase.eval_size) == ("warp", (300, 300), (300, 300))
    assert (phase.optimizer, phase.momentum, phase.weight_decay, phase.gamma) == ("sgd", 0.9, 0.0005, 0.1)
    assert (phase.batch_size, phase.accumulate, phase.norm, phase.frozen_stages) == (32, 1, "live", -1)
    assert (phase.warmup_iterations, phase.clip_norm, phase.precision, phase.max_steps) == (0, None, "fp32", None)
    # Weights of torchvision know pixels divided by ImageNet's deviation, whatever ScratchDet does.
    assert phase.std == (STD if recipe.init == "imagenet" else (1.0, 1.0, 1.0))
    length = (325_000, (150_000, 250_000, 310_000)) if name == COCO else (100_000, (45_000, 75_000, 95_000))
    assert (phase.iterations, phase.milestones) == length
    config = SSDConfig(20, **recipe.model)
    assert (config.size, config.l2_norm, config.last_map_3x3, config.width) == (300, False, False, None)
    assert config.priors == ("coco" if name == COCO else "voc")
    # Of the original SSD, as in the authors' scripts.
    assert (config.positive_iou, config.negative_ratio) == (0.5, 3)
    assert (config.score_threshold, config.nms, config.detections) == (0.01, 0.45, 200)
    images = 117_266 if name == COCO else 16_551  # train2017 with objects; VOC 2007 and 2012 trainval
    step = phase.batch_size * (1 if recipe.init == "imagenet" else GPUS)
    assert 5 <= phase.iterations * step / images / phase.eval_every <= 50  # evaluations


# ---- Sources


def said_of(recipe: Recipe, key: str) -> str:
    return recipe.sources.get(f"{recipe.phases[0].name}.{key}", recipe.sources.get(key, ""))


@pytest.mark.parametrize("name", SSDS)
def test_every_setting_has_a_source_and_every_source_a_setting(name):
    recipe = get_recipe(name)
    (phase,) = recipe.phases
    for setting in fields(Phase):
        if setting.name != "name" and getattr(phase, setting.name) != setting.default:
            assert said_of(recipe, setting.name), setting.name
    known = {f.name for f in fields(Phase)}
    known |= {f"{phase.name}.{key}" for key in known} | {f"model.{f.name}" for f in fields(SSDConfig)}
    assert recipe.sources.keys() <= known
    assert {f"model.{key}" for key in recipe.model} <= recipe.sources.keys()
    text = rendered(recipe)
    assert not re.search(r"│ ours +│", text)
    codes = re.findall(r"│ (\w+) +│ [^│]+│ the paper's code +│", text)
    assert codes == ["width", "positive_iou", "negative_ratio", "score_threshold", "nms", "detections"]
    defaults = re.findall(r"│ (\w+) +│ [^│]+│ default +│", text)
    assert not {"std", "size", "iterations", "weight_decay", "milestones", "norm_weight_decay"} & set(defaults)


def rendered(recipe: Recipe) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(describe_recipe(recipe))
    return capture.get()


@pytest.mark.parametrize("name", SSDS)
def test_sources_of_a_phase_do_not_contradict_it(name):
    recipe = get_recipe(name)
    (phase,) = recipe.phases
    rate, images = re.search(r"([\d.]+) for (\d+) images", said_of(recipe, "base_lr")).groups()
    assert learning_rate(phase, int(images)) == float(rate) and int(images) == phase.base_batch
    lengths = [int(number) for number in re.findall(r"(\d+)k\b", said_of(recipe, "iterations"))]
    assert sum(lengths) * 1000 == phase.iterations
    drops = re.findall(r"(\d+)k\b", said_of(recipe, "milestones"))
    assert tuple(int(number) * 1000 for number in drops) == phase.milestones
    assert f"{phase.base_batch} images" in said_of(recipe, "base_batch")
    assert f"{phase.base_batch} images" in said_of(recipe, "batch_size")
    assert f"{phase.batch_size}" in said_of(recipe, "batch_size")
    for key in ("resize", "size", "eval_size"):
        assert "300x300" in said_of(recipe, key)
    assert said_of(recipe, "weight_decay").endswith(f" {phase.weight_decay:g}")
    assert said_of(recipe, "momentum").endswith(f" {phase.momentum:g}")
    assert ("nothing divided" in said_of(recipe, "std")) == (phase.std == (1.0, 1.0, 1.0))
    assert ("ImageNet" in said_of(recipe, "std")) == (recipe.init == "imagenet")
    assert ("COCO" in said_of(recipe, "iterations") + said_of(recipe, "base_lr")) == (name == COCO)
    assert ("Table 1" in said_of(recipe, "base_lr")) == (recipe.model["backbone"] in ("vgg16", "dsod"))


@pytest.mark.parametrize("name", SSDS)
def test_sources_of_a_network_do_not_contradict_it(name):
    recipe = get_recipe(name)
    says = {key.removeprefix("model."): text for key, text in recipe.sources.items() if key.startswith("model.")}
    config = SSDConfig(20, **recipe.model)
    assert says["priors"].endswith(config.priors.upper())
    assert ("no BN" in says["norm"]) == (config.norm == "none") and "BN" in says["norm"]
    assert ("no BN" in says["head_norm"]) == (not config.head_norm) and "BN" in says["head_norm"]
    assert {"Figure 8": "residual", "original SSD": "ssd", "DSOD": "dsod"}[
        re.search("Figure 8|original SSD|DSOD", says["extras"])[0]
    ] == config.extras
    assert ("VGG-16" in says["backbone"]) == (config.backbone == "vgg16")
    assert ("DSOD" in says["backbone"]) == (config.backbone == "dsod")
    assert ("Table 2" in says["backbone"]) == (name in ROWS["ScratchDet 2"])
    assert f"{config.candidates} at a time" in says["candidates"]


# ---- The rows of `directdet reproduce`


def test_trials_of_scratchdet1_are_the_rows_that_start_from_scratch():
    trials = EXPERIMENTS["scratchdet/table1"].trials(SCALES["small"])
    wanted = [(rate, row[1:3], figure) for row in TABLE1[:4] for rate, figure in zip(RATES, row[3], strict=True)]
    assert len(trials) == len({trial.key for trial in trials}) == 12
    for trial, (rate, (backbone, head), figure) in zip(trials, wanted, strict=True):
        (phase,) = trial.recipe.phases
        assert learning_rate(phase, SCALES["small"].ssd_batch) == rate and trial.label.endswith(f", {rate:g}")
        assert trial.recipe.model["norm"] == ("bn" if backbone else "none")
        assert trial.recipe.model["head_norm"] == head
        assert trial.paper == {"map": figure} and trial.recipe.init == "random" and not trial.shares
        assert (phase.batch_size, trial.recipe.model["width"]) == (16, 16)


def test_trials_of_scratchdet2_are_the_roots():
    trials = EXPERIMENTS["scratchdet/table2"].trials(SCALES["paper"])
    for trial, name, (*_, fps, figure) in zip(trials, ROWS["ScratchDet 2"], TABLE2, strict=True):
        whole = get_recipe(name)
        assert trial.paper == {"map": figure, "fps": fps}
        assert trial.recipe.model == {**whole.model, "width": None}
        (phase,), (wanted,) = trial.recipe.phases, whole.phases
        assert learning_rate(phase, phase.batch_size) == 0.05 and phase.batch_size == 128
        assert (phase.std, phase.weight_decay, phase.resize) == (wanted.std, wanted.weight_decay, "warp")


def only(monkeypatch: pytest.MonkeyPatch, name: str, *keys: str) -> None:
    whole = EXPERIMENTS[name]
    rows = replace(whole, trials=lambda scale: [trial for trial in whole.trials(scale) if trial.key in keys])
    monkeypatch.setitem(EXPERIMENTS, name, rows)


@pytest.mark.slow
def test_a_row_that_is_not_finite_is_nan_and_the_others_go_on(shapes, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    step, stepped = Trainer.step, []

    def broken(self: Trainer, batches: list) -> tuple[dict, dict]:
        losses, counts = step(self, batches)
        row = self.folder.parent.name
        stepped.append(row)
        return ({**losses, "class": losses["class"] + float("inf")} if row == "none_lr05" else losses), counts

    monkeypatch.setattr(Trainer, "step", broken)
    monkeypatch.setitem(SCALES, "micro", MICRO)
    monkeypatch.setattr(planning, "_seconds", lambda *_: {"step": 1.0, "evaluation": 0.0})
    monkeypatch.setattr(planning, "FEWEST_STEPS", 2)
    only(monkeypatch, "scratchdet/table1", "none_lr05", "head_lr01", "both_lr05")
    given = ("scratchdet/table1", shapes, tmp_path, 6.0, "micro", "cpu")
    for _ in range(2):  # and the second time nothing is tried again
        found = reproduce(*given)
        assert found.finished
        assert ["diverged" in row for row in found.rows] == [True, False, False]
        assert [stepped.count(row["key"]) for row in found.rows] == [2, 2, 2]
    lost, *others = found.rows
    assert lost["paper"] == {"map": None} and "voc" not in lost
    for row in others:
        assert 0 <= row["voc"]["mAP_11point"] <= 1 and row["images_per_second"] > 0
    assert json.loads((tmp_path / "results.json").read_text())["metric"] == "voc"
    console = Console(width=200)
    with console.capture() as capture:
        console.print(found.table())
    lines = capture.get().splitlines()
    cells = {row["key"]: next(line for line in lines if row["label"] in line).split("│") for row in found.rows}
    assert cells["none_lr05"][2].strip() == "NaN" and cells["none_lr05"][-2].strip() == "mAP NaN"
    for row in others:
        mean, fps = (cell.strip() for cell in cells[row["key"]][2:4])
        assert mean == f"{100 * row['voc']['mAP_11point']:.1f}" and fps == f"{row['images_per_second']:.1f}"
    draw_comparison(found.to_dict(), tmp_path / "rows.png")
    assert cv2.imread(str(tmp_path / "rows.png")).std() > 5


# ---- A run


@pytest.fixture
def slim() -> Recipe:
    """Six steps of a slim SSD300."""
    torch.set_num_threads(1)
    recipe = get_recipe("ssd300_resnet18").with_phase(
        "scratch", batch_size=3, workers=0, iterations=6, milestones=(5,), eval_every=1_000_000
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
        phase = replace(phase, batch_size=2, workers=0)
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
            os.kill(os.getpid(), signal.SIGINT)
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
    assert rate == pytest.approx([0.05 * 3 / 128 * 0.1] * 2)  # after the milestone


def last(run: Path) -> Path:
    return run / "scratch" / "checkpoints" / "last.pt"


# ---- Mistakes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.size=512"], "model.size=512: such a network takes pictures of 512x512 alone"),
        (["size=320", "eval_size=320"], r"model\.size=300: .*--set scratch.size=300 "),
        (["resize=edges"], "--set scratch.resize=warp"),
        (["resize=direct"], "--set scratch.resize=warp"),
    ],
)
def test_pictures_of_another_size_are_refused_before_the_first_step(shapes, slim, tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        train(apply_settings(slim, settings), shapes, tmp_path / "run", dry_run=True)


def test_another_size_is_taken_where_it_is_given_everywhere(shapes, slim, tmp_path):
    recipe = apply_settings(slim, ["size=320", "eval_size=320", "model.size=320"])
    train(recipe, shapes, tmp_path / "run", dry_run=True)


def test_warping_for_a_pyramid_needs_multiples_of_32(shapes, tiny, tmp_path):
    warped = apply_settings(tiny, ["pretrain.resize=warp", "pretrain.size=100", "pretrain.eval_size=100"])
    with pytest.raises(UserError, match="pretrain: size: height and width must be multiples of 32, not 100 and 100"):
        train(warped, shapes, tmp_path / "run", dry_run=True)


@pytest.mark.parametrize("value", ["0", "1,0,1", "-1"])
def test_pixels_cannot_be_divided_by_nothing(slim, value):
    with pytest.raises(UsageProblem, match=r"--set scratch\.std: .* is not above 0"):
        apply_settings(slim, [f"std={value}"])


def test_warp_needs_one_size_for_training_and_evaluation(slim):
    with pytest.raises(UsageProblem, match=r"eval_size: .* must be \(320, 320\), the size"):
        apply_settings(slim, ["size=320"])
