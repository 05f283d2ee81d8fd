"""What a comparison shows of its runs."""

from pathlib import Path

from comparison_helpers import printed

from directdet.reproduce import comparison as module


def test_facts_of_a_phase_come_from_its_log():
    log = [
        {"kind": "step", "step": 10, "seconds_per_step": 2.0, "data_seconds": 0.1, "memory_gib": 1.5, "loss": 3.0},
        {"kind": "step", "step": 14, "seconds_per_step": 5.0, "data_seconds": 0.3, "memory_gib": 2.5, "loss": 2.0},
        {"kind": "step", "step": 24, "seconds_per_step": 1.0, "data_seconds": 0.2, "memory_gib": 2.0, "loss": 1.0},
        {"kind": "eval", "step": 24, "bbox": {}},
    ]
    facts = module._phase_facts("scratch", log)
    assert facts["seconds"] == 10 * 2.0 + 4 * 5.0 + 10 * 1.0 and facts["steps"] == 24
    assert (facts["seconds_per_step"], facts["data_seconds"], facts["memory_gib"]) == (2.0, 0.2, 2.5)
    without = [{key: value for key, value in row.items() if key != "memory_gib"} for row in log]
    assert "memory_gib" not in module._phase_facts("scratch", without)


def test_the_table_shows_what_is_there():
    plan = {"experiment": "direct/scratch", "metric": "coco", "scale": "micro", "seed": 3}
    phases = [{"steps": 70, "seconds_per_step": 0.5, "seconds": 35.0, "last_loss": 1.0}]
    phases += [{"steps": 30, "seconds_per_step": 1.25, "seconds": 37.0, "last_loss": 1.0}]
    done = {"box_ap": 0.1234, "box_ap50": 0.25, "mask_ap": None, "phases": phases}
    rows = [
        {"key": "a", "label": "first", "paper": {"box_ap": 41.5, "mask_ap": 37.0, "days": 1.52}, **done},
        {"key": "b", "label": "second", "paper": None, **done, "mask_ap": 0.05},
        {"key": "c", "label": "third", "paper": None, "skipped": "needs weights"},
        {"key": "d", "label": "fourth", "paper": None, "diverged": 17},
        {"key": "e", "label": "fifth", "paper": None},
    ]
    text = printed(module.Comparison(Path(), plan, rows, finished=False).table())
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert cells == [
        ["first", "12.3", "25.0", "-", "70+30", "0.500 + 1.250", "1.2", "box 41.5, mask 37.0, 1.52 days"],
        ["second", "12.3", "25.0", "5.0", "70+30", "0.500 + 1.250", "1.2", "-"],
        ["third", "skipped", "", "", "", "", "", "-"],
        ["fourth", "NaN", "", "after step 17", "", "", "", "-"],
        ["fifth", "to come", "", "", "", "", "", "-"],
    ]
    assert "scale micro, seed 3" in text and module.CAUTION in text and "Every row gets equal time." in text
    assert "Skipped: needs weights." in text
    assert "Not finished: run the same command again to continue." in text
    assert "Not finished" not in printed(module.Comparison(Path(), plan, rows, finished=True).table())
    assert "SyncBN" not in text
    rows[0]["key"] = "sync"
    assert "SyncBN has no other process to synchronise with" in printed(
        module.Comparison(Path(), plan, rows, True).table()
    )
