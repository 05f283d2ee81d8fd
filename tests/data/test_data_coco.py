"""Reading COCO json: what is accepted, what is put right and noted, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from directdet.common.errors import UserError
from directdet.data.augment.transforms import PretrainTransform
from directdet.data.check import check_data
from directdet.data.dataset import check_same_classes, find_splits, load_dataset, read_record_image
from directdet.data.formats.rle import unpack_counts
from directdet.data.loader import Padding, make_loader
from directdet.data.masks import decode_mask
from directdet.data.sampling import Sampling

TRIANGLE = [[5, 5, 20, 5, 5, 20]]


def load(root):
    return load_dataset(root, "train")


def test_reads_boxes_labels_and_masks(write_coco):
    run_lengths = {"size": [30, 40], "counts": [100, 50, 1050]}
    root = write_coco(
        [
            {"bbox": [1, 2, 10, 20], "category_id": 9, "segmentation": TRIANGLE, "area": 77.5},
            {"bbox": [0, 0, 40, 30], "iscrowd": 1, "segmentation": run_lengths},
            {"bbox": [0.5, 0.25, 1, 1]},
        ]
    )
    dataset = load(root)
    assert (dataset.layout, dataset.split, dataset.problems) == ("coco", "train", ())
    assert (dataset.classes, dataset.category_ids) == (("cat", "dog"), (3, 9))
    (record,) = dataset.records
    assert (record.image_id, record.width, record.height) == (7, 40, 30)
    np.testing.assert_array_equal(record.boxes, np.float32([[1, 2, 11, 22], [0, 0, 40, 30], [0.5, 0.25, 1.5, 1.25]]))
    assert record.boxes.dtype == np.float32 and record.labels.dtype == np.int64
    assert record.labels.tolist() == [1, 0, 0] and record.crowd.tolist() == [False, True, False]
    assert not record.difficult.any() and record.annotation_ids == (1, 2, 3)
    assert record.areas.tolist() == [77.5, 1200, 1]
    assert record.segmentations[0][0].tolist() == TRIANGLE[0]
    assert record.segmentations[1] == run_lengths and record.segmentations[2] is None
    assert not dataset.has_masks and dataset.mask_counts() == (1, 2)
    assert read_record_image(record).shape == (30, 40, 3)


def test_boxes_are_clipped_or_dropped_and_noted(write_coco):
    root = write_coco(
        [
            {"bbox": [-5, -5, 10, 10]},
            {"bbox": [30, 20, 100, 100]},
            {"bbox": [3, 3, 0, 5]},
            {"bbox": [3, 3, 5, -5]},
            {"bbox": [40, 3, 5, 5]},
            {"bbox": [-10, 3, 10, 5]},
            {"bbox": [39, 29, 1, 1]},
            {"bbox": [39.99999, 3, 5, 5]},
            {"bbox": [3, 3, 5, 5], "segmentation": [[1, 1, 2, 2]]},
        ]
    )
    dataset = load(root)
    (record,) = dataset.records
    expected = [[0, 0, 5, 5], [30, 20, 40, 30], [39, 29, 40, 30]]
    np.testing.assert_array_equal(record.boxes[:3], np.float32(expected))
    np.testing.assert_array_equal(record.boxes[-1:], np.float32([[3, 3, 8, 8]]))  # a mask's fault costs no box
    assert record.annotation_ids[-1] == 9 and record.segmentations[-1] is None
    kinds = {problem.annotation_id: (problem.kind, problem.action) for problem in dataset.problems}
    assert kinds[1] == kinds[2] == ("clipped-box", "clipped")
    assert kinds[3] == kinds[4] == ("empty-box", "dropped")
    assert kinds[5] == kinds[6] == ("outside-box", "dropped")
    assert kinds[9] == ("bad-polygon", "mask left out, box kept")
    assert 7 not in kinds
    assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
    assert all(problem.file.endswith("instances_train2017.json") for problem in dataset.problems)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"bbox": [1, 1, 5, 5], "category_id": 4}, r"annotation 1: category_id 4 is not among the categories \(3, 9\)"),
        ({"bbox": [1, 1, 5, 5], "category_id": [3]}, r"annotation 1: category_id \[3\] is not"),
        ({"bbox": [1, 1, 5, 5], "image_id": 8}, "annotation 1: image_id 8 is not among the images"),
        ({"bbox": [1, 1, 5, 5], "id": "x"}, "id 'x' is not an integer"),
        ({}, "annotation 1: key 'bbox' is missing"),
        ({"bbox": [1, 1, 5]}, "annotation 1: bbox"),
        ({"bbox": [1, 1, 5, None]}, "annotation 1: bbox"),
        ({"bbox": [1, 1, 5, float("nan")]}, "annotation 1: bbox"),
        ({"bbox": [1, 1, 5, float("inf")]}, "annotation 1: bbox"),
        ({"bbox": [1, 1, 5, 10**400]}, "annotation 1: bbox"),
        ({"bbox": "1 1 5 5"}, "annotation 1: bbox"),
        ({"bbox": [1, 1, 5, 5], "segmentation": "x"}, "annotation 1: segmentation is neither"),
        ({"bbox": [1, 1, 5, 5], "segmentation": [["a"] * 6]}, "annotation 1: segmentation: a polygon"),
        ({"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 41], "counts": [0]}}, r"annotation 1: .* \[30, 40\]"),
        ({"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 40], "counts": [7]}}, "counts add up to 7"),
        ({"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 40], "counts": [-1, 1201]}}, "annotation 1: .*counts"),
        ({"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 40], "counts": "\x01é"}}, "annotation 1: .*counts"),
        ({"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 40], "counts": "PPPPP0"}}, "annotation 1: .*add up to 0"),
        ({"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 40], "counts": "ooo"}}, "annotation 1: .*counts"),
        (
            {"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 40], "counts": "o" * 99 + "0"}},
            "annotation 1: .*counts",
        ),
        ({"bbox": [1, 1, 5, 5], "segmentation": {"size": [30, 40], "counts": ""}}, "annotation 1: .*counts"),
        ({"bbox": [1, 1, 5, 5], "segmentation": {}}, "annotation 1: segmentation"),
        ("text", "entry 0 is not an object"),
    ],
)
def test_bad_annotations_are_refused_by_name(write_coco, annotation, message):
    root = write_coco([annotation])
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "instances_train2017.json" in str(caught.value) and "\n" not in str(caught.value)


IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [IMAGE, IMAGE]}, "image 7: id is used twice"),
        ({"images": [{**IMAGE, "id": "7"}]}, "entry 0 has no integer id"),
        ({"images": [{**IMAGE, "width": -1}]}, "image 7: width -1"),
        ({"images": [{**IMAGE, "height": 2.5}]}, "height 2.5"),
        ({"images": [{"id": 7, "width": 4, "height": 4}]}, "image 7: key 'file_name' is missing"),
        ({"images": {}}, "images: expected a list"),
        ({"images": [{**IMAGE, "file_name": "../x.jpg"}]}, "image 7: file_name: path '../x.jpg' may point outside"),
        ({"images": [{**IMAGE, "file_name": "a/../../x.jpg"}]}, "may point outside"),
        ({"images": [{**IMAGE, "file_name": "..\\x.jpg"}]}, "may point outside"),
        ({"images": [{**IMAGE, "file_name": "/etc/x.jpg"}]}, "may point outside"),
        ({"images": [{**IMAGE, "file_name": "C:\\x.jpg"}]}, "may point outside"),
        ({"images": [{**IMAGE, "file_name": ""}]}, "not a file name"),
        ({"images": [{**IMAGE, "file_name": 5}]}, "not a file name"),
        ({"categories": []}, "categories: the list is empty"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "categories: id 3 is used twice"),
        ({"categories": [{"id": 3}]}, "entry 0 has no integer id or no name"),
        ({"annotations": None}, "annotations: expected a list"),
        (
            {"annotations": [{"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2]}] * 2},
            "annotation 5: id is us",
        ),
    ],
)
def test_bad_files_are_refused_by_name(write_coco, changes, message):
    with pytest.raises(UserError, match=message):
        load(write_coco(**changes))


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff\xfe", b"[" * 100000])
def test_broken_json(write_coco, content):
    root = write_coco()
    (root / "annotations" / "instances_train2017.json").write_bytes(content)
    with pytest.raises(UserError, match=r"instances_train2017\.json: .*(JSON|COCO)"):
        load(root)


def test_compressed_run_lengths_are_unpacked_as_pycocotools_packs_them():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (30, 40), (400, 700)):
        for share in (0.0, 0.01, 0.5, 1.0):
            mask = (rng.random(shape) < share).astype(np.uint8)
            for sample in (mask, np.maximum.accumulate(mask, axis=1)):
                text = coco_mask.encode(np.asfortranarray(sample))["counts"].decode()
                flat = sample.ravel(order="F")
                edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
                expected = [0] * int(flat[0]) + np.diff(edges).tolist()
                assert unpack_counts(text) == expected


def test_empty_images_and_subfolders(write_coco):
    images = [IMAGE, {**IMAGE, "id": 8, "file_name": "sub/folder/b.png"}, {**IMAGE, "id": 9, "file_name": "sub\\c.png"}]
    dataset = load(write_coco(images=images))
    assert len(dataset) == 3 and not dataset.has_masks
    assert dataset.records[0].boxes.shape == (0, 4) and dataset.records[0].segmentations == ()
    assert dataset.records[1].path.relative_to(dataset.root) == Path("train2017/sub/folder/b.png")
    assert dataset.records[2].path.relative_to(dataset.root) == Path("train2017/sub/c.png")


def test_wrong_image_size_names_both(write_coco, write_image):
    root = write_coco([{"bbox": [1, 1, 5, 5]}])
    write_image(root / "train2017" / "a.png", 40, 30)
    with pytest.raises(UserError, match=r"a\.png: image is 30x40 pixels, its annotation says 40x30; .*EXIF"):
        read_record_image(load(root).records[0])
    write_image(root / "train2017" / "a.png", 31, 40)
    with pytest.raises(UserError, match="40x31 pixels, its annotation says 40x30; correct"):
        read_record_image(load(root).records[0])


def test_roboflow_layout_and_image_folder_alternative(write_coco):
    root = write_coco([{"bbox": [1, 1, 5, 5]}])
    content = (root / "annotations" / "instances_train2017.json").read_text()
    for folder in ("train", "valid", "test"):
        (root / "robo" / folder).mkdir(parents=True)
        (root / "robo" / folder / "_annotations.coco.json").write_text(content)
    assert find_splits(root / "robo") == ["train", "val", "test"]
    dataset = load_dataset(root / "robo", "val")
    assert dataset.layout == "roboflow" and dataset.records[0].path == root / "robo" / "valid" / "a.png"
    (root / "images").mkdir()
    (root / "train2017").rename(root / "images" / "train2017")
    assert read_record_image(load(root).records[0]).shape == (30, 40, 3)


def test_unknown_layouts_and_splits(write_coco, tmp_path):
    root = write_coco()
    assert find_splits(root) == ["train"]
    with pytest.raises(UserError, match="no split 'val' here; found: train"):
        load_dataset(root, "val")
    with pytest.raises(UserError, match="dataset folder not found"):
        find_splits(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no known dataset layout"):
        load_dataset(tmp_path / "empty", "train")


def test_splits_with_different_categories(write_coco):
    root = write_coco()
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "horse"
    (file.parent / "instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"categories of 'train' and 'val' differ .*'dog' and id 9 'horse'"):
        check_same_classes(load_dataset(root, "train"), load_dataset(root, "val"))
    check_same_classes(load_dataset(root, "train"), load_dataset(root, "train"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_mini_agrees_with_pycocotools(real_data, split, capsys):
    from pycocotools.coco import COCO

    dataset = load_dataset(real_data / "coco-mini", split)
    api = COCO(str(real_data / "coco-mini" / "annotations" / f"instances_{split}2017.json"))
    assert dataset.category_ids == tuple(sorted(api.getCatIds())) and len(dataset.classes) == 80
    assert len(dataset) == len(api.getImgIds()) and dataset.has_masks
    assert sum(len(record.boxes) for record in dataset.records) == len(api.getAnnIds())
    assert sum(len(record.boxes) == 0 for record in dataset.records) >= 1
    for record in dataset.records:
        for index, annotation_id in enumerate(record.annotation_ids):
            entry = api.anns[annotation_id]
            x, y, width, height = entry["bbox"]
            np.testing.assert_allclose(record.boxes[index], [x, y, x + width, y + height], atol=2e-3)
            assert dataset.category_ids[record.labels[index]] == entry["category_id"]
            assert record.crowd[index] == entry["iscrowd"] and record.areas[index] == np.float32(entry["area"])
            if index < 3 or entry["iscrowd"]:
                mask = decode_mask(record.segmentations[index], record.height, record.width)
                np.testing.assert_array_equal(mask, api.annToMask(entry))


def test_penn_fudan_masks_through_dataset_toml(real_data, tmp_path):
    (tmp_path / "set").symlink_to(real_data / "penn-fudan")
    (tmp_path / "dataset.toml").write_text(
        'images="set/images"\nannotations="set/instances_rle.json"\nval_fraction=0.3'
    )
    train, val = load_dataset(tmp_path, "train"), load_dataset(tmp_path, "val")
    assert len(train) == 119 and len(val) == 51 and train.has_masks
    assert not {record.path for record in train.records} & {record.path for record in val.records}
    assert sum(len(record.boxes) for record in train.records + val.records) == 423
    for record in val.records[:10]:
        for box, segmentation in zip(record.boxes, record.segmentations, strict=True):
            mask = decode_mask(segmentation, record.height, record.width)
            x, y, width, height = coco_mask.toBbox(segmentation)
            np.testing.assert_allclose(box, [x, y, x + width, y + height], atol=1)
            assert mask.sum() == coco_mask.area(segmentation)


@pytest.mark.parametrize("empty", [None, [], [[]], [[], []], "absent"])
def test_box_truth_does_not_depend_on_masks(write_coco, empty):
    boxes = [[1, 1, 5, 5], [10, 10, 20, 10]]
    entries = [{"bbox": box} if empty == "absent" else {"bbox": box, "segmentation": empty} for box in boxes]
    dataset = load(write_coco(entries))
    (record,) = dataset.records
    assert record.boxes.tolist() == [[1, 1, 6, 6], [10, 10, 30, 20]] and dataset.problems == ()
    assert record.segmentations == (None, None) and dataset.mask_counts() == (0, 2)


def test_the_first_object_without_mask_is_named(write_coco):
    whole = {"bbox": [5, 5, 15, 15], "segmentation": TRIANGLE}
    assert load(write_coco([whole])).first_without_mask() is None
    dataset = load(write_coco([whole, {"bbox": [5, 5, 9, 9], "iscrowd": 1}, {"bbox": [5, 5, 15, 15], "id": 40}]))
    assert dataset.first_without_mask() == f"annotation 40, {dataset.records[0].path}"
    with pytest.raises(UserError, match=r"1 of 2 objects have a mask \(the first without: annotation 40, .*a\.png\)"):
        make_loader(dataset, PretrainTransform(64), Sampling(1), Padding(masks=True))
    (warning,) = [line for line in check_data(dataset.root, progress=False).warnings if "have a mask" in line]
    assert "annotation 40, " in warning and "a.png" in warning
