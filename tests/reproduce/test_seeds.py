"""A comparison with several seeds: the same steps with each, resumable, with means, spreads and verdicts."""

import json
from dataclasses import replace
from statistics import fmean, stdev

import cv2
import numpy as np
import pytest
import torch
from comparison_helpers import micro_options, printed

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.infer.accuracy.ap_difference import drawn_pictures
from directdet.infer.accuracy.evaluate import score_detections
from directdet.infer.detections import Detections
from directdet.models.checkpoint import load_checkpoint
from directdet.reproduce import budget as planning
from directdet.reproduce import run as module
from directdet.reproduce.comparison import Comparison
from directdet.reproduce.comparison_plot import draw_comparison
from directdet.reproduce.draws import read_draws, write_draws
from directdet.reproduce.run import reproduce
from directdet.reproduce.seeds import SeedsComparison, reproduce_seeds


def test_two_seeds_of_two_steps(shapes, tmp_path, monkeypatch):
    options = micro_options(rows=["affine", "fixed"], steps=2, seed=3)
    found = reproduce_seeds("direct/table2", shapes, tmp_path, 2, options)
    assert found.finished and sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "seed3", "seed4"]
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["seeds"] == [3, 4] and "seed" not in result["plan"] and result["finished"] is True
    for index, row in enumerate(result["rows"]):
        alone = [json.loads((tmp_path / f"seed{seed}" / "results.json").read_text())["rows"][index] for seed in (3, 4)]
        assert row["by_seed"] == {"3": alone[0], "4": alone[1]} and row["seeds"] == [3, 4]
        aps = [one["box_ap"] for one in alone]
        assert row["box_ap"] == pytest.approx(fmean(aps)) and row["spread"]["box_ap"] == pytest.approx(stdev(aps))
        for seed, one in zip((3, 4), alone, strict=True):
            ap, pictures = read_draws(tmp_path / f"seed{seed}" / row["key"])
            assert ap.shape == (101,) and pictures == 4 and ap[0] == pytest.approx(one["box_ap"], abs=1e-12)
    starts = [load_checkpoint(tmp_path / f"seed{seed}/shared/pretrain/checkpoints/last.pt")["model"] for seed in (3, 4)]
    assert any(not torch.equal(value, starts[1][name]) for name, value in starts[0].items())
    assert [(one["text"], one["verdict"], one["reason"]) for one in result["claims"]] == [
        ("fixed > affine", "not shown", "fewer than 10 pictures")
    ]
    text = printed(found.table())
    assert "seeds 3 to 4" in text and "2 steps a phase for each seed" in text and "fixed > affine" in text
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained again"))
    before = read_draws(tmp_path / "seed4" / "fixed")
    (tmp_path / "seed4" / "fixed" / "draws.json").unlink()  # as of an earlier version, or stopped right before it
    again = reproduce_seeds("direct/table2", shapes, tmp_path, 2, options)
    assert again.to_dict() == found.to_dict()
    assert np.allclose(read_draws(tmp_path / "seed4" / "fixed")[0], before[0], atol=1e-6)


def test_voc_comparisons_are_judged_by_voc(shapes, tmp_path):
    options = micro_options(rows=["none_lr001", "head_lr001"], steps=2)
    found = reproduce("scratchdet/table1", shapes, tmp_path, replace(options, scale="smoke"))
    for row in found.rows:
        assert read_draws(tmp_path / row["key"])[0][0] == pytest.approx(row["voc"]["mAP_11point"], abs=1e-12)
    assert [one["text"] for one in found.to_dict()["claims"]] == ["BN in head > no BN"]
    with pytest.raises(UserError, match=r"plan.json: metric: was 'voc'"):
        reproduce("scratchdet/table1", shapes, tmp_path, replace(options, scale="smoke", metric="coco"))


def test_or_by_coco_where_asked(shapes, tmp_path):
    options = micro_options(rows=["head_lr001"], steps=2, metric="coco")
    found = reproduce("scratchdet/table1", shapes, tmp_path, replace(options, scale="smoke"))
    (row,) = found.rows
    assert read_draws(tmp_path / row["key"])[0][0] == pytest.approx(row["box_ap"], abs=1e-12)
    assert "box AP" in printed(found.table()) and "mAP 71" in printed(found.table())
    draw_comparison(found.to_dict(), tmp_path / "rows.png")
    assert cv2.imread(str(tmp_path / "rows.png")).std() > 5


@pytest.mark.parametrize("metric", ["coco", "voc"])
def test_draws_are_of_data_with_the_pictures_as_often_as_drawn(shapes, tmp_path, metric):
    """Against the usual numbers of a dataset that holds each picture as often, with numbers of its own."""
    data = load_dataset(shapes, "val")
    rng, found = np.random.default_rng(1), []
    for record in data.records:
        size = (record.height, record.width)
        boxes = record.boxes + rng.normal(0, 5.0, record.boxes.shape).astype(np.float32)
        found.append((record.image_id, Detections(boxes, rng.random(len(boxes)), record.labels, None, size)))
    write_draws(tmp_path, found, data, metric)
    ap, _ = read_draws(tmp_path)
    assert ap[1:].std() > 0.001
    for number in (0, 17, 99):
        times = drawn_pictures(len(data.records))[number].astype(int)
        copies = [index for index, count in enumerate(times) for _ in range(count)]
        records = tuple(replace(data.records[index], image_id=new) for new, index in enumerate(copies))
        repeated = [(new, found[index][1]) for new, index in enumerate(copies)]
        metrics = score_detections(repeated, replace(data, records=records), records)
        expected = metrics.bbox["AP"] if metric == "coco" else metrics.voc["mAP_11point"]
        assert ap[1 + number] == pytest.approx(expected, abs=1e-9)


# ---- Plans


def test_the_budget_is_shared_and_measured_once(shapes, tmp_path, idle, monkeypatch, capsys):
    calls = []

    def pace(*_):
        calls.append(1)
        return planning.Pace(float(len(calls)), 0.0)  # another one each time

    monkeypatch.setattr(planning, "seconds_of_steps", pace)
    monkeypatch.setattr(planning, "FEWEST_STEPS", 2)
    monkeypatch.setattr(Comparison, "finished", property(lambda self: True, lambda self, value: None), raising=False)
    reproduce_seeds("direct/table2", shapes, tmp_path, 3, micro_options(900.0))
    plans = [json.loads((tmp_path / f"seed{seed}" / "plan.json").read_text()) for seed in range(3)]
    assert [plan.pop("seed") for plan in plans] == [0, 1, 2] and plans[0] == plans[1] == plans[2]
    assert plans[0]["budget_s"] == 300.0 and len(calls) == 4  # the shared pre-training, and three rows
    assert "15.0 minutes for 3 seeds: 5.0 minutes each" in capsys.readouterr().out


def test_a_seed_that_is_not_finished_ends_the_call(shapes, tmp_path, idle, paced):
    found = reproduce_seeds("direct/table2", shapes, tmp_path, 3, micro_options(900.0))
    assert not found.finished and len(found.parts) == 1 and not (tmp_path / "seed1").exists()
    result = json.loads((tmp_path / "results.json").read_text())
    assert {one["verdict"] for one in result["claims"]} == {"to come"} and result["seeds"] == [0, 1, 2]
    assert "Not finished: run the same command again to continue." in printed(found.table())


def test_one_seed_and_several_have_folders_of_their_own(shapes, tmp_path, idle, paced):
    options = micro_options(900.0)
    reproduce("direct/table2", shapes, tmp_path / "one", options)
    with pytest.raises(UserError, match=r"one/plan\.json: is of a comparison of one seed; choose another --out"):
        reproduce_seeds("direct/table2", shapes, tmp_path / "one", 3, options)
    reproduce_seeds("direct/table2", shapes, tmp_path / "three", 3, options)
    with pytest.raises(UserError, match="three: holds a comparison of several seeds; give its --seeds, or another"):
        reproduce("direct/table2", shapes, tmp_path / "three", options)
    with pytest.raises(UserError, match=r"seed0/plan\.json: budget_s: was 300.0; give the same"):
        reproduce_seeds("direct/table2", shapes, tmp_path / "three", 2, options)


def test_seeds_that_were_planned_apart_are_not_compared(shapes, tmp_path, idle, paced, monkeypatch):
    options = micro_options(900.0)
    reproduce("direct/table2", shapes, tmp_path / "seed1", replace(options, seed=1, budget=450.0))
    path = tmp_path / "seed1" / "plan.json"
    plan = json.loads(path.read_text())
    plan["steps"]["fixed"]["finetune"] += 1
    path.write_text(json.dumps(plan))
    monkeypatch.setattr(Comparison, "finished", property(lambda self: True, lambda self, value: None), raising=False)
    with pytest.raises(UserError, match=r"seed1/plan\.json: steps: not those of seed 0; choose another --out"):
        reproduce_seeds("direct/table2", shapes, tmp_path, 2, options)


# ---- What is shown


def test_rows_that_ended_with_some_seeds_only(tmp_path):
    plan = {
        "experiment": "scratchdet/table1",
        "metric": "voc",
        "scale": "micro",
        "budget_s": None,
        "phase_steps": 7,
        "equal": "steps",
    }
    plan |= {"device": "cpu", "images": [12, 20]}
    phases = [{"seconds_per_step": 0.5, "seconds": 60.0}]

    def done(ap: float, fps: float) -> dict:
        facts = {"box_ap": ap / 2, "box_ap50": ap, "mask_ap": None, "images_per_second": fps, "phases": phases}
        return {**facts, "voc": {"mAP_11point": ap}}

    def row(key: str, found: dict) -> dict:
        return {"key": key, "label": key, "paper": {"map": 70.0}, **found}

    reached = [
        [done(0.1, 10.0), done(0.3, 20.0)],
        [{"diverged": 3}, done(0.2, 10.0)],
        [{"diverged": 3}, {"diverged": 5}],
    ]
    parts = [
        Comparison(
            tmp_path / f"seed{seed}",
            {**plan, "seed": seed},
            [row(key, found[seed]) for key, found in zip("abc", reached, strict=True)],
            True,
        )
        for seed in (0, 1)
    ]
    found = SeedsComparison(tmp_path, range(2), parts)
    first, second, third = found.rows()
    assert first["map"] == pytest.approx(0.2) and first["spread"]["map"] == pytest.approx(stdev([0.1, 0.3]))
    assert second["seeds"] == [1] and second["map"] == 0.2 and second["spread"]["map"] is None
    assert third["seeds"] == [] and third["diverged"] == 3 and "map" not in third
    text = printed(found.table())
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert cells == [
        ["a", "20.0 -+ 14.1", "15.0 -+ 7.1", "0.500 -+ 0.000", "2", "mAP 70.0"],
        ["b", "20.0", "10.0", "0.500", "1", "mAP 70.0"],
        ["c", "diverged", "diverged", "diverged", "0", "mAP 70.0"],
    ]
    draw_comparison(found.to_dict(), tmp_path / "seeds.png")
    one = found.to_dict()
    for shown in one["rows"]:
        shown.pop("spread", None)
    draw_comparison(one, tmp_path / "plain.png")
    with_bars, without = (cv2.imread(str(tmp_path / name)) for name in ("seeds.png", "plain.png"))
    assert (with_bars < 64).all(2).sum() > (without < 64).all(2).sum()  # the black line of a spread
