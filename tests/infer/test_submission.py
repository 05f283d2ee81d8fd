"""Files for the servers of COCO and VOC: read back by pycocotools and by a few lines here, they score the same."""

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_artefact import BOXES, CATEGORY_IDS, CLASSES, SCORES, write_artefact

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.formats.voc import VOC_CLASSES
from directdet.data.synthetic import make_synthetic
from directdet.front.cli import main
from directdet.infer.accuracy.evaluate import score_detections
from directdet.infer.accuracy.submission import coco_file, write_coco, write_voc
from directdet.infer.detections import Detections


def quiet(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("submission") / "data", 1, 16, (96, 128))


def made(dataset, masks: bool, seed: int = 0) -> list[tuple[int, Detections]]:
    """The objects, moved, with some that are nowhere; rounding leaves quarters of a pixel as they are."""
    rng, found = np.random.default_rng(seed), []
    for record in dataset.records:
        size = (record.height, record.width)
        moved = record.boxes + rng.integers(-12, 13, record.boxes.shape) / 4
        boxes = np.concatenate([moved, [[3.25, 4.5, 20.0, 30.75], [1.0, 2.0, 60.5, 70.25]]]).clip(
            0, [size[1], size[0]] * 2
        )
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.concatenate([record.labels, rng.integers(0, len(dataset.classes), 2)])
        order = rng.permutation(9999)[: len(boxes)] / 10000
        scores = np.round(order + 0.00005 * (record.image_id % 2), 5)
        grids = np.ones((len(boxes), 8, 8), np.float32) if masks else None
        found.append((record.image_id, Detections(boxes, scores, labels, grids, size)))
    return found


# ---- COCO


@pytest.mark.parametrize("masks", [False, True])
def test_coco_results_are_what_load_res_takes(data, tmp_path, masks):
    dataset = load_dataset(data, "val")
    found = made(dataset, masks)
    path = coco_file(tmp_path, "val", "ours")
    assert path.name == "detections_val2017_ours_results.json"
    count = write_coco(path, iter(found), dataset.category_ids)
    entries = json.loads(path.read_text())
    assert count == len(entries) == sum(len(one) for _, one in found) > 50
    truth = quiet(COCO, str(data / "annotations" / "instances_val2017.json"))
    results = quiet(truth.loadRes, str(path))
    metrics = score_detections(found, dataset)
    for kind, numbers in (("bbox", metrics.bbox), ("segm", metrics.segm)):
        if numbers is None:
            assert not masks
            continue
        evaluation = COCOeval(truth, results, kind)
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            quiet(step)
        assert evaluation.stats[:3] == pytest.approx([numbers[name] for name in ("AP", "AP50", "AP75")], abs=1e-9)
        assert 0.05 < numbers["AP"] < 0.95
    for (image_id, one), start in zip(found, np.cumsum([0, *(len(one) for _, one in found)]), strict=False):
        for row, entry in enumerate(entries[start : start + len(one)]):
            x, y, width, height = entry["bbox"]
            assert entry["image_id"] == image_id and [x, y, x + width, y + height] == one.boxes[row].tolist()
            assert entry["score"] == pytest.approx(one.scores[row], abs=1e-6)
            assert ("segmentation" in entry) == masks
            if masks:
                assert (coco_masks.decode(entry["segmentation"]).astype(bool) == one.full_masks()[row]).all()


def test_boxes_are_rounded_to_hundredths(tmp_path):
    boxes = np.array([[1 / 3, 2 / 3, 10.123456, 20.987654]], np.float32)
    one = Detections(boxes, np.array([2 / 3], np.float32), np.array([0]), None, (50, 50))
    write_coco(tmp_path / "a.json", [(7, one)], (18,))
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"image_id": 7, "category_id": 18, "bbox": [0.33, 0.67, 9.79, 20.32], "score": 0.666667}
    ]
    nothing = Detections(boxes[:0], np.zeros(0), np.zeros(0), None, (50, 50))
    assert write_coco(tmp_path / "b.json", [(7, nothing)], (18,)) == 0
    assert json.loads((tmp_path / "b.json").read_text()) == []


def test_names_of_files_are_checked(tmp_path):
    with pytest.raises(UserError, match=r"--name a/b: cannot be in a file's name; choose another"):
        coco_file(tmp_path, "test-dev", "a/b")
    with pytest.raises(UserError, match="class 'x/y': cannot be in a file's name"):
        write_voc(tmp_path, "VOC2007", "comp3", "test", [], {}, ("cat", "x/y"))
    assert not list(tmp_path.iterdir())


def coco_test_set(tmp_path: Path) -> Path:
    """COCO's test sets: pictures with ids of their own, categories, and no annotations."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "test2017").mkdir()
    rng, images = np.random.default_rng(0), []
    for number in (581929, 17, 401):
        name = f"{number:012}.jpg"
        cv2.imwrite(str(folder / "test2017" / name), rng.integers(0, 256, (192, 256, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": name, "width": 256, "height": 192, "license": 1})
    categories = [{"id": n, "name": name, "supercategory": "x"} for n, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    content = {"info": {}, "images": images, "categories": categories, "licenses": []}
    (folder / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
    return folder


def test_a_split_without_annotations_is_submitted(tmp_path, capsys):
    folder, artefact, out = coco_test_set(tmp_path), write_artefact(tmp_path / "model"), tmp_path / "out"
    command = ["submit", str(artefact), "--data", str(folder), "--to", "coco", "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    path = out / "detections_test-dev2017_model_results.json"
    assert capsys.readouterr().out.splitlines() == ["6 detections in 3 pictures", f"written: {path}"]
    entries = json.loads(path.read_text())
    assert [entry["image_id"] for entry in entries] == [581929, 581929, 17, 17, 401, 401]
    for entry, row in zip(entries, [0, 1] * 3, strict=True):
        x0, y0, x1, y1 = (2 * BOXES[row]).tolist()
        assert entry["bbox"] == [x0, y0, x1 - x0, y1 - y0] and entry["category_id"] == (1, 18)[row]
        assert entry["score"] == pytest.approx(SCORES[row], abs=1e-6)
        assert entry["segmentation"]["size"] == [192, 256]
    assert main([*command, "--name", "ours"]) == 0
    assert (out / "detections_test-dev2017_ours_results.json").read_bytes() == path.read_bytes()


def test_what_cannot_be_submitted_is_told_in_one_line(tmp_path, capsys, data):
    folder, artefact = coco_test_set(tmp_path), write_artefact(tmp_path / "model")

    def refused(says: str, *arguments: object) -> None:
        assert (
            main(["submit", str(artefact), "--out", str(tmp_path / "out"), "--device", "cpu", *map(str, arguments)])
            == 1
        )
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1 and re.search(says, lines[0]), lines
        assert not list((tmp_path / "out").glob("*"))

    refused("no VOC folder here", "--data", folder, "--to", "voc")
    refused("classes are not the 3", "--data", data, "--to", "coco", "--split", "val")
    refused("image_info_test-dev2017.json is not here", "--data", data, "--to", "coco")
    (folder / "test2017" / "000000000017.jpg").unlink()
    refused("000000000017.jpg", "--data", folder, "--to", "coco")
    file = folder / "annotations" / "image_info_test-dev2017.json"
    file.write_text(file.read_text().replace('"id": 401', '"id": 17'))
    refused("image 17: id is used twice", "--data", folder, "--to", "coco")


# ---- VOC


def parsed(folder: Path, classes: tuple[str, ...]) -> dict[str, list[tuple[str, float, list[float]]]]:
    found = {}
    for name in classes:
        lines = (folder / f"comp3_det_test_{name}.txt").read_text().splitlines()
        found[name] = [
            (picture, float(score), [float(v) for v in box]) for picture, score, *box in map(str.split, lines)
        ]
    return found


def kits_ap(rows, objects: dict[str, list[list[float]]]) -> float:
    """VOC 2007's AP of one class as its kit computes it, in pixels that begin at 1 and with both ends counted."""
    taken, hits = set(), []
    for picture, _, box in sorted(rows, key=lambda row: -row[1]):
        best, at = 0.0, None
        for number, other in enumerate(objects.get(picture, [])):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                best, at = max((best, at), (overlap, number), key=lambda pair: pair[0])
        right = best >= 0.5 and (picture, at) not in taken
        taken |= {(picture, at)} if right else set()
        hits.append(right)
    true, count = np.cumsum(hits), sum(map(len, objects.values()))
    precision, recall = true / np.arange(1, len(hits) + 1), true / count
    return sum(max(precision[recall >= t - 1e-12], default=0.0) for t in np.arange(11) / 10) / 11


def test_voc_files_score_as_our_map(data, tmp_path):
    dataset = load_dataset(data, "val")
    dataset = replace(dataset, records=[one for one in dataset.records if not one.crowd.any()])  # VOC has no crowds
    found = made(dataset, masks=False, seed=4)
    names = {record.image_id: f"{record.image_id:06}" for record in dataset.records}
    files, count = write_voc(tmp_path, "VOC2007", "comp3", "test", iter(found), names, dataset.classes)
    folder = tmp_path / "results" / "VOC2007" / "Main"
    assert sorted(files) == sorted(folder.iterdir()) and count == sum(len(one) for _, one in found)
    rows = parsed(folder, dataset.classes)
    expected = score_detections(found, dataset).per_class_voc["11point"]
    for label, name in enumerate(dataset.classes):
        objects = {
            names[record.image_id]: [
                [x0 + 1, y0 + 1, x1, y1] for x0, y0, x1, y1 in record.boxes[record.labels == label].tolist()
            ]
            for record in dataset.records
        }
        assert kits_ap(rows[name], objects) == pytest.approx(expected[label], abs=1e-9)
    assert 0.1 < np.mean(expected) < 0.99


def voc_folder(root: Path, names: list[str], annotated: bool) -> Path:
    folder = root / "VOCdevkit" / "VOC2012"
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), rng.integers(0, 256, (192, 256, 3), dtype=np.uint8))
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names[:2]) + "\n")
    if annotated:
        (folder / "ImageSets" / "Main" / "train.txt").write_text(names[2] + "\n")
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>50</xmax><ymax>60</ymax></bndbox></object>"
            for name in CLASSES
        )
        size = "<size><width>256</width><height>192</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{names[2]}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return root


def test_a_list_of_voc_without_annotations_is_submitted(tmp_path, capsys):
    root = voc_folder(tmp_path / "data", ["2008_000006", "2008_000001", "2008_000002"], annotated=True)
    artefact, out = write_artefact(tmp_path / "model"), tmp_path / "out"
    command = ["submit", str(artefact), "--data", str(root), "--to", "voc", "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    folder = out / "results" / "VOC2012" / "Main"
    assert capsys.readouterr().out.splitlines() == ["4 detections in 2 pictures", f"written: {folder}, 3 files"]
    rows = parsed(folder, CLASSES)
    assert rows["traffic light"] == []  # nothing is there, and the file is
    for name, row in (("person", 0), ("dog", 1)):
        x0, y0, x1, y1 = (2 * BOXES[row]).tolist()
        assert [picture for picture, _, _ in rows[name]] == ["2008_000006", "2008_000001"]
        assert all(box == [x0 + 1, y0 + 1, x1, y1] for _, _, box in rows[name])
        assert all(score == pytest.approx(SCORES[row]) for _, score, _ in rows[name])
    assert main([*command, "--competition", "comp4"]) == 0 and (folder / "comp4_det_test_dog.txt").is_file()
    capsys.readouterr()
    assert main([*command, "--split", "nowhere"]) == 1
    assert "no list nowhere.txt in ImageSets/Main" in capsys.readouterr().err
    shutil.rmtree(root / "VOCdevkit" / "VOC2012" / "JPEGImages")
    assert main(command) == 1 and "2008_000006.jpg" in capsys.readouterr().err


def test_a_test_list_alone_has_vocs_classes(tmp_path, capsys):
    root = voc_folder(tmp_path / "data", ["000001", "000002"], annotated=False)
    artefact = write_artefact(tmp_path / "model")
    assert main(["submit", str(artefact), "--data", str(root), "--to", "voc", "--out", str(tmp_path / "a")]) == 1
    assert "its 20 classes are not the 3" in capsys.readouterr().err
    names = (VOC_CLASSES[14], VOC_CLASSES[0], VOC_CLASSES[11])
    others = tuple(name for name in VOC_CLASSES if name not in names)
    artefact = write_artefact(tmp_path / "voc", classes=(*names, *others), ids=tuple(range(1, 21)))
    assert main(["submit", str(artefact), "--data", str(root), "--to", "voc", "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "results" / "VOC2012" / "Main"
    assert len(list(folder.iterdir())) == 20 and len(parsed(folder, VOC_CLASSES)["person"]) == 2
