"""Every row of the paper's tables has its recipe, the recipe is what the row says, and what is shown is what it is."""

import re
from dataclasses import fields, replace

import pytest
from rich.console import Console

from directdet.front.cli import main
from directdet.models.build import DETECTORS
from directdet.recipes import published
from directdet.recipes.by_name import RECIPES, get_recipe
from directdet.recipes.derived import evaluation_size, images_per_step, passes_per_epoch
from directdet.recipes.direct.recipes import DIRECT_RECIPES
from directdet.recipes.published import ApRow
from directdet.recipes.recipe import PARTS, Phase, Recipe
from directdet.recipes.show import FROM_DATA, describe_recipe, recipe_groups
from directdet.recipes.table_rows import TABLES, published_results, rows_of
from directdet.train.montage.stepper import montage_period
from directdet.train.optim import factor_at, learning_rate

COCO_TRAIN = 117266  # pictures of train2017 with objects
GPUS = 8  # the server of the direct pre-training paper
DETECTORS_OF_ROWS = {
    "Mask R-CNN R50-FPN 4conv1fc": ("rcnn", "resnet50", True),
    "RetinaNet": ("retinanet", "resnet50", False),
    "Faster R-CNN": ("rcnn", "resnet50", False),
    "Cascade R-CNN": ("cascade", "resnet50", False),
    "Mask R-CNN Swin-T": ("rcnn", "swin_t", True),
}
LOADED = {"Montage (normalised)": 1, "Backbone": 1, "+ FPN": 2, "+ RPN": 3, "+ box head": 4, "+ mask head": 5}
KEYS = [key for key in TABLES if TABLES[key].published().source.startswith(published.DIRECT)]
ROWS_WITH_RECIPES = [
    pytest.param(recipe, row, id=f"{key}-{number}")
    for key in KEYS
    for number, (recipe, row) in enumerate(zip(TABLES[key].recipes, TABLES[key].published().rows, strict=True))
    if " " not in recipe
]
AP_ROWS = [param for param in ROWS_WITH_RECIPES if isinstance(param.values[1], ApRow)]


def test_every_table_is_there_with_every_row():
    assert [key for key in TABLES if key.startswith("direct/")] == KEYS
    assert [TABLES[key].published() for key in KEYS] == [
        t for t in published.all_tables() if t.source.startswith(published.DIRECT)
    ]
    assert len(KEYS) == 11
    rows = [row for table in TABLES.values() for row in rows_of(table)]
    without = [(row.label, row.why_not) for row in rows if row.recipe is None]
    assert all("quoted" in why or "COCO" in why for _, why in without)
    assert not [name for key in KEYS for name in TABLES[key].recipes if " " in name]
    assert all((row.recipe in RECIPES) != bool(row.why_not) for row in rows)


def steps(phase: Phase) -> int:
    """Steps on the paper's machine; on a tenth of COCO and VOC they are given."""
    return phase.iterations or phase.epochs * passes_per_epoch(phase) * COCO_TRAIN // (phase.batch_size * GPUS)


def test_the_speed_tables_name_the_recipes_of_their_rows():
    """A benchmark sets a timed model beside the row whose recipe trained it."""
    for key, table in zip(("direct/table7", "scratchdet/table2"), published.speed_tables(), strict=True):
        recipes = TABLES[key].recipes
        assert table == TABLES[key].published()
        assert tuple(row.recipe for row in table.rows) == recipes and set(recipes) <= set(RECIPES)


@pytest.mark.parametrize(("name", "row"), AP_ROWS)
def test_detector_start_and_length_are_the_rows(name: str, row: ApRow):
    recipe = get_recipe(name)
    masks = recipe.model.get("masks", False)
    assert (recipe.detector, recipe.model["backbone"], masks) == DETECTORS_OF_ROWS[row.detector]
    assert (recipe.init == "imagenet") == (row.method.partition(",")[0] == "ImageNet")
    schedule = row.iterations or row.fine_tune
    if schedule is None:
        return  # Table 5 and section 3.2 print none
    words = row.method + " " + schedule
    if found := re.search(r"P([\d.]+)(x|k)", words):
        wanted = float(found[1]) * (1000 if found[2] == "k" else 88_000)
        # 12 epochs are 87,950 steps of 16 pictures
        assert steps(recipe.phase("pretrain")) == pytest.approx(wanted, rel=0.01)
        assert not recipe.phase("pretrain").milestones  # section 4.1
    number, unit = re.search(r"([\d.]+)(x|k)(?: ms)?$", schedule).groups()
    last = recipe.phases[-1]
    if unit == "k":
        assert steps(last) == float(number) * 1000
    else:  # Figure 1: "1x", "2x", "6x" are 12, 24 and 73 epochs
        epochs = {"6": 73}.get(number, 12 * int(number))
        assert last.epochs == epochs and len(last.milestones) == 2
        assert steps(last) == pytest.approx(88_000 * epochs / 12, rel=0.01)
        assert max(last.milestones) < epochs


@pytest.mark.parametrize(("name", "row"), AP_ROWS)
def test_batch_pixels_and_what_is_loaded_are_the_rows(name: str, row: ApRow):
    recipe = get_recipe(name)
    first, last = recipe.phases[0], recipe.phases[-1]
    if row.batch_per_gpu:
        assert first.batch_size == row.batch_per_gpu
    if row.input:
        shown = [str(p.size[0]) if p.resize == "direct" else f"({p.size[1]},{p.size[0]})" for p in recipe.phases]
        assert ", ".join(shown).startswith(row.input)
    assert bool(last.short_edges) == ("ms" in (row.fine_tune or "").split())
    assert last.parts == PARTS[: LOADED.get(row.method, 5)]
    if last.name != "scratch" and "VOC" not in (row.dataset or ""):  # fine-tuning, always at (1333, 800), by twos
        assert (last.resize, last.size, last.batch_size) == ("edges", (800, 1333), 2)


@pytest.mark.parametrize(("name", "row"), AP_ROWS)
def test_normalisation_is_the_rows(name: str, row: ApRow):
    recipe = get_recipe(name)
    last = recipe.phases[-1]
    start, _, said = row.method.partition(", ")
    if recipe.model["backbone"] == "swin_t":
        wanted = "live"  # section 4.7: layer normalisation stays active
    elif said:  # Table 2
        wanted = {"affine": "affine", "fixed": "fixed", "SyncBN": "sync"}[said]
    elif last.name == "scratch":
        wanted = {"Scratch (BN)": "live", "Scratch (GN)": "live"}.get(start, "sync")
    else:
        wanted = "affine" if recipe.init == "imagenet" else "fixed"  # Table 2's best, and mmdet's default
    assert last.norm == wanted
    assert (recipe.model.get("norm", "bn") == "gn") == ("GN" in start)
    assert all(phase.norm == "live" and phase.frozen_stages == -1 for phase in recipe.phases[:-1])


@pytest.mark.parametrize("end", ["b2", "b4", ""])
def test_pre_training_has_as_many_steps_whatever_the_batch(end):
    """Section 3.1 fixes the steps K; Figure 2: "3x schedule (36 epochs, 261k iterations)"."""
    phase = get_recipe("mask_rcnn_r50_fpn_p3x_1x" + (f"_{end}" if end else "")).phase("pretrain")
    assert phase.batch_size == int(end[1:] or 8 if end else 8)
    assert steps(phase) == pytest.approx(261_000, rel=0.015)
    # Section 3.4: 0.02 for 2 pictures on each GPU, times k for k times as many.
    assert learning_rate(phase, phase.batch_size * GPUS) == pytest.approx(0.01 * phase.batch_size)


def test_constants_of_the_other_detectors():
    def rates(name: str) -> list[float]:
        return [learning_rate(phase, phase.batch_size * GPUS) for phase in get_recipe(name).phases]

    assert rates("retinanet_r50_fpn") == pytest.approx([0.04, 0.02])
    assert rates("mask_rcnn_swin_t_fpn") == pytest.approx([4e-4, 1e-4])
    for phase in get_recipe("mask_rcnn_swin_t_fpn").phases:
        assert (phase.optimizer, phase.weight_decay, phase.norm_weight_decay) == ("adamw", 0.05, False)
        assert (phase.momentum, phase.precision, phase.clip_norm) == (0.9, "fp16", None)
    assert rates("mask_rcnn_r50_fpn_dropblock_3x") == pytest.approx([0.08])
    less = get_recipe("mask_rcnn_r50_fpn_coco10")
    assert less.data_fraction == 0.1
    assert (less.phase("finetune").base_lr, less.phase("finetune").gamma) == (0.04, 0.02)  # section 4.8
    voc = get_recipe("faster_rcnn_r50_fpn_voc").phase("finetune")
    # Section 7.1: four epochs of mmdet's three times repeated 16551 pictures, the rate reduced after the third.
    assert voc.iterations == pytest.approx(4 * 3 * 16551 / 16, rel=0.01)
    assert voc.milestones[0] / voc.iterations == 0.75


def test_constants_of_montage_pre_training():
    """Zhou et al., arXiv 2004.12178, section 4.1: 64k steps of 512 montages, the rate from 0.2 to 0.8 and down to 0."""
    recipe = get_recipe("mask_rcnn_r50_fpn_montage_1x")
    phase, last = recipe.phases
    assert (phase.name, phase.iterations, images_per_step(phase, GPUS)) == ("montage", 64_000, 512)
    rates = [learning_rate(phase, 512) * factor_at(phase, step, 1) for step in (0, 1250, 63_999)]
    assert rates == pytest.approx([0.2, 0.8, 0.0], abs=1e-8)
    assert (phase.scale, phase.flip, phase.weight_decay, phase.norm) == ((0.8, 1.5), 0.5, 1e-4, "live")
    assert montage_period(phase, 1) == 5000  # steps between two measurements of the receptive fields
    # The row's AP is ImageNet's with Montage's gain added: it differs in what is loaded and in frozen normalisation.
    imagenet = get_recipe("mask_rcnn_r50_fpn_imagenet_1x")
    assert (recipe.model, recipe.init) == (imagenet.model, "random")
    assert replace(last, norm="affine", parts=PARTS) == imagenet.phases[0]


@pytest.mark.parametrize("name", DIRECT_RECIPES)
def test_evaluations_are_few(name):
    """Evaluating COCO takes as long as thousands of steps: about once in one of the paper's epochs."""
    recipe = get_recipe(name)
    images = {"voc": 16551, "coco10": 11827}.get(name.split("fpn_")[-1].split("_")[0], COCO_TRAIN)
    for phase in recipe.phases:
        if phase.name == "montage":
            assert not phase.eval_every  # a classifier
            continue
        epochs = phase.iterations * phase.batch_size * GPUS / images if phase.iterations else phase.epochs
        assert 3 <= epochs / phase.eval_every <= 73


@pytest.mark.parametrize(("name", "row"), ROWS_WITH_RECIPES)
def test_figures_beside_a_recipe_are_the_papers(name, row):
    shown = "; ".join(published_results(name))
    if isinstance(row, ApRow):
        assert re.search(rf"box {row.ap_box}\b", shown)
        assert row.ap_mask is None or f"box {row.ap_box}, mask {row.ap_mask}" in shown
        assert row.total_cost_days is None or f"{row.total_cost_days} days" in shown
    else:
        assert f"{row.train_s_per_iter} s per iteration, {row.fps} fps" in shown
    assert len(set(published_results(name))) == len(published_results(name))


def said_of(recipe: Recipe, phase: Phase, key: str) -> str | None:
    return recipe.sources.get(f"{phase.name}.{key}", recipe.sources.get(key))


@pytest.mark.parametrize("name", DIRECT_RECIPES)
def test_every_setting_that_differs_has_a_source_and_every_source_a_use(name):
    recipe = get_recipe(name)
    for phase in recipe.phases:
        for setting in fields(Phase):
            if getattr(phase, setting.name) != setting.default and setting.name not in ("name", "size", "resize"):
                assert said_of(recipe, phase, setting.name), setting.name
        assert said_of(recipe, phase, "size") and said_of(recipe, phase, "resize")
        for key in ("shrink", "short_edges", "iterations", "max_steps", "accumulate"):
            unused = getattr(phase, key) == Phase.__dataclass_fields__[key].default
            assert not (unused and said_of(recipe, phase, key)), key
    known = {f.name for f in fields(DETECTORS[recipe.detector].config)}
    assert recipe.model.keys() <= known
    where = {key.rpartition(".")[0] for key in recipe.sources}
    assert where <= {"", "model", *(phase.name for phase in recipe.phases)}
    if recipe.data_fraction < 1:
        assert recipe.sources["data_fraction"]


@pytest.mark.parametrize("name", DIRECT_RECIPES)
def test_sources_do_not_contradict_the_values(name):
    recipe = get_recipe(name)
    convs = recipe.model.get("box_convs", 4)
    if recipe.detector == "rcnn":
        assert ("two-layer head" in recipe.sources["model.box_convs"]) == (convs == 0)
    assert ("model.norm" in recipe.sources) == (recipe.model.get("norm") == "gn")
    for phase in recipe.phases:
        says = {f.name: said_of(recipe, phase, f.name) or "" for f in fields(Phase)}
        if found := re.search(r"from ([\d.]+) %", says["warmup_factor"]):
            assert phase.warmup_factor == pytest.approx(float(found[1]) / 100)
        if found := re.search(r"([\d.e-]+) for (\d+) images(?: on each of (\d) GPUs)?", says["base_lr"]):
            assert learning_rate(phase, int(found[2]) * int(found[3] or 1)) == pytest.approx(float(found[1]))
        if found := re.search(r"linear, (\d+) iterations|code: (\d+)$", says["warmup_iterations"]):
            assert phase.warmup_iterations == int(found[1] or found[2])
        for size in ("size", "eval_size"):
            if found := re.search(r"\((\d+), (\d+)\)$", says[size]):
                value = phase.size if size == "size" else evaluation_size(phase)
                assert value == (int(found[2]), int(found[1]))
        if found := re.search(r"(\d+)x\1\b", says["size"]):
            assert phase.size == (int(found[1]),) * 2
        if found := re.search(r"(\d+) images (?:per|on each)", says["batch_size"]):
            assert phase.batch_size == int(found[1])
        assert ("AdamW" in says["optimizer"]) == (phase.optimizer == "adamw")
        assert ("ImageNet style" in says["resize"]) == (phase.resize == "direct" and phase.name != "montage")
        assert not ("alpha" in says["scale"] and phase.resize != "direct")
        if "none" in says["norm_weight_decay"] or "= 0" in says["norm_weight_decay"]:
            assert not phase.norm_weight_decay
        assert "BN" not in says["norm"] or recipe.model["backbone"] != "swin_t"
        assert "faster" not in says["channels_last"] or phase.channels_last


def shown(renderable: object, width: int = 400) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_shown_whole(name):
    recipe = get_recipe(name)
    text = shown(describe_recipe(recipe))
    for setting in fields(Phase):
        assert setting.name == "name" or re.search(rf"│ {setting.name} +│", text), setting.name
    for setting in fields(DETECTORS[recipe.detector].config):
        assert setting.name in FROM_DATA or re.search(rf"│ {setting.name} +│", text), setting.name
    assert f"starts from: {recipe.init} weights" in text and f"directdet train {name} --data" in text
    assert all(result in text for result in published_results(name))
    if name in DIRECT_RECIPES:  # nothing that differs from the defaults is passed off as a default, or left unsaid
        assert not re.search(r"│ ours +│", text)


def test_a_source_of_one_phase_stands_for_all_where_there_is_one_phase():
    text = shown(describe_recipe(get_recipe("mask_rcnn_r50_fpn_coco10_imagenet")))
    assert "finetune.gamma: section 4.8: 0.02" in text and "gamma: mmdet schedule: 0.1" not in text


def test_the_command_line_lists_and_shows_every_recipe(capsys, monkeypatch):
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["recipes", "--papers"]) == 0
        listed = capsys.readouterr().out
        for name in RECIPES:  # whole, to be copied
            assert re.search(rf"│ {name} +│", listed), name
    names = " ".join(line.split("│")[1].strip() for line in listed.splitlines() if line.startswith("│"))
    assert "(no recipe: no recipe trains on COCO" in names
    for name in ("demo", "cascade_rcnn_r50_fpn", "retinanet_r50_fpn_imagenet_1x", "mask_rcnn_swin_t_fpn"):
        assert main(["recipes", name]) == 0
        assert get_recipe(name).summary in " ".join(capsys.readouterr().out.split())
    assert shown(recipe_groups()).count("Table ") >= 10
