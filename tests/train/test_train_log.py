"""The log of a run: what it keeps when a run goes on, and rows that are damaged or cannot be written."""

import os

import pytest

from directdet.common.errors import UserError
from directdet.train.log import RunLog, read_log
from directdet.train.loop import Trainer
from directdet.train.run import train


def test_log_keeps_only_what_was_trained(tmp_path):
    with RunLog(tmp_path, "pretrain", None) as log:
        for step in (10, 20, 30):
            log.write("step", step, {"loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # killed while writing
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [10, 20, 30]
    with RunLog(tmp_path, "pretrain", (20, 20)) as log:
        log.write("step", 30, {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path / "log.jsonl")] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_an_evaluation_that_is_done_again_has_one_row(shapes, tiny, tmp_path, monkeypatch):
    """Killed after the row of an evaluation, before the checkpoint that knows of it."""
    save = Trainer.save

    def killed(self, name):
        if self.position.evaluated:
            raise SystemExit
        save(self, name)

    monkeypatch.setattr(Trainer, "save", killed)
    with pytest.raises(SystemExit):
        train(tiny, shapes, tmp_path / "run", phase="pretrain")
    log = tmp_path / "run" / "pretrain" / "log.jsonl"
    assert [(row["kind"], row["step"]) for row in read_log(log)] == [("step", 3), ("eval", 3)]
    monkeypatch.setattr(Trainer, "save", save)
    train(tiny, shapes, tmp_path / "run", phase="pretrain", resume=True)
    wanted = [("step", 3), ("eval", 3), ("step", 6), ("eval", 6)]
    assert [(row["kind"], row["step"]) for row in read_log(log)] == wanted


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{}", "kind: is missing"),
        ("[1]", "not a JSON object"),
        ('{"kind": "step", "st', "not JSON"),
        ('{"kind": "step", "step": "3"}', "step: '3' is not a whole number"),
        ('{"kind": "step", "step": -1}', "step: -1 is not at least 0"),
        ('{"kind": 3, "step": 1' + "0" * 400 + "}", "kind: 3 is not a word"),
        ('{"kind": "step", "step": 1' + "0" * 5000 + "}", "not JSON"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, line, says):
    log = tmp_path / "log.jsonl"
    log.write_text('{"kind": "step", "step": 1}\n' + line + '\n{"kind": "step", "step": 2}\n')
    for read in (read_log, lambda path: RunLog(path.parent, "pretrain", (2, 0))):
        with pytest.raises(UserError, match=r"log\.jsonl: line 2: .*; remove the line") as caught:
            read(log)
        assert says in str(caught.value)


def test_a_log_on_a_full_disk_is_one_line(tmp_path):
    with RunLog(tmp_path, "pretrain", None) as log:
        os.dup2(os.open("/dev/full", os.O_WRONLY), log._file.fileno())
        with pytest.raises(UserError, match=r"log.jsonl: cannot be written: No space left on device"):
            log.write("step", 10, {"loss": 1.0})
