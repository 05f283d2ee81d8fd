"""A backbone, a detector and a recipe in a file outside the package: trained, exported, verified and run by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from directdet.common import plugins
from directdet.common.errors import UserError
from directdet.common.plugins import load_code, load_plugins
from directdet.common.settings import SettingError
from directdet.data.synthetic import make_synthetic
from directdet.models.backbones.builders import TABLES, add_backbone
from directdet.models.backbones.names import NAMES
from directdet.models.backbones.resnet import resnet18

OWN = Path(__file__).parent / "own" / "own_parts.py"
SHORT = (
    "size=64",
    "finetune.size=64,96",
    "eval_size=64",
    "epochs=1",
    "finetune.milestones=",
    "workers=0",
    "batch_size=3",
)


def directdet(*arguments: object, code: int = 0, **variables: str) -> str:
    """The output of a command, run in a separate process to keep this one's dictionaries unchanged."""
    environment = {key: value for key, value in os.environ.items() if key != plugins.VARIABLE} | variables
    command = [sys.executable, "-m", "directdet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("own"), 6, 3, size=(64, 96))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "run"
    settings = [word for setting in SHORT for word in ("--set", setting)]
    directdet("train", "centre_plain", "--code", OWN, "--data", data, "--out", folder, "--device", "cpu", *settings)
    return folder


@pytest.mark.slow
def test_both_phases_train_and_the_second_loads_every_part(run: Path) -> None:
    for phase in ("pretrain", "finetune"):
        assert (run / phase / "checkpoints" / "last.pt").is_file()
    rows = [json.loads(line) for line in (run / "finetune" / "log.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in rows)
    facts = json.loads((run / "finetune" / "run.json").read_text())
    assert facts["recipe"]["detector"] == "centre" and facts["init"].endswith("pretrain/checkpoints/last.pt")


@pytest.mark.slow
def test_it_is_exported_verified_and_runs_without_the_file(run: Path, data: Path, tmp_path: Path) -> None:
    said = directdet("export", run, "--code", OWN, "--out", tmp_path / "artefact", "--data", data)
    assert "PASS" in said and "6 batch normalisations folded" in said
    meta = json.loads((tmp_path / "artefact" / "meta.json").read_text())
    assert meta["model_config"]["detector"] == "centre" and meta["unfolded_batchnorms"] == []
    directdet("infer", tmp_path / "artefact", data / "val2017", "--out", tmp_path / "found", "--no-pictures")
    assert (tmp_path / "found" / "detections.json").is_file()


@pytest.mark.slow
def test_a_checkpoint_says_what_it_lacks_and_processes_inherit_it(run: Path, data: Path, tmp_path: Path) -> None:
    said = directdet("eval", run, "--data", data, code=1)
    assert "best.pt: model_config: detector: 'centre' is not one of rcnn" in said and "--code FILE" in said
    directdet("eval", run, "--data", data, "--code", OWN)
    directdet("eval", run, "--data", data, **{plugins.VARIABLE: str(OWN)})
    timing = ("--iterations", 1, "--warmup", 0, "--ap-images", 0, "--device", "cpu")
    assert "failed" not in directdet("benchmark", run, "--data", data, "--code", OWN, *timing)


def test_a_recipe_of_ones_own_is_listed(tmp_path: Path) -> None:
    assert "centre_plain" in directdet("recipes", "--code", OWN) and "centre_plain" not in directdet("recipes")
    said = directdet("recipes", "centre_plane", "--code", OWN, code=2)
    assert "recipe 'centre_plane': unknown; did you mean 'centre_plain'" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_of_the_kind\n", r"mine\.py: line 1: ModuleNotFoundError: No module named"),
        ("x = 1\ny = x / 0\n", r"mine\.py: line 2: ZeroDivisionError"),
        ("def (:\n", r"mine\.py: line 1: SyntaxError"),
        (None, "no such file; --code takes a Python file"),
    ],
)
def test_a_file_that_fails_is_told_by_its_line(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=says):
        load_code([tmp_path / "mine.py"])
    assert "directdet_code_mine" not in sys.modules


def test_a_file_runs_once_and_others_of_its_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "")
    counted = "import builtins\nbuiltins.directdet_count = getattr(builtins, 'directdet_count', 0) + 1\n"
    import builtins

    monkeypatch.setattr(builtins, "directdet_count", 0, raising=False)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "counted.py").write_text(counted)
    load_code([tmp_path / "a" / "counted.py", tmp_path / "a" / "counted.py"])
    assert builtins.directdet_count == 1
    load_code([tmp_path / "b" / "counted.py"])
    assert builtins.directdet_count == 2
    files = os.environ[plugins.VARIABLE].split(os.pathsep)
    assert files == [str((tmp_path / folder / "counted.py").resolve()) for folder in ("a", "b")]
    sys.modules.pop("directdet_code_counted")


class Point:
    name, value = "broken", "package.module"

    @staticmethod
    def load() -> None:
        raise RuntimeError("no")


def test_an_installed_plug_in_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: [Point] if group else [])
    with pytest.raises(UserError, match=r"plug-in broken \(package\.module\): RuntimeError: no"):
        load_plugins.__wrapped__()


def test_an_installed_plug_in_is_found_by_its_entry_point(tmp_path: Path) -> None:
    (tmp_path / "own_parts.py").write_text(OWN.read_text())
    about = tmp_path / "own_parts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nown = own_parts\n")
    said = directdet("recipes", "centre_plain", PYTHONPATH=str(tmp_path))
    assert "a detector of my own" in said and "centre" in said
    assert "centre_plain" in directdet("recipes", PYTHONPATH=str(tmp_path))


def test_names_are_given_once() -> None:
    assert {kind: list(table) for kind, table in TABLES.items()} == NAMES
    with pytest.raises(SettingError, match="backbone 'resnet18': this name is already taken"):
        add_backbone("resnet18", resnet18)
    with pytest.raises(SettingError, match="backbone 'timm:resnet18': this name is already taken"):
        add_backbone("timm:resnet18", resnet18)
