"""A machine with only what requirements-deploy.txt names, no torch: it runs artefacts as a full one does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from tiny_artefact import write_artefact

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "torchvision", "onnx", "onnxscript", "matplotlib", "tensorboard")
FULL = (sys.executable,)

pytestmark = pytest.mark.slow


def needed(names: list[str]) -> dict[str, metadata.Distribution]:
    """The named distributions and what they need themselves."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            # The same module; which of the two is installed depends on the system.
            found[name] = metadata.distribution({"onnxruntime": "onnxruntime-gpu"}[name])
        requires = [line for line in found[name].requires or () if "extra ==" not in line]
        waiting += [re.match(r"[\w.-]+", line)[0] for line in requires if _applies(line)]
    return found


def _applies(requirement: str) -> bool:
    """Whether a requirement with a condition is fulfilled here: then it is installed."""
    name, _, condition = requirement.partition(";")
    try:
        metadata.distribution(re.match(r"[\w.-]+", name)[0])
    except metadata.PackageNotFoundError:
        assert condition, f"{requirement} is not installed"
        return False
    return True


def make_machine(folder: Path, names: list[str]) -> tuple[str, ...]:
    """A virtual environment that sees the project and the named distributions only; its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.check_output([python, "-I", "-c", code], text=True).strip())
    for distribution in needed(names).values():
        for part in {file.parts[0] for file in distribution.files if file.parts[0] != ".."} - {"__pycache__"}:
            target = Path(distribution.locate_file(part))
            if target.exists() and not (site / part).exists():
                (site / part).symlink_to(target)
    (site / "directdet").symlink_to(ROOT / "src" / "directdet")
    return (str(python), "-I")


def run(python: tuple[str, ...], *arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [*python, "-m", "directdet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def names() -> list[str]:
    lines = (ROOT / "requirements-deploy.txt").read_text("utf-8").splitlines()
    return [re.match(r"[\w.-]+", line)[0] for line in lines if line and not line.startswith("#")]


@pytest.fixture
def data(tmp_path, tiny_dataset) -> Path:
    """The tiny dataset in COCO's layout."""
    images, annotations = [], []
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    for record in tiny_dataset.records:
        record.path.rename(folder / "val2017" / record.path.name)
        size = {"height": record.height, "width": record.width}
        images.append({"id": record.image_id, "file_name": record.path.name, **size})
        for box, label in zip(record.boxes.tolist(), record.labels, strict=True):
            x0, y0, x1, y1 = box
            middle = (x0 + x1) / 2  # the tiny artefact's masks rise from left to right
            outline = [[middle, y0, x1, y0, x1, y1, middle, y1]]
            place = {"image_id": record.image_id, "category_id": tiny_dataset.category_ids[label], "iscrowd": 0}
            place |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "segmentation": outline}
            annotations.append({"id": len(annotations) + 1, **place})
    pairs = zip(tiny_dataset.category_ids, tiny_dataset.classes, strict=True)
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": number, "name": name} for number, name in pairs]
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_the_three_verbs_run_and_give_what_the_full_installation_gives(tmp_path, data, names, artefact):
    bare = make_machine(tmp_path / "bare", names)
    for name in ABSENT:
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is not None)"
        assert subprocess.run([*bare, "-c", code], check=False).returncode == 0, f"{name} is there: this proves nothing"
    results = []
    for number, python in enumerate((bare, FULL)):
        out = tmp_path / f"out{number}"
        run(python, "infer", artefact, data / "val2017", "--out", out / "infer", "--device", "cpu")
        run(python, "eval", artefact, "--data", data, "--json", out / "eval.json", "--device", "cpu")
        quick = ("--runtime", "onnxruntime", "--device", "cpu", "--iterations", 3, "--warmup", 1)
        run(python, "benchmark", artefact, "--data", data, "--out", out / "benchmark", *quick)
        results.append((out, read(out / "benchmark" / "benchmark.json")))
    (out, timed), (full_out, full_timed) = results
    found = read(out / "infer" / "detections.json")
    assert len(found) == 6 and all("segmentation" in entry for entry in found)  # as loadRes takes it
    assert found == read(full_out / "infer" / "detections.json")
    scores, full_scores = (read(folder / "eval.json") for folder in (out, full_out))
    assert scores["bbox"]["AP"] == pytest.approx(1) and scores["segm"]["AP"] > 0.9
    for one in (scores, full_scores):
        del one["seconds"]
    assert scores == full_scores
    cell, full_cell = (content["cells"][0] for content in (timed, full_timed))
    assert cell["metrics"]["bbox"] == full_cell["metrics"]["bbox"] == scores["bbox"]
    assert cell["detections_per_image"] == 2 and cell["provider_check"] == full_cell["provider_check"]
    page = (out / "benchmark" / "report.html").read_text("utf-8")
    assert "matplotlib is not installed" in page and page.count("<img") == 6


def test_boxes_need_no_pycocotools(tmp_path, data, names):
    boxes = write_artefact(tmp_path / "boxes", masks=False)
    bare = make_machine(tmp_path / "barer", [name for name in names if name != "pycocotools"])
    run(bare, "infer", boxes, data / "val2017", "--out", tmp_path / "infer")
    assert len(read(tmp_path / "infer" / "detections.json")) == 6
    quick = ("--runtime", "onnxruntime", "--iterations", 2, "--warmup", 1, "--device", "cpu")
    run(bare, "benchmark", boxes, "--data", data, "--out", tmp_path / "benchmark", "--ap-images", 0, *quick)
    for command in (("eval", boxes, "--data", data), ("benchmark", boxes, "--data", data, *quick)):
        done = run(bare, *command, code=1)
        assert "pip install pycocotools" in done.stderr
