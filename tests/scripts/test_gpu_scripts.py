"""The scripts that take the paper's comparisons to a GPU machine, at tiny size on the CPU."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from directdet.reproduce.budget import Pace

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def packed_like_voc(shapes: Path, folder: Path) -> Path:
    """The synthetic dataset in the form of the packed VOC: two tar files and two COCO files, without masks."""
    folder.mkdir()
    for split in ("train", "val"):
        content = json.loads((shapes / "annotations" / f"instances_{split}2017.json").read_text())
        with tarfile.open(folder / f"{split}.tar", "w") as archive:
            for image in content["images"]:
                archive.add(shapes / f"{split}2017" / image["file_name"], f"{split}/{image['file_name']}")
        for annotation in content["annotations"]:
            annotation.pop("segmentation")
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_the_checkout_does_without_an_installation(tmp_path):
    lines = (
        "import importlib.util, sys",
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})",
        "import gpu_evidence",
        "print(importlib.util.find_spec('directdet.train').origin)",
    )
    # -S: without site-packages, so without the package that is installed here.
    command = [sys.executable, "-S", "-c", "\n".join(lines)]
    environment = {"TMPDIR": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()) == ROOT / "src" / "directdet" / "train" / "__init__.py"


@pytest.mark.slow
def test_pack_unpack_and_run_in_slices(shapes, tmp_path, monkeypatch, capsys):
    data = packed_like_voc(shapes, tmp_path / "voc")
    printed = run("gpu_pack.py", str(data), "--out", str(tmp_path / "parts"), "--part-mib", "0.06", "--val-images", "3")
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) > 1 and len(printed.splitlines()) == len(parts)
    assert all(part.stat().st_size <= 0.06 * 2**20 for part in parts)
    there = tmp_path / "there"
    for part in parts:
        run("gpu_evidence.py", "--data", str(there), "--unpack", str(part))
    assert len(list(there.glob("train/*.jpg"))) == 12 and len(list(there.glob("val/*.jpg"))) == 3
    assert (there / "dataset.toml").is_file()
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_evidence

    # As if a step took so long that the budget is ten steps for each row, whatever this machine needs.
    monkeypatch.setattr("directdet.reproduce.budget.seconds_of_steps", lambda *_: Pace(8.0, 0.0))
    options = ["--data", str(there), "--out", str(tmp_path / "out"), "--scale", "smoke", "--device", "cpu"]
    options += ["--comparisons", "direct/table2", "--rows", "fixed", "--copy-to", str(tmp_path / "results")]
    monkeypatch.setattr(gpu_evidence, "SPARE", 0.0)
    said = []
    for slice_seconds in ("0.1", "900"):  # less than one evaluation takes anywhere, then as long as it takes
        monkeypatch.setattr(sys, "argv", ["gpu_evidence.py", *options, "--slice", slice_seconds])
        gpu_evidence.main()
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said == ["not finished: the same command continues", "everything is finished"]
    found = {path.stem for path in (tmp_path / "results").iterdir()}
    assert found == {"direct_table2"}
    for path in (tmp_path / "results").iterdir():
        content = json.loads(path.read_text())
        assert content["hardware"] and content["versions"]["torch"] and content["rows"]
