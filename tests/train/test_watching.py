"""Callbacks and loggers: what they are told and when, and that none of them changes or ends a run."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_display import SHORT, words

from directdet.common.errors import MissingLibraryError, Stopped, UserError
from directdet.common.settings import SettingError
from directdet.front.cli import main
from directdet.models.checkpoint import load_checkpoint
from directdet.train.loop import Trainer
from directdet.train.run import train
from directdet.train.watch.callbacks import Callback
from directdet.train.watch.loggers import add_logger, build_loggers

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"


class Notes(Callback):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def start(self, phase):
        self.told.append(("start", phase.phase, phase.step, phase.steps, phase.evaluate_every))

    def step(self, numbers):
        self.told.append(("step", numbers.step, set(numbers.losses)))

    def evaluation(self, numbers):
        self.told.append(("evaluation", numbers.step, numbers.epoch, numbers.best, len(numbers.bbox)))

    def checkpoint(self, path, step):
        assert load_checkpoint(path)["step"] == step
        self.told.append(("checkpoint", path.name, step))

    def end(self, phase):
        self.told.append(("end", phase.outcome, phase.step))


class Broken(Callback):
    """Fails where it is told to, and meddles with what it can reach before."""

    def __init__(self, where):
        self.where, self.calls = where, 0

    def __getattribute__(self, name):
        if name not in ("start", "step", "evaluation", "checkpoint", "end"):
            return super().__getattribute__(name)

        def call(*_):
            if name != self.where:
                return
            self.calls += 1
            torch.rand(7)
            raise OSError("no network\nsecond line")

        return call


def weights(run, phase="pretrain"):
    return load_checkpoint(run / phase / "checkpoints" / "last.pt")["model"]


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def plain(shapes, tmp_path_factory, module_tiny):
    """A run that nobody watches."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(module_tiny, shapes, out, phase="pretrain", device="cpu", log=("none",))
    return out


def test_what_a_callback_is_told(shapes, tiny, tmp_path):
    notes = Notes()
    train(tiny, shapes, tmp_path / "run", device="cpu", callbacks=[notes])
    losses = {"rpn_class", "rpn_box", "class", "box", "mask"}
    begin = notes.told.index(("start", "finetune", 0, 6, 6))
    first, second = notes.told[:begin], notes.told[begin:]
    assert first[:2] == [("start", "pretrain", 0, 6, 3), ("step", 3, losses)]
    assert ("checkpoint", "last.pt", 3) in first and first[-1] == ("end", "finished", 6)
    evaluations = [one for one in first if one[0] == "evaluation"]
    assert [one[1:3] for one in evaluations] == [(3, 1), (6, 2)] and evaluations[0][3:] == (True, 12)
    assert first.index(("checkpoint", "best.pt", 3)) < first.index(evaluations[0])  # the work is safe before
    assert second[-1] == ("end", "finished", 6)


@pytest.mark.parametrize("where", ["step", "evaluation", "checkpoint", "end"])
def test_one_that_fails_is_left_out_and_changes_nothing(shapes, tiny, tmp_path, plain, capsys, where):
    broken, notes = Broken(where), Notes()
    train(tiny, shapes, tmp_path / "run", phase="pretrain", device="cpu", callbacks=[broken, notes])
    assert broken.calls == 1 and notes.told[-1] == ("end", "finished", 6)
    err = capsys.readouterr().err
    assert err == "warning: Broken failed and is left out from here on: OSError: no network\n"
    assert_same(weights(tmp_path / "run"), weights(plain))


def test_one_that_cannot_start_ends_the_run_before_its_first_step(shapes, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(UserError, match=r"^Broken: cannot start: OSError: no network$"):
        train(tiny, shapes, tmp_path / "run", device="cpu", callbacks=[Broken("start")])


def test_one_that_cannot_start_the_second_phase_does_not_end_a_long_run(shapes, tiny, tmp_path, capsys):
    class Once(Callback):
        def start(self, phase):
            if phase.phase == "finetune":
                raise RuntimeError

    train(tiny, shapes, tmp_path / "run", device="cpu", callbacks=[Once()])
    assert capsys.readouterr().err == "warning: Once failed and is left out from here on: RuntimeError\n"
    assert load_checkpoint(tmp_path / "run" / "finetune" / "checkpoints" / "last.pt")["step"] == 6


def test_a_signal_and_an_error_end_it_by_their_names(shapes, tiny, tmp_path, monkeypatch):
    step = Trainer.step
    for number, (error, outcome) in enumerate([(Stopped(signal.SIGTERM), "stopped"), (ValueError(), "failed")]):

        def stopped(self, batches, error=error):
            if self.position.step == 4:
                raise error
            return step(self, batches)

        monkeypatch.setattr(Trainer, "step", stopped)
        notes = Notes()
        with pytest.raises(type(error)):
            train(tiny, shapes, tmp_path / str(number), phase="pretrain", device="cpu", callbacks=[notes])
        assert notes.told[-1] == ("end", outcome, 4)


def test_tensorboard_is_the_default_and_has_the_log_s_numbers(shapes, tiny, tmp_path):
    train(tiny, shapes, tmp_path / "run", phase="pretrain", device="cpu")
    events = EventAccumulator(str(tmp_path / "run" / "pretrain" / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "pretrain" / "log.jsonl").read_text().splitlines()]
    for kind, tag, read in (
        ("step", "loss/step", lambda row: row["loss"]),
        ("step", "losses/mask", lambda row: row["losses"]["mask"]),
        ("eval", "bbox/AP50", lambda row: row["bbox"]["AP50"]),
        ("eval", "segm/AP", lambda row: row["segm"]["AP"]),
    ):
        wanted = [(row["step"], pytest.approx(read(row), rel=1e-6)) for row in rows if row["kind"] == kind]
        assert [(one.step, one.value) for one in events.Scalars(tag)] == wanted and wanted, tag


def test_none_writes_no_events(plain):
    assert (plain / "pretrain" / "log.jsonl").is_file() and not (plain / "pretrain" / "tensorboard").exists()


def test_a_file_of_the_user_s(shapes, tmp_path):
    """The one in docs/extending.md, through the command line; a run that goes on needs the file, and not the name."""
    code, run = tmp_path / "mine.py", tmp_path / "run"
    code.write_text(re.search(r'title="my_log.py"\n(.*?)^```', EXTENDING.read_text(), re.M | re.S)[1])
    command = [sys.executable, "-m", "directdet", *words(shapes, run, *SHORT), "--device", "cpu"]
    command += ["--code", str(code), "--log", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (run / "pretrain" / "mine.txt").read_text() == "12 0.0\n24 0.0\n"
    resume = [sys.executable, "-m", "directdet", "train", "--resume", str(run), "--device", "cpu"]
    done = subprocess.run(resume, capture_output=True, text=True, timeout=240)
    assert (
        done.returncode == 2 and done.stderr.startswith("error: --log mine: unknown") and done.stderr.count("\n") == 1
    )
    assert "--code FILE" in done.stderr
    assert subprocess.run([*resume, "--code", str(code)], capture_output=True, timeout=240).returncode == 0


def test_names_that_are_wrong(capsys, shapes, tmp_path, monkeypatch):
    assert build_loggers(["none"]) == []
    with pytest.raises(SettingError, match=r"--log wand: unknown; did you mean 'wandb'\?"):
        build_loggers(["wand"])
    with pytest.raises(SettingError, match="'wandb': is taken"):
        add_logger("wandb", Callback)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            MissingLibraryError, match=rf"^--log {name}: {name} cannot be imported .*directdet\[{name}\]"
        ):
            build_loggers([name])
    assert main([*words(shapes, tmp_path / "run"), "--device", "cpu", "--log", "wandb"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: --log wandb: wandb cannot be imported") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


class FakeWandb:
    """What of wandb is used, with its names of arguments."""

    def __init__(self):
        self.runs, self.rows, self.metrics, self.ended = [], [], [], []

    def init(self, *, project, group, name, id, resume, config, dir):
        json.dumps(config)
        self.runs.append({"project": project, "group": group, "name": name, "id": id, "resume": resume, "dir": dir})
        return SimpleNamespace(
            log=self.rows.append,
            define_metric=lambda name, step_metric=None: self.metrics.append((name, step_metric)),
            finish=lambda *, exit_code: self.ended.append(exit_code),
        )


class FakeMlflow:
    """What of MLflow is used; as there, a run's parameters are never changed."""

    def __init__(self):
        self.runs, self.params, self.rows, self.ended = [], {}, [], []

    def start_run(self, *, run_id=None, run_name=None):
        assert (run_id is None) != (run_name is None)
        self.runs.append(run_id or f"run{len(self.runs)}")
        return SimpleNamespace(info=SimpleNamespace(run_id=self.runs[-1]))

    def log_params(self, params):
        assert self.runs[-1] not in self.params
        self.params[self.runs[-1]] = params

    def log_metrics(self, metrics, step):
        assert all(type(value) is float for value in metrics.values())
        self.rows.append((step, metrics))

    def end_run(self, *, status):
        self.ended.append(status)


def interrupted_then_resumed(tiny, shapes, run, monkeypatch, name):
    """Stopped at step 4 of 6, and gone on with by what run.json says."""
    step = Trainer.step

    def stopped(self, batches):
        if self.position.step == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        with pytest.raises(Stopped):
            train(tiny, shapes, run, phase="pretrain", device="cpu", log=[name])
    train(tiny, shapes, run, phase="pretrain", device="cpu", resume=True)


def test_weights_and_biases_go_on_in_the_same_run(shapes, tiny, tmp_path, monkeypatch):
    """Against a fake module with wandb's signatures."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    interrupted_then_resumed(tiny, shapes, tmp_path / "run", monkeypatch, "wandb")
    first, second = fake.runs
    assert first == second and first["resume"] == "allow"
    assert (first["project"], first["group"], first["name"]) == ("directdet", "run", "run/pretrain")
    assert fake.metrics[:2] == [("step", None), ("*", "step")] and fake.ended == [1, 0]
    assert [row["step"] for row in fake.rows if "loss/step" in row] == [3, 5, 6]
    assert [row["step"] for row in fake.rows if "bbox/AP" in row] == [3, 6]


def test_mlflow_goes_on_in_the_same_run(shapes, tiny, tmp_path, monkeypatch):
    """Against a fake module with MLflow's signatures."""
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    interrupted_then_resumed(tiny, shapes, tmp_path / "run", monkeypatch, "mlflow")
    assert fake.runs == ["run0", "run0"] and fake.ended == ["KILLED", "FINISHED"]
    assert fake.params["run0"]["recipe"] == "mask_rcnn_r18_slim" and fake.params["run0"]["batch_size"] == 4
    assert [step for step, row in fake.rows if "loss/step" in row] == [3, 5, 6]
    assert [step for step, row in fake.rows if "bbox/AP" in row] == [3, 6]


def test_the_real_wandb_where_it_is_installed(shapes, tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupted_then_resumed(tiny, shapes, tmp_path / "run", monkeypatch, "wandb")
    folder = tmp_path / "run" / "pretrain"
    name = (folder / "wandb.id").read_text()
    assert len(list((folder / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))) == 2


def test_the_real_mlflow_where_it_is_installed(shapes, tiny, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    interrupted_then_resumed(tiny, shapes, tmp_path / "run", monkeypatch, "mlflow")
    found = sqlite3.connect(tmp_path / "mlflow.db")
    assert found.execute("select status from runs").fetchall() == [("FINISHED",)]
    steps = found.execute("select step from metrics where key = 'bbox/AP' order by step").fetchall()
    assert steps == [(3,), (6,)]
