"""The commands as Python functions: one with the sub-packages of their names, and one voice with the terminal."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import fields

import pytest

import directdet
from directdet.benchmark.options import BenchmarkOptions
from directdet.common.errors import UserError
from directdet.export.options import ExportOptions
from directdet.front import api
from directdet.front.cli import main
from directdet.recipes.by_name import get_recipe
from directdet.recipes.recipe import Phase
from directdet.recipes.settings import apply_settings

COMMANDS = ("train", "export", "benchmark")
# Each of these, in any order, must leave the names what they are.
ORDERS = {
    "functions first": ["from directdet import train, export, benchmark", "import directdet.train.log"],
    "modules first": ["import directdet.train.log", "from directdet import train, export, benchmark"],
    "modules under another name": ["import directdet.train.log as log", "from directdet import train"],
    "members first": ["from directdet.train.log import read_log", "import directdet", "from directdet import *"],
    "what train uses itself": ["import directdet.train.run", "from directdet import train"],
    "by importlib": ["import importlib; importlib.import_module('directdet.train.log')", "import directdet"],
    "one loaded anew": ["import importlib, directdet.train", "importlib.reload(directdet.train)"],
    "the package loaded anew": ["import importlib, directdet", "importlib.reload(directdet)"],
}
CHECK = """
import sys, types, directdet, directdet.train.log
for name in ("train", "export", "benchmark"):
    one = getattr(directdet, name)
    assert callable(one) and isinstance(one, types.ModuleType) and one is sys.modules["directdet." + name]
assert directdet.train.log is sys.modules["directdet.train.log"]
from directdet.train import log
from directdet.train.log import read_log
assert log.read_log is read_log is directdet.train.log.read_log
from directdet import train
try:
    train("demoo", data="nowhere", out="nowhere")
except directdet.UserError as error:
    assert "did you mean 'demo'" in str(error)
else:
    raise AssertionError
"""


@pytest.mark.parametrize("lines", ORDERS.values(), ids=ORDERS)
def test_functions_and_packages_are_one_in_every_order_of_import(lines):
    subprocess.run([sys.executable, "-c", "\n".join([*lines, CHECK])], check=True)


def test_importing_the_names_loads_nothing_heavy():
    code = (
        "import sys\nfrom directdet import train, export, benchmark, UserError\nimport directdet\n"
        "assert not {'numpy', 'cv2', 'torch', 'rich', 'click'} & set(sys.modules)\n"
        "from directdet import evaluate, load_dataset\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_its_own_signature_and_is_pickled_by_name(name):
    command = getattr(directdet, name)
    assert inspect.signature(command) == inspect.signature(getattr(api, name))
    assert pickle.loads(pickle.dumps(command)) is command
    assert name in dir(directdet) and name in directdet.__all__


def test_a_command_is_the_target_of_a_process(tmp_path):
    arguments = {"data": str(tmp_path / "nowhere"), "out": str(tmp_path / "run"), "dry_run": True}
    process = multiprocessing.get_context("spawn").Process(target=directdet.train, args=("demo",), kwargs=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 1  # its UserError, not a failure to start


def test_every_option_can_be_given():
    for function, options in ((api.export, ExportOptions), (api.benchmark, BenchmarkOptions)):
        given = inspect.signature(function).parameters
        for field in fields(options):
            assert given[field.name].default == field.default, field.name
    taken = {one.name for one in fields(Phase)} & set(inspect.signature(api.train).parameters)
    assert not taken  # a setting of that name could not be given


def test_settings_are_those_of_the_command_line():
    given = {"epochs": 3, "finetune.size": (320, 448), "ema": None, "norm_weight_decay": False, "model.width": 16}
    changed = apply_settings(get_recipe("mask_rcnn_r18_slim"), api.texts(given))
    assert [phase.epochs for phase in changed.phases] == [3, 3]
    assert changed.phases[1].size == (320, 448) and changed.model["width"] == 16
    assert not changed.phases[0].norm_weight_decay and changed.phases[0].ema is None


SAME = {
    "no recipe": ([], {"data": "D", "out": "R"}, ["train", "--data", "D", "--out", "R"], "train"),
    "no data": (["demo"], {"out": "R"}, ["train", "demo", "--out", "R"], "train"),
    "unknown recipe": (["dmo"], {"data": "D", "out": "R"}, ["train", "dmo", "--data", "D", "--out", "R"], "train"),
    "no dataset": (["demo"], {"data": "D", "out": "R"}, ["train", "demo", "--data", "D", "--out", "R"], "train"),
    "two starts": (
        ["demo"],
        {"data": "D", "out": "R", "init": "random", "resume": True},
        ["train", "demo", "--data", "D", "--out", "R", "--init", "random", "--resume"],
        "train",
    ),
    "a setting": (
        ["demo"],
        {"data": "D", "out": "R", "epoch": 3},
        ["train", "demo", "--data", "D", "--out", "R", "--set", "epoch=3"],
        "train",
    ),
    "nothing to resume": ([], {"out": "R", "resume": True}, ["train", "--resume", "R"], "train"),
    "no model": (["M"], {"data": "D"}, ["eval", "M", "--data", "D"], "evaluate"),
    "a format": (["M", "A"], {"format": "onx"}, ["export", "M", "--out", "A", "--format", "onx"], "export"),
    "no checkpoint": (["M", "A"], {}, ["export", "M", "--out", "A"], "export"),
    "int8": (["M", "A"], {"precision": "int8"}, ["export", "M", "--out", "A", "--precision", "int8"], "export"),
    "no model to time": ([["M"]], {"data": "D"}, ["benchmark", "M", "--data", "D"], "benchmark"),
}


@pytest.mark.parametrize("arguments,settings,words,name", SAME.values(), ids=SAME)
def test_errors_are_the_same_sentences(arguments, settings, words, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        getattr(directdet, name)(*arguments, **settings)
    code = main(words)
    assert code == caught.value.exit_code
    printed = capsys.readouterr().err.strip().removeprefix("error: ")
    assert printed.partition(" (see directdet")[0] == str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu", -1])
def test_a_device_that_is_none(device, tmp_path):
    with pytest.raises(UserError, match=r"device: .* is none; give auto, cpu, cuda, or the number of a GPU"):
        directdet.train("demo", data=tmp_path, out=tmp_path / "run", device=device)


@pytest.mark.slow
def test_the_whole_chain_in_python(shapes, tmp_path, capsys):
    from test_run_report import FEW, MODEL

    settings = {f"model.{name}": value for name, value in {**MODEL, **FEW}.items()}
    settings |= {"batch_size": 4, "epochs": 1, "workers": 0, "eval_every": 1, "eval_size": (64, 64)}
    settings |= {"pretrain.size": (64, 64), "finetune.size": (64, 96)}
    name = "mask_rcnn_r18_slim"
    plan = directdet.train(name, data=shapes, out=tmp_path / "run", device="cpu", dry_run=True, **settings)
    assert plan.best is None and not (tmp_path / "run").exists()
    run = directdet.train(name, data=shapes, out=tmp_path / "run", device="cpu", **settings)
    assert run.best == tmp_path / "run" / "finetune" / "checkpoints" / "best.pt"
    assert run.report == tmp_path / "run" / "report.html" and run.report.is_file() and run.data == str(shapes)
    capsys.readouterr()
    again = directdet.train(out=tmp_path / "run", resume=True, device="cpu")  # at its end: nothing to do
    assert [phase["name"] for phase in again.phases] == ["pretrain", "finetune"] and again.report is None

    shown = []
    found = directdet.evaluate(run.out, data=shapes, device="cpu", report=tmp_path / "page", show=shown.append)
    assert shown == [found.metrics] and found.report == tmp_path / "page" / "report.html"
    assert run.metrics is not None and found.model["recipe"] == name
    assert main(["eval", str(run.out), "--data", str(shapes), "--device", "cpu"]) == 0
    assert f"{100 * found.metrics.voc['mAP_area']:.1f}" in capsys.readouterr().out

    steps = []
    made = directdet.export(run.out, tmp_path / "artefact", data=shapes, say=steps.append)
    assert made.verification.passed and made.artefact == tmp_path / "artefact" and steps
    timed = directdet.benchmark(
        made.artefact, data=shapes, out=tmp_path / "timing", quick=True, runtimes=["onnxruntime"]
    )
    assert len(timed.good) == 1 and (tmp_path / "timing" / "report.html").is_file()
