"""check-data's report."""

import io
import json
import shutil

import pytest
from rich.console import Console

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.check_report import print_report
from directdet.data.synthetic import CATEGORY_IDS, CLASSES


def printed(report):
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=160))
    return stream.getvalue()


def test_a_sound_dataset(synthetic):
    report = check_data(synthetic, progress=False)
    train, val = report.splits
    assert not report.fatal and report.errors == () and (train.split, val.split) == ("train", "val")
    assert (train.images, val.images, train.empty_images, val.crowd) == (12, 4, 1, 1)
    assert train.objects == train.objects_with_mask == sum(train.class_counts) == sum(train.sizes.values()) > 20
    assert report.label_map == tuple(zip(range(4), CATEGORY_IDS, CLASSES, strict=True))
    assert 160 <= train.width_range[0] <= train.width_range[1] <= 200
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["fatal"] is False and content["splits"][0]["class_counts"] == list(train.class_counts)
    text = printed(report)
    assert "triangle" in text and "usable" in text and "not usable" not in text


def test_damage_and_duplicates_are_found(synthetic, tmp_path, write_image):
    root = tmp_path / "copy"
    shutil.copytree(synthetic, root)
    train, val = sorted((root / "train2017").iterdir()), sorted((root / "val2017").iterdir())
    train[1].write_bytes(train[1].read_bytes()[:-9])
    train[2].unlink()
    write_image(train[3], 50, 60)
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    shutil.copy(train[0], val[0])
    sizes = {
        item["file_name"]: item for item in json.loads((file.parent / "instances_train2017.json").read_text())["images"]
    }
    for key in ("width", "height"):
        content["images"][0][key] = sizes[train[0].name][key]
    content["annotations"] = [item for item in content["annotations"] if not isinstance(item["segmentation"], dict)]
    content["annotations"][0]["bbox"] = [-5, -5, 50, 50]
    content["annotations"][1]["bbox"] = [5, 5, 0, 0]
    file.write_text(json.dumps(content))

    report = check_data(root, progress=False)
    assert report.fatal
    damaged, held_out = report.splits
    assert [item.file for item in damaged.missing_files] == [str(train[2])]
    assert {item.file for item in damaged.broken_files} == {str(train[1]), str(train[3])}
    assert held_out.dropped_boxes == 1 and held_out.clipped_boxes >= 1
    assert report.duplicates == ((str(train[0]), str(val[0])),)
    text = printed(report)
    assert all(
        word in text for word in ("not usable", train[1].name, "truncated", "several splits", "60x50", "dropped")
    )

    quick = check_data(root, verify_images=False, progress=False)
    assert len(quick.splits[0].missing_files) == 1 and not quick.splits[0].broken_files and quick.duplicates == ()
    assert "not checked" in printed(quick)
    assert not check_data(root, ["val"], verify_images=False, progress=False).fatal


def test_classes_that_train_never_sees(synthetic, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(synthetic, root)
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = [item for item in content["annotations"] if item["category_id"] != CATEGORY_IDS[1]]
    file.write_text(json.dumps(content))
    report = check_data(root, verify_images=False, progress=False)
    assert report.untrained_classes == ("square",) and not report.fatal
    assert "square" in printed(report)

    content["categories"] = content["categories"][:1] + content["categories"][2:]
    file.write_text(json.dumps(content))
    report = check_data(root, verify_images=False, progress=False)
    assert report.fatal and "categories of 'train' and 'val' differ" in report.errors[0]
    assert "errors" in printed(report)


def test_markup_in_names_and_empty_splits(write_coco):
    root = write_coco([], categories=[{"id": 1, "name": "[red]cat[/]"}, {"id": 2, "name": "[red]cat[/]"}])
    report = check_data(root, progress=False)
    assert report.fatal and "train: no objects" in report.errors
    assert "[red]cat[/]" in printed(report) and any("have the same name" in line for line in report.warnings)


def test_unreadable_annotations_are_a_user_error(write_coco):
    with pytest.raises(UserError, match="no split 'val'"):
        check_data(write_coco(), ["val"], progress=False)


@pytest.mark.parametrize("name", ["coco-mini", "voc2007mini"])
def test_real_data_is_sound(real_data, name):
    report = check_data(real_data / name, progress=False)
    assert not report.fatal and report.duplicates == () and report.untrained_classes == ()
    counts = {"coco-mini": (1235, 1089), "voc2007mini": (234, 110)}[name]
    assert tuple(split.objects for split in report.splits) == counts
    notes = {
        "coco-mini": ["classes with fewer than 10 objects in train: 46 of 80"],
        "voc2007mini": [
            f"val is {real_data / 'voc2007mini/VOCdevkit/VOC2007/ImageSets/Main/test.txt'}, as in VOC's protocol: "
            "best.pt is chosen on it; a dataset.toml can name other lists",
            "train: no object has a mask; use a recipe without masks (faster_rcnn_...)",
            "val: no object has a mask; use a recipe without masks (faster_rcnn_...)",
            "classes with fewer than 10 objects in train: 14 of 20",
        ],
    }
    assert list(report.warnings) == notes[name] and report.doubts == ()
