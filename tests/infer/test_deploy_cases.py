"""The folders of small inputs that once failed in deployment, beside the real images: each gives what its README says.

A folder without a test here fails `test_every_case_has_its_test`; all are skipped where the folders are absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from pycocotools.coco import COCO
from tiny_artefact import write_dataset
from videos import lines_of, read_video

from directdet.front import cli

_DATA = Path(os.environ.get("DIRECTDET_DATA", Path(__file__).parents[3] / "shared" / "data"))
CASES = _DATA.parent / "cases" / "deploy"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"case folders not found at {CASES}")


def infer(artefact: Path, *arguments: object) -> int:
    return cli.main(["infer", str(artefact), *map(str, arguments), "--device", "cpu", "--threads", "1"])


def infer_alone(artefact: Path, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """`directdet infer` in a process of its own, since a case may end it; arguments may be bytes."""
    command = [sys.executable, "-m", "directdet", "infer", str(artefact), *arguments, "--device", "cpu"]
    return subprocess.run(command, capture_output=True, timeout=120)


def test_every_case_has_its_test():
    tested = {name.removeprefix("test_case_") for name in globals() if name.startswith("test_case_")}
    assert tested == {path.name for path in CASES.iterdir() if path.is_dir()}


def test_case_empty_classes(artefact, tmp_path, capsys):
    for text in ("", ","):
        assert infer(artefact, CASES / "exif" / "a_plain.png", "--out", tmp_path / "out", "--classes", text) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_case_score_nan(artefact, tmp_path, capsys):
    picture = CASES / "exif" / "a_plain.png"
    for option, text in (("--score", "nan"), ("--score", "inf"), ("--score", "-1"), ("--batch", "nan")):
        assert infer(artefact, picture, "--out", tmp_path / "out", option, text) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_case_exif(artefact, tmp_path, capsys):
    """The photo as a viewer shows it: size, overlay and detections of the upright picture; told, and settable."""
    photo, plain = CASES / "exif" / "f_exif6.jpg", cv2.imread(str(CASES / "exif" / "a_plain.png"))
    assert infer(artefact, photo, "--out", tmp_path / "shown") == 0
    assert "orientation" in capsys.readouterr().err
    image = json.loads((tmp_path / "shown" / "detections.json").read_text())["images"][0]
    assert (image["height"], image["width"]) == plain.shape[:2] == (196, 181)
    drawn = cv2.imread(str(tmp_path / "shown" / photo.name), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert drawn.shape == plain.shape
    assert np.abs(drawn[180:].astype(int) - plain[180:]).mean() < 12  # below all boxes, but for what JPEG loses
    assert infer(artefact, photo, "--out", tmp_path / "stored", "--as-stored") == 0
    image = json.loads((tmp_path / "stored" / "detections.json").read_text())["images"][0]
    assert (image["height"], image["width"]) == (181, 196)


def test_case_json_not_coco(artefact, tmp_path):
    """Results of a dataset's folder of pictures have its ids, and pycocotools loads them; so it does any others."""
    dataset = write_dataset(tmp_path)
    annotations = write_annotations(tmp_path / "data", dataset)
    out = tmp_path / "out"
    assert infer(artefact, tmp_path / "data" / "val2017", "--out", out, "--score", 0, "--no-pictures") == 0
    truth = COCO(str(annotations))
    found = truth.loadRes(str(out / "detections.json"))
    assert found.getImgIds() == truth.getImgIds() and len(found.anns) == 6
    assert {one["category_id"] for one in found.anns.values()} <= set(truth.getCatIds())
    assert infer(artefact, CASES / "exif" / "a_plain.png", "--out", tmp_path / "plain") == 0
    assert len(COCO(str(tmp_path / "plain" / "detections.json")).anns) == 2


def write_annotations(folder: Path, dataset) -> Path:
    """The dataset in COCO's layout, its pictures under ids that are not their order."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    images, objects = [], []
    for record in dataset.records:
        name, number = record.path.name, 1000 - 7 * record.image_id
        (folder / "val2017" / name).write_bytes(record.path.read_bytes())
        images.append({"id": number, "file_name": name, "width": record.width, "height": record.height})
        for box, label in zip(record.boxes, record.labels, strict=True):
            x0, y0, x1, y1 = map(float, box)
            about = {"id": len(objects) + 1, "image_id": number, "category_id": dataset.category_ids[label] + 50}
            about |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            objects.append({**about, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]})
    pairs = zip(dataset.category_ids, dataset.classes, strict=True)
    categories = [{"id": number + 50, "name": name} for number, name in pairs]
    file = folder / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return file


def test_case_latin1_name(artefact, tmp_path):
    case, folder = CASES / "latin1_name", tmp_path / "names"
    folder.mkdir()
    for name in ("a.png", "z.png"):
        (folder / name).write_bytes((case / name).read_bytes())
    odd = os.fsencode(folder) + b"/caf\xe9"
    for ending in (".png", ".mp4"):
        source = case / ("a.png" if ending == ".png" else "clip.mp4")
        Path(os.fsdecode(odd + ending.encode())).write_bytes(source.read_bytes())
    done = infer_alone(artefact, folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    images = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert [os.fsencode(Path(image["file_name"]).name) for image in images] == [b"a.png", b"caf\xe9.png", b"z.png"]
    done = infer_alone(artefact, odd + b".mp4", "--out", tmp_path / "out2")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert len(lines_of(tmp_path / "out2" / "caf%E9.jsonl")) == 2 == len(read_video(tmp_path / "out2" / "caf%E9.mp4"))


def test_case_onnx_paths(exported_files):
    for file in exported_files:
        content = file.read_bytes()
        for text in (b"site-packages", os.fsencode(Path(__file__).parents[2]), os.fsencode(tempfile.gettempdir())):
            assert text not in content, (file, text)
    graph = onnx.load(exported_files[0])
    assert graph.ir_version == 8  # the oldest with operator set 18
    about = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(about["classes"]) == ["disk", "square", "triangle", "star"]
    assert json.loads(about["thresholds"])["score_threshold"] == 0.05 and json.loads(about["preprocess"])["size"]


@pytest.fixture(scope="module")
def exported_files(tmp_path_factory) -> list[Path]:
    """The files of an artefact, the graph first."""
    from export_helpers import conditioned_checkpoint

    folder = tmp_path_factory.mktemp("paths")
    conditioned_checkpoint(folder / "model.pt")
    assert cli.main(["export", str(folder / "model.pt"), "--out", str(folder / "artefact")]) == 0
    return [folder / "artefact" / "model.onnx", *sorted((folder / "artefact").glob("[!.]*"))]


def test_case_overwrites_other_original(artefact, tmp_path, capsys, monkeypatch):
    for name in ("clip.mov", "clip.mp4"):
        (tmp_path / name).write_bytes((CASES / "overwrites_other_original" / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    before = hashlib.md5((tmp_path / "clip.mp4").read_bytes()).hexdigest()
    assert infer(artefact, "clip.mov", "--out", ".") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert hashlib.md5((tmp_path / "clip.mp4").read_bytes()).hexdigest() == before


def test_case_two_streams_one_folder(artefact, tmp_path):
    """Addresses of two files, at once: two results."""
    sources = [f"file://{CASES / 'two_streams_one_folder' / name}.mp4" for name in ("base", "rot90")]
    command = [sys.executable, "-m", "directdet", "infer", str(artefact)]
    started = [subprocess.Popen([*command, source, "--out", tmp_path / "o", "--device", "cpu"]) for source in sources]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    sizes = {read_video(path)[0].shape[:2] for path in (tmp_path / "o").glob("*.mp4")}
    assert sizes == {(240, 320), (320, 240)}
    assert [len(lines_of(path)) for path in (tmp_path / "o").glob("stream-*.jsonl")] == [40, 40]


@pytest.mark.slow
def test_case_verify_near_tie(tmp_path, capsys):
    checkpoint = CASES / "verify_near_tie" / "mask8.pt"
    assert cli.main(["export", str(checkpoint), "--out", str(tmp_path / "m8"), "--size", "224,96"]) == 0
    assert "PASS" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--format", "openvino", "--precision", "bf16"], ["--precision", "int8"]], ids=str)
def test_case_int8_bf16_mask_fail(options, tmp_path, capsys):
    """The demo's trained Mask R-CNN, from a folder that `directdet demo` wrote."""
    demo = os.environ.get("DIRECTDET_DEMO")
    if demo is None:
        pytest.skip("needs a trained model: set DIRECTDET_DEMO to a folder that `directdet demo` wrote")
    arguments = [f"{demo}/run", "--out", str(tmp_path / "out"), "--data", f"{demo}/data", "--ap-images", "40"]
    assert cli.main(["export", *arguments, *options]) == 0
    assert "PASS" in capsys.readouterr().out


def test_case_video_disk_full(artefact, tmp_path):
    """On a file system of 100 kB, which only root can mount."""
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small], capture_output=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small file system here: {mount.stderr.decode().strip()}")
    try:
        done = infer_alone(artefact, CASES / "video_disk_full" / "base.mp4", "--out", small / "o")
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 1 and len(lines) == 1 and str(small) in lines[0], lines
        assert "No space left" in lines[0] or "disk full" in lines[0], lines
        kept = [line for path in (small / "o").glob("base*.jsonl") for line in lines_of(path)]
        assert [line["frame"] for line in kept] == list(range(len(kept)))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4"])
def test_case_video_vfr(name, artefact, tmp_path, capsys):
    """Twenty frames a tenth of a second apart, then twenty half a second apart."""
    assert infer(artefact, CASES / "video_vfr" / name, "--out", tmp_path) == 0
    assert "damaged" not in capsys.readouterr().err
    expected = [number / 10 for number in range(20)] + [2 + number / 2 for number in range(20)]
    assert [line["time"] for line in lines_of(tmp_path / "vfr.jsonl")] == pytest.approx(expected, abs=1e-3)
    capture, times = cv2.VideoCapture(str(tmp_path / "vfr.mp4")), []
    while capture.grab():
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    assert times == pytest.approx(expected, abs=2e-3)
