"""The front door's errors: one line on stderr, and the right exit code."""

from __future__ import annotations

import importlib.metadata
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import directdet.data.check
from directdet.common.errors import Stopped, UsageProblem, UserError
from directdet.front import cli
from directdet.front.options import Minutes, Numbers, Size
from directdet.models.checkpoint import CheckpointError


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr, without the empty ones: progress bars that vanished, Ctrl-C's."""
    code = cli.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, [line for line in output.err.splitlines() if line.strip()]


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    """Exit code and the one line that stderr must hold."""
    code, output, lines = run(capsys, *arguments)
    assert output == "" and len(lines) == 1, (output, lines)
    assert lines[0].startswith("error: ")
    return code, lines[0]


def test_wrong_paths(capsys, tmp_path):
    for arguments in (
        ("check-data", tmp_path / "nowhere"),
        ("eval", "model", "--data", tmp_path / "nowhere"),
        ("benchmark", "model", "--data", tmp_path / "nowhere"),
        ("infer", "model", tmp_path / "nowhere", "--out", tmp_path / "out"),
        ("train", "demo", "--data", tmp_path / "nowhere", "--out", tmp_path / "out"),
    ):
        code, line = fails(capsys, *arguments)
        assert code == 1 and "nowhere" in line and "not found" in line
    assert not any(tmp_path.iterdir()), "something half-written was left"


def test_broken_json(capsys, tmp_path):
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.parent.mkdir()
    file.write_text('{"images": [')
    for arguments in (
        ("check-data", tmp_path),
        ("train", "demo", "--data", tmp_path, "--out", tmp_path / "out"),
        ("check-data", tmp_path, "--report", tmp_path / "report.json"),
    ):
        code, line = fails(capsys, *arguments)
        assert code == 1 and "instances_train2017.json" in line
    assert {path.name for path in tmp_path.iterdir()} == {"annotations"}


def test_a_box_of_zero_width(capsys, tmp_path):
    from directdet.data.synthetic import make_synthetic

    data = make_synthetic(tmp_path / "data", 4, 2, size=(64, 64))
    file = data / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    bad = next(a for a in content["annotations"] if not a["iscrowd"])
    bad["bbox"][2] = 0
    file.write_text(json.dumps(content))
    code, _, lines = run(capsys, "check-data", data)
    assert code == 1 and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and f"annotation {bad['id']}: " in lines[0] and "no width" in lines[0]
    assert run(capsys, "train", "demo", "--data", data, "--out", tmp_path / "run", "--dry-run")[0] == 1  # 4 < a batch
    code, output, _ = run(
        capsys, "train", "demo", "--data", data, "--out", tmp_path / "run", "--dry-run", "--set", "batch_size=2"
    )
    assert code == 0 and "1 objects left out" in " ".join(output.replace("│", " ").split())


def test_a_learning_rate_that_is_no_number(capsys, tmp_path):
    for text in ("nan", "inf"):
        code, line = fails(capsys, "landscape", "--data", tmp_path, "--out", tmp_path / "out", "--base-lr", text)
        assert code == 2 and f"'--base-lr': '{text}' is not a number" in line


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-0.1", "1.1", "1e400", "", "x"])
def test_a_score_that_is_none(capsys, artefact, tmp_path, text):
    code, line = fails(capsys, "infer", artefact, tmp_path, "--out", tmp_path / "out", "--score", text)
    assert code == 2 and "--score" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", ",", " ", "dog,", "dog,,person", "cat", "Dog"])
def test_classes_that_are_none(capsys, artefact, tiny_dataset, tmp_path, text):
    """An unset variable of the shell must not find nothing, or everything, without a word."""
    source = tmp_path / "images"
    code, line = fails(capsys, "infer", artefact, source, "--out", tmp_path / "out", "--classes", text)
    assert code == 2 and "classes" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", ",", "a,"])
def test_rows_that_are_none(capsys, tmp_path, text):
    arguments = ("reproduce", "direct/table2", "--data", tmp_path, "--out", tmp_path / "out", "--rows", text)
    code, line = fails(capsys, *arguments)
    assert code == 2 and "'--rows'" in line


@pytest.mark.parametrize("verb", ["infer", "export", "plan", "benchmark", "eval", "reproduce", "landscape"])
def test_numbers_that_are_none(capsys, verb):
    """Every option of every verb that takes numbers, found by its type."""
    checked = 0
    cli.add_verbs(cli.directdet)
    for option in cli.directdet.commands[verb].params:
        if not isinstance(option.type, click.IntRange | click.FloatRange | Minutes | Numbers | Size):
            continue
        for text in ("nan", "inf", "-1", "1e999", "9" * 5000, ""):
            with pytest.raises(click.BadParameter, match=r"\S"):
                option.type.convert(text, option, None)
        checked += 1
    assert checked


def test_comparisons_run_in_one_process(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for verb in (("reproduce", "direct/table2"), ("landscape",)):
        code, line = fails(capsys, *verb, "--data", tmp_path, "--out", tmp_path / "out")
        assert code == 2 and "without torchrun" in line


def test_what_cannot_be_written_is_told_before_the_work(capsys, tmp_path, monkeypatch):
    from directdet.common.files import require_writable
    from directdet.data.synthetic import make_synthetic

    data, file = make_synthetic(tmp_path / "data", 3, 2), tmp_path / "file.txt"
    file.write_text("kept")
    for arguments, hint in (
        (("check-data", data, "--report", tmp_path), "is a folder"),
        (("check-data", data, "--report", file / "report.json"), "is a file, not a folder"),
        (("eval", "model", "--data", data, "--json", tmp_path), "is a folder"),
        (("check-data", file), "is a file; give the dataset's folder"),
        (("benchmark", tmp_path / "nowhere", "--data", data), "not found"),
    ):
        code, line = fails(capsys, *arguments)
        assert code == 1 and hint in line
    require_writable(tmp_path / "new" / "folder", folder=True)
    with pytest.raises(UserError, match="give a folder"):
        require_writable(file, folder=True)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="no permission to create files in"):
        require_writable(tmp_path / "new" / "report.json")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "file.txt"} and file.read_text() == "kept"


def test_dry_run_names_no_files(capsys, tmp_path):
    from directdet.data.synthetic import make_synthetic

    data = make_synthetic(tmp_path / "data", 16, 2)
    code, output, _ = run(capsys, "train", "demo", "--data", data, "--out", tmp_path / "run", "--dry-run")
    assert code == 0 and output.endswith("dry run: nothing was written\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "'train'"),
        (["chek-data", "x"], "'check-data'"),
        (["zzz"], "demo, recipes, plan, check-data"),
        (["predict", "x"], "here it is 'infer'"),
        (["val", "x"], "here it is 'eval'"),
        (["train", "--resume"], "--out"),
        (["train", "demo", "--out", "y"], "--data"),
        (["train", "--data", "x", "--out", "y"], "RECIPE"),
        (["train", "demo", "--data", "x", "--out", "y", "--device", "tpu"], "number of a GPU"),
        (["recipes", "mask_rcnn_r50_fpm"], "mask_rcnn_r50_fpn"),
        (["train", "demmo", "--data", "x", "--out", "y"], "demo"),
        (["train", "demo", "--data", "x", "--out", "y", "--set", "batchsize=3"], "batch_size"),
        (["train", "demo", "--data", "x", "--out", "y", "--set", "pretrain.epoch=3"], "epochs"),
        (["train", "demo", "--data", "x", "--out", "y", "--set", "epochs"], "key=value"),
        (["train", "demo", "--data", "x", "--outt", "y"], "--out"),
        (["train", "demo", "--data", "x"], "--out"),
        (["train", "demo", "--data", "x", "--out", "y", "--resume", "--init", "z"], "--init"),
        (["export", "x", "--out", "y", "--size", "448"], "448,448"),
        (["export", "x", "--out", "y", "--format", "onx"], "onnx"),
    ],
)
def test_wrong_usage(capsys, arguments, hint):
    code, line = fails(capsys, *arguments)
    assert code == 2 and hint in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.json: wrong; mend it"), 1, "error: a.json: wrong; mend it"),
        (UserError("two\n  lines"), 1, "error: two lines"),
        (UsageProblem("--set x: unknown"), 2, "error: --set x: unknown"),
        (CheckpointError("last.pt: broken"), 1, "error: last.pt: broken"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "error: /data/x: Permission denied"),
        (KeyboardInterrupt(), 130, "stopped"),
        (Stopped(signal.SIGINT, "at step 3", "a.pt"), 130, "stopped by Ctrl-C at step 3; saved: a.pt"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
    ],
)
def test_errors_of_the_rooms(capsys, monkeypatch, error, code, line):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(directdet.data.check, "examine_data", fail)
    assert run(capsys, "check-data", "x") == (code, "", [line])


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(2, "No such file", "x"), KeyError("y")])
def test_bugs_keep_their_traceback(monkeypatch, error):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(directdet.data.check, "examine_data", fail)
    with pytest.raises(type(error)):
        cli.main(["check-data", "x"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_in_a_real_process():
    lines = (
        "import sys, time",
        "import directdet.data.check as check",
        "from directdet.front.cli import main",
        "check.examine_data = lambda *_, **__: (print('ready', flush=True), time.sleep(60))",
        "sys.exit(main(['check-data', 'x']))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    # The newline before it comes from click: the terminal's ^C stands by itself.
    assert (process.returncode, output, errors) == (130, "", "\nstopped\n")


def test_help_and_version(capsys):
    code, output, errors = run(capsys, "--help")
    assert code == 0 and not errors
    verbs = [line.split()[0] for line in output.split("Commands:")[1].splitlines() if line.strip()]
    first = ["demo", "recipes", "plan", "check-data", "convert", "train", "self-train"]
    assert verbs == [*first, "eval", "submit", "export", "infer", "serve", "benchmark", "reproduce", "landscape"]
    assert "..." not in output.split("Commands:")[1], "a summary is cut short"
    assert run(capsys, "--version") == (0, f"directdet {importlib.metadata.version('directdet')}\n", [])


@pytest.mark.parametrize("suffix", ["json", "html", "txt"])
def test_check_data_report(capsys, tmp_path, suffix):
    from directdet.data.synthetic import make_synthetic

    data, report = make_synthetic(tmp_path / "data", 3, 2), tmp_path / f"report.{suffix}"
    code, output, errors = run(capsys, "check-data", data, "--report", report)
    assert code == 0 and not errors and "usable" in output
    text = report.read_text("utf-8")
    assert "triangle" in text
    if suffix == "json":
        assert json.loads(text)["fatal"] is False
    next(Path(data, "val2017").glob("*.jpg")).write_bytes(b"no picture")
    assert run(capsys, "check-data", data)[0] == 1


def test_report_lists_every_problem(capsys, tmp_path):
    from directdet.data.synthetic import make_synthetic

    data = make_synthetic(tmp_path / "data", 14, 2)
    for picture in Path(data, "train2017").glob("*.jpg"):
        picture.unlink()
    report = tmp_path / "report.txt"
    code, output, _ = run(capsys, "check-data", data, "--report", report)
    assert code == 1
    assert output.count("image file not found") < 14 == report.read_text("utf-8").count("image file not found")


def test_a_name_that_is_too_long_is_one_line(capsys, tmp_path):
    assert cli.main(["check-data", str(tmp_path / ("x" * 300))]) == 1
    err = capsys.readouterr().err
    assert "File name too long" in err and err.count("\n") == 1
