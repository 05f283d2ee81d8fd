"""The planner: its arithmetic on a small network, its choice on the paper's grid, its error against the paper."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from directdet.common.errors import UsageProblem, UserError
from directdet.front.cli import main
from directdet.recipes.recipe import Phase
from directdet.train.planning import plan as planner
from directdet.train.planning.memory import Measured, StepCost, step_cost
from directdet.train.planning.plan import (
    PAPER_MODEL,
    PAPER_PHASE,
    Grid,
    Workload,
    choose,
    interpolate,
    paper_costs,
    parse_memory,
    plan,
)
from directdet.train.planning.result import Plan, Setting

SMALL = {
    "detector": "retinanet",
    "num_classes": 5,
    "backbone": "resnet18",
    "width": 16,
    "fpn_channels": 32,
    "head_convs": 1,
}
PHASE = Phase("pretrain", "direct", (96, 96), epochs=2, repeat=3)
ONE = Grid((96,), (2,))
# Of the paper's network at (448, 8): so many FLOPs take the paper's 0.795 s.
PAPER = {448: StepCost(8 * 10**9, 8 * 10**12, {}), 640: StepCost(11 * 10**9, 10**13, {})}


def made_up_cost(
    model_config: dict, phase: Phase, size: tuple[int, int], batch: int, processes: int = 1, objects: int = 96
) -> StepCost:
    """Affine in the batch, as the real ones."""
    pixels = size[0] * size[1] * batch + 1000 * (objects - 96)
    return StepCost(10**6 + 200 * pixels, 5000 * pixels, {"parameters": 10**6, "images": 200 * pixels})


@pytest.fixture(autouse=True)
def costs(request, monkeypatch):
    """Traces take seconds: only where a test is about them."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(planner, "paper_costs", lambda: PAPER)
    if "traces" not in request.fixturenames and "slow" not in request.keywords:
        monkeypatch.setattr(planner, "step_cost", made_up_cost)


@pytest.fixture
def traces() -> None:
    """The test traces networks."""


@pytest.fixture
def small(costs) -> Plan:
    return plan(SMALL, PHASE, 15_000_000, Grid((128, 96), (2, 8, 4)), Workload(2, 100), progress=False)


@pytest.mark.parametrize(
    ("text", "size"),
    [("11GB", 11 * 10**9), ("11 GiB", 11 * 2**30), ("10.5gb", 10_500_000_000), ("512MiB", 2**29), ("80MB", 80 * 10**6)],
)
def test_memory_is_read_with_its_unit(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "11", "GB", "11G", "0GB", "-1GB", "11GBs", "1e3GB", "eleven GB"])
def test_other_memory_is_refused(text):
    with pytest.raises(UsageProblem, match="11GB or 11GiB"):
        parse_memory(text)


def setting(length: int, batch: int, fits: bool = True) -> Setting:
    return Setting(length, batch, 0, 0.0, 0.0, 1, 1.0, fits)


@pytest.mark.parametrize(
    ("fitting", "wanted"),
    [
        ([(224, 8), (448, 4), (640, 4), (320, 8), (448, 8)], (448, 8)),  # what fits the paper's 11 GB, and its choice
        ([(640, 4), (224, 8)], (224, 8)),  # 8 images come before length
        ([(224, 16), (320, 8)], (320, 8)),  # more than 8 do not
        ([(448, 8), (448, 16)], (448, 16)),
        ([(640, 2), (224, 4)], (224, 4)),
        ([], None),
    ],
)
def test_choice(fitting, wanted):
    settings = [setting(*point) for point in fitting] + [setting(800, 32, fits=False)]
    found = choose(settings)
    assert (found and (found.length, found.batch)) == wanted


def test_rows_are_the_grid_in_order(small):
    assert [(s.length, s.batch) for s in small.settings] == [(96, 2), (96, 4), (96, 8), (128, 2), (128, 4), (128, 8)]
    assert [s.fits for s in small.settings] == [s.peak <= 15_000_000 for s in small.settings]
    assert {s.fits for s in small.settings} == {True, False}
    assert small.chosen is choose(small.settings)
    assert sum(small.parts.values()) == pytest.approx(small.chosen.peak, abs=len(small.parts))


@pytest.mark.slow
def test_what_lies_between_is_within_one_per_cent_of_its_trace(traces):
    """A batch of 4 is interpolated from 2 and 8."""
    found = plan(SMALL, PHASE, 10**9, Grid((96,), (2, 4, 8)), Workload(2), progress=False)
    traced = step_cost(SMALL, PHASE, (96, 96), 4, processes=2)
    assert found.settings[1].peak == pytest.approx(traced.peak, rel=0.01)
    assert found.settings[1].flops == pytest.approx(traced.flops / 4, rel=0.01)


def test_rate_and_time_of_a_setting(small):
    for row in small.settings:
        assert row.rate == pytest.approx(0.02 * row.batch * 2 / 16)  # linear scaling
        assert row.iterations == 6 * (100 // (row.batch * 2))  # 6 passes, whole batches of both GPUs
        assert row.seconds == pytest.approx(0.81 * 86_400 / 88_000 * row.flops * row.batch / PAPER[448].flops)
        assert row.days == pytest.approx(row.seconds * row.iterations / 86_400)


def test_accumulated_batches_make_one_step():
    phase = replace(PHASE, accumulate=4, iterations=500)
    one, four = (
        plan(SMALL, p, 10**12, ONE, Workload(images=100), progress=False).settings[0]
        for p in (replace(phase, accumulate=1), phase)
    )
    assert (four.rate, four.seconds) == pytest.approx((4 * one.rate, 4 * one.seconds))
    assert four.iterations == one.iterations == 500  # the phase counts steps
    asked = plan(SMALL, phase, 10**12, ONE, Workload(images=100, passes=3), progress=False)
    assert asked.settings[0].iterations == 3 * (100 // 8)


def test_steps_do_not_depend_on_the_batch():
    """Section 3.1 fixes K: on 8 GPUs, 12 epochs of COCO by 2 images are 88k steps; larger batches take longer."""
    phase = replace(PHASE, epochs=12, repeat=None, epoch_batch=2)
    found = plan(SMALL, phase, 10**12, Grid((96,), (2, 4, 8)), Workload(8), progress=False)
    assert [row.iterations for row in found.settings] == [12 * (117_266 // 16)] + [pytest.approx(87_948, rel=1e-3)] * 2
    days = [row.days for row in found.settings]
    assert days[2] / days[0] == pytest.approx(4, rel=0.01)
    assert "12 epochs of 117266 images by 2 per GPU, whatever the batch" in shown(found)


def test_fixed_steps_leave_out_what_cannot_make_them_up():
    phase = replace(PHASE, base_batch=16, fixed_batch=True, iterations=500)
    found = plan(SMALL, phase, 10**12, Grid((96,), (2, 3, 4, 8)), Workload(4), progress=False)
    assert [(row.batch, row.iterations, row.rate) for row in found.settings] == [(2, 500, 0.02), (4, 500, 0.02)]
    with pytest.raises(UsageProblem, match="8 images"):
        plan(SMALL, phase, 10**12, Grid((96,), (8,)), Workload(4), progress=False)


def test_advice_leaves_no_evaluation_far_away():
    """What is advised can be trained: evaluation at 800 is too far from 96 pixels."""
    far = replace(PHASE, size=(448, 448), eval_size=(800, 1333))
    text = shown(plan(SMALL, far, 10**12, ONE, progress=False))
    assert "--set pretrain.size=96 --set pretrain.batch_size=2 --set pretrain.eval_size=none" in text


def shown(found: Plan) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(found.table())
    return " ".join(console.file.getvalue().split())


def test_table_says_what_it_rests_on(small):
    text, chosen = shown(small), small.chosen
    assert f"--set pretrain.size={chosen.length} --set pretrain.batch_size={chosen.batch}" in text
    assert "learning rate" in text and "Table 3" in text and "Table 10" in text and "Rule (our own" in text
    assert "parameters" in text


def test_nothing_fits():
    found = plan(SMALL, PHASE, 1000, ONE, progress=False)
    assert found.chosen is None and found.parts == {}
    assert "Nothing fits: 96 with 2" in shown(found)
    assert json.loads(json.dumps(found.to_dict()))["chosen"] is None


def test_plain_values(small):
    values = json.loads(json.dumps(small.to_dict()))
    assert values["chosen"] == values["settings"][small.settings.index(small.chosen)]
    assert values["chosen"]["days"] == small.chosen.days
    assert values["checks"][0]["error"] == pytest.approx(8e9 / (8.06 * 2**30) - 1)


def test_measurements_decide_where_there_are_any(monkeypatch):
    """A stand-in for the GPU: batch 4 runs out of memory there, batch 2 takes more than was estimated."""
    answers = {2: Measured(6_000_000, 0.5), 4: None}
    monkeypatch.setattr(planner, "device_name", lambda: "Some GPU")
    monkeypatch.setattr(planner, "measure", lambda config, phase, size, batch, gpus, **_: answers[batch])
    found = plan(SMALL, PHASE, 10**9, Grid((96,), (2, 4)), on_gpu=True, progress=False)
    two, four = found.settings
    assert (two.fits, two.seconds, two.measured) == (True, 0.5, answers[2])
    assert not four.fits and four.measured is None
    assert found.chosen is two
    text = shown(found)
    assert "out of memory" in text and "measured on one Some GPU" in text
    tight = plan(SMALL, PHASE, 5_900_000, ONE, on_gpu=True, progress=False)
    assert tight.settings[0].peak < 5_900_000 and tight.chosen is None


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (Grid, {"lengths": (100,)}, "--lengths 100"),
        (Grid, {"lengths": ()}, "--lengths"),
        (Grid, {"batches": (0, 2)}, "--batches 0"),
        (Grid, {"batches": ()}, "--batches"),
        (Workload, {"gpus": 0}, "--gpus 0"),
        (Workload, {"images": 0}, "--images 0"),
    ],
)
def test_senseless_grids_are_refused(kind, changes, words):
    with pytest.raises(UsageProblem, match=words):
        kind(**changes)


def test_only_direct_pre_training_is_planned():
    with pytest.raises(UsageProblem, match="resize=edges"):
        plan(SMALL, replace(PHASE, resize="edges"), 10**9, progress=False)


def test_settings_that_do_not_go_together(traces):
    with pytest.raises(UsageProblem, match=r"model\.head_convs: 5 is not between 0 and 4"):
        plan({**SMALL, "head_convs": 5}, PHASE, 10**9, ONE, progress=False)


def test_measuring_without_a_gpu_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        plan(SMALL, PHASE, 10**9, on_gpu=True, progress=False)


def test_memory_follows_the_objects_of_the_data():
    """Rows are rounded up as the loader does; 93 is COCO's fullest image."""
    peaks = {
        objects: plan(SMALL, PHASE, 10**9, Grid((96,), (2,)), Workload(objects=objects), progress=False)
        .settings[0]
        .peak
        for objects in (1, 93, 96, 97, 2000)
    }
    assert {objects: (peak - peaks[96]) / 200_000 + 96 for objects, peak in peaks.items()} == {
        1: 8, 93: 96, 96: 96, 97: 128, 2000: 2048,
    }  # fmt: skip


def test_interpolation_meets_both_ends():
    low, high = StepCost(10, 100, {"a": 10}), StepCost(30, 300, {"a": 20, "b": 10})
    assert interpolate(low, high, 0.0) == StepCost(10, 100, {"a": 10, "b": 0})
    assert interpolate(low, high, 1.0) == high
    assert interpolate(low, high, 0.5) == StepCost(20, 200, {"a": 15, "b": 5})


@pytest.mark.slow
def test_the_papers_memory_and_its_choice():
    """Table 10 within 5 %, and from its whole grid the paper's setting at 11 GB."""
    found = plan(
        PAPER_MODEL, replace(PAPER_PHASE, repeat=4), parse_memory("11GB"), workload=Workload(8), progress=False
    )
    assert [abs(check.error) < 0.05 for check in found.checks] == [True, True]
    assert (found.chosen.length, found.chosen.batch) == (448, 8)
    assert found.chosen.rate == pytest.approx(0.08)
    assert found.chosen.seconds == pytest.approx(0.795, rel=0.001)
    assert found.chosen.days == pytest.approx(0.81, rel=0.01)
    traced = paper_costs()[448]  # at batch 8; the row is interpolated from 2 and 16
    assert found.chosen.peak == pytest.approx(traced.peak, rel=0.01)


@pytest.mark.parametrize(
    ("setting", "images"), [("sampling=uniform", 12), ("sampling=repeat_factor", 14), ("skip_empty=true", 11)]
)
def test_a_pass_over_data_is_what_the_phase_draws(shapes, tmp_path, monkeypatch, setting, images):
    """11 of 12 pictures show the first class, one the second, too: the factors are sqrt(12 / 11) and sqrt(12)."""
    content = json.loads((shapes / "annotations" / "instances_train2017.json").read_text("utf-8"))
    entries = [{**one, "category_id": 1, "iscrowd": 0} for one in content["annotations"]]
    content["annotations"] = [*entries, {**entries[0], "id": 10**6, "category_id": 2}]
    (tmp_path / "all.json").write_text(json.dumps(content), "utf-8")
    train = f'[train]\nimages = "{shapes / "train2017"}"\nannotations = "all.json"\n'
    (tmp_path / "dataset.toml").write_text(train, "utf-8")
    seen: list[int] = []

    def planned(*arguments, **_):
        seen.append(arguments[4].images)
        raise UserError("enough is known")

    monkeypatch.setattr(planner, "plan", planned)
    settings = ["--set", f"pretrain.{setting}", "--set", "pretrain.repeat_threshold=1"]
    assert main(["plan", "retinanet_r18_slim", "--memory", "8GB", "--data", str(tmp_path), *settings]) == 1
    assert seen == [images]
