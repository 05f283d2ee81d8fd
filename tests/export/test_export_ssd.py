"""A slim SSD300 from its training run to an artefact, and through every verb that takes one: nothing pads or rounds."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from directdet.data.dataset import load_dataset
from directdet.data.pixels.format import MEAN
from directdet.data.synthetic import make_synthetic
from directdet.export.onnx_graph import FORBIDDEN, count_operators
from directdet.export.run import export
from directdet.export.tensorrt import build_engine
from directdet.export.verification.verify import verification_pictures, verify
from directdet.front import cli
from directdet.infer.accuracy.analysis import analyse
from directdet.infer.accuracy.evaluate import detect
from directdet.infer.predict.sources import read_for_detector
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.recipes.by_name import get_recipe
from directdet.train.run import train

pytestmark = pytest.mark.slow  # a run, exports and verifications


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """12 train and 4 val pictures of 96x160, far from square."""
    return make_synthetic(tmp_path_factory.mktemp("data"), images_train=12, images_val=4, size=(96, 160))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A run folder of 8 channels, trained until a blank picture is not full of equal objects, of which NMS may keep
    these or those."""
    torch.set_num_threads(1)
    changes = {"batch_size": 4, "base_batch": 4, "base_lr": 0.02, "iterations": 60, "milestones": (48,), "workers": 0}
    recipe = get_recipe("ssd300_resnet18").with_phase("scratch", **changes, eval_every=1_000_000)
    out = tmp_path_factory.mktemp("run") / "run"
    train(replace(recipe, model={**recipe.model, "width": 8}), data, out, device="cpu")
    return out


@pytest.fixture(scope="module")
def result(run):
    return export(run, run.parent / "artefact")


@pytest.fixture(scope="module")
def artefact(result) -> Path:
    return result.artefact


@pytest.fixture(scope="module")
def truth(run, data, tmp_path_factory) -> Path:
    """The val pictures with what the run finds there as their objects, some of it moved: its AP is neither 0 nor 1, and
    depends on every score and on every tenth of an IoU."""
    folder = tmp_path_factory.mktemp("truth")
    content = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    detector, rng, annotations = load(run, device="cpu"), np.random.default_rng(0), []
    for image in content["images"]:
        found = detector(read_for_detector(data / "val2017" / image["file_name"]))
        for row in np.sort(rng.permutation(len(found))[:40]):
            moved = found.boxes[row] + rng.normal(0, 1, 4) * rng.choice([0.0, 1.0, 3.0])
            x1, y1, x2, y2 = np.clip(moved, 0, [image["width"], image["height"]] * 2).tolist()
            if min(x2 - x1, y2 - y1) > 2:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                category = detector.category_ids[found.labels[row]]
                about = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
                annotations.append({**about, **box})
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps({**content, "annotations": annotations}))
    (folder / "val2017").symlink_to(data / "val2017")
    return folder


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr."""
    code = cli.main(list(map(str, arguments)))
    output = capsys.readouterr()
    return code, output.out, [line for line in output.err.splitlines() if line.strip()]


# ---- The artefact


def test_artefact_is_the_run(result, run):
    assert result.verification.passed and all(one.matched >= 0.99 for one in result.verification.runtimes)
    assert sum(c.counted for c in result.verification.runtimes[0].comparisons) > 100
    meta = json.loads((result.artefact / "meta.json").read_text())
    assert meta["verification"]["passed"] is True
    wanted = {
        "size": [300, 300],
        "fixed": True,
        "divisor": 32,
        "mean": list(MEAN),
        "std": [1.0, 1.0, 1.0],
        "warp": True,
    }
    assert meta["preprocess"] == wanted
    assert meta["input"]["shape"] == [1, 300, 300, 3] and meta["outputs"] == ["num", "boxes", "scores", "labels"]
    assert meta["thresholds"] == {"score_threshold": 0.01, "nms": 0.45, "candidates": 400, "detections": 200}
    assert (meta["recipe"], meta["phase"]) == ("ssd300_resnet18", "scratch")
    assert meta["model_config"]["detector"] == "ssd" and meta["model_config"]["size"] == 300
    model = load(run, device="cpu").backend.model
    assert meta["folded_batchnorms"] == count_norms(model) > 20 and meta["unfolded_batchnorms"] == []


def count_norms(model: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_graph_holds_nothing_that_a_runtime_refuses(artefact):
    graph = onnx.load(artefact / "model.onnx")
    operators = count_operators(graph)
    assert not {*FORBIDDEN, "BatchNormalization"} & set(operators), operators
    assert all(domain.domain in ("", "ai.onnx") for domain in graph.opset_import)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.output}
    assert shapes == {"num": [1, 1], "boxes": [1, 200, 4], "scores": [1, 200], "labels": [1, 200]}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_find_what_the_run_finds(run, artefact, data, runtime):
    """On a canvas of 300, which no multiple of 32 is, and pictures of any ratio."""
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    pictures = verification_pictures(load_dataset(data, "train"), Preprocess((300, 300)), count=3)
    tall = cv2.rotate(pictures[0][1], cv2.ROTATE_90_CLOCKWISE)
    found = verify(load(run, device="cpu"), load(artefact, runtime, "cpu"), [*pictures, ("tall", tall)])
    assert found.passed and found.runtime == runtime
    assert all(c.counted > 20 for c in found.comparisons if c.picture != "blank")


def test_engine_is_built_without_a_gpu(artefact, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    facts = build_engine("tensorrt-rtx", artefact / "model.onnx", tmp_path / "model.engine", ("8.9",))
    assert facts.library == "tensorrt_rtx" and facts.layers > 100
    assert (tmp_path / "model.engine").stat().st_size > 100_000


# ---- The verbs


@pytest.mark.parametrize("size", ["320,320", "300,320", "288,288"])
def test_another_size_is_refused_in_one_line(run, tmp_path, capsys, size):
    code, said, lines = command(capsys, "export", run, "--out", tmp_path / "out", "--size", size)
    assert code == 2 and not said and not list(tmp_path.iterdir())
    lines = [line for line in lines if not line.startswith("data: ")]  # those of the run
    assert len(lines) == 1 and f"--size {size}: this model is made for 300,300 alone; leave --size out" in lines[0]


def test_export_of_batches_of_two_with_ap(run, data, truth, tmp_path, capsys):
    arguments = ("export", run, "--out", tmp_path / "out", "--size", "300,300", "--batch", 2, "--data", truth)
    code, said, _ = command(capsys, *arguments)
    assert code == 0 and f"PASS: {tmp_path / 'out'}" in said and "box AP" in said
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    record = meta["verification"]
    assert record["ap_images"] == 4 and 0.1 < record["pytorch"]["ap"]["box"] < 0.9
    for one in record["runtimes"]:
        assert one["reference_ap"] == record["pytorch"]["ap"]
        assert one["ap"]["box"] == pytest.approx(one["reference_ap"]["box"], abs=one["tolerance"]["ap"])
    detector, alone = load(tmp_path / "out", device="cpu"), load(run, device="cpu")
    dataset = load_dataset(truth, "val")
    best = analyse(detect(detector, dataset, dataset.records), dataset).overall.suggestion
    assert meta["suggested_score"] == {**best, "images": 4} and detector.usual_score == best["score"]
    assert f"Keep scores of at least {best['score']:g} for" in (tmp_path / "out" / "README.md").read_text()
    pictures = [read_for_detector(record.path) for record in load_dataset(data, "val").records[:2]]
    pictures[1] = cv2.rotate(pictures[1], cv2.ROTATE_90_CLOCKWISE)
    for picture, found in zip(pictures, detector.detect_batch(pictures), strict=True):
        wanted = alone(picture)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes[:10], wanted.boxes[:10], atol=0.05)


def test_ap_of_the_artefact_is_that_of_the_run(run, artefact, truth, tmp_path, capsys):
    found = {}
    for name, model in (("run", run), ("artefact", artefact)):
        file = tmp_path / f"{name}.json"
        code, said, _ = command(capsys, "eval", model, "--data", truth, "--device", "cpu", "--json", file)
        assert code == 0 and "VOC mAP@.5: 11-point" in said
        found[name] = json.loads(file.read_text())
        assert found[name]["n_images"] == 4 and found[name]["segm"] is None
    ours, theirs = found["run"], found["artefact"]
    assert 0.1 < ours["bbox"]["AP"] < 0.9 and 0.1 < ours["voc"]["mAP_11point"] < 1
    for key in ("bbox", "voc"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-3)


def test_infer_command_writes_pictures(run, artefact, data, tmp_path, capsys):
    found = {}
    for name, model in (("run", run), ("artefact", artefact)):
        out = tmp_path / name
        arguments = ("infer", model, data / "val2017", "--out", out, "--score", "0.1", "--device", "cpu")
        code, said, _ = command(capsys, *arguments)
        assert code == 0 and "4 images, " in said
        written = json.loads(
            (out / "detections.json").read_text()
        )  # with the ids of the split whose pictures these are
        for record in load_dataset(data, "val").records:
            picture, plain = (cv2.imread(str(f / record.path.name)) for f in (out, data / "val2017"))
            assert picture.shape == plain.shape == (record.height, record.width, 3)
            assert (picture != plain).mean() > 0.01
            # Boxes are in the picture's own pixels, not in the canvas's, and reach over all of it.
            boxes = np.array([d["bbox"] for d in written if d["image_id"] == record.image_id])
            assert len(boxes) > 20 and boxes.min() >= 0
            ends = (boxes[:, :2] + boxes[:, 2:]).max(0) / [record.width, record.height]
            assert ends.max() < 1 + 1e-5 and ends.min() > 0.9
        found[name] = {d["image_id"]: d for d in reversed(written)}  # the best of each picture
    for image, best in found["run"].items():
        other = found["artefact"][image]
        assert best["category_id"] == other["category_id"] and best["score"] == pytest.approx(other["score"], abs=1e-4)
        assert best["bbox"] == pytest.approx(other["bbox"], abs=0.05)


def test_benchmark_command(run, artefact, data, tmp_path, capsys):
    few = ("--iterations", 2, "--warmup", 1, "--ap-images", 2, "--threads", 1, "--device", "cpu")
    runtimes = ("--runtime", "torch", "--runtime", "onnxruntime")
    code, _, lines = command(
        capsys, "benchmark", run, artefact, "--data", data, "--out", tmp_path / "out", *few, *runtimes
    )
    assert code == 0, lines
    cells = json.loads((tmp_path / "out" / "benchmark.json").read_text())["cells"]
    assert [cell["runtime"] for cell in cells] == ["torch", "onnxruntime"]
    for cell in cells:
        assert "error" not in cell and cell["metrics"]["n_images"] == 2
    assert cells[0]["metrics"]["bbox"] == pytest.approx(cells[1]["metrics"]["bbox"], abs=1e-3)
