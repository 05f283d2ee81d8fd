"""Layouts of annotation tools, each on files in that tool's own shape."""

import json

import pytest
from layout_files import boxes, write

from directdet.common.errors import UserError
from directdet.data.dataset import find_splits, load_dataset


def coco(names, box=(4, 5, 10, 8)):
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name, "width": 40, "height": 20} for i, name in enumerate(names)],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": list(box)} for i, _ in enumerate(names)],
            "categories": [{"id": 1, "name": "bolt"}],
        }
    )


@pytest.mark.parametrize(
    ("file", "image", "name"),
    [
        ("annotations/instances_default.json", "images/default/a.png", "a.png"),  # CVAT
        ("result.json", "images/a.png", "images/a.png"),  # Label Studio
        ("labels.json", "data/a.png", "a.png"),  # FiftyOne
        ("annotations.json", "JPEGImages/a.png", "JPEGImages/a.png"),  # labelme's converter
        ("train/_annotations.coco.json", "train/a.png", "a.png"),  # Roboflow
        ("annotations/instances_train2017.json", "images/train2017/a.png", "a.png"),
    ],
)
def test_coco_of_any_name(picture, file, image, name):
    root = picture(image)
    write(root / file, coco([name]))
    for source in (root, root / file):
        train = load_dataset(source, "train")
        assert boxes(train) == {"a.png": [[4, 5, 14, 13]]} and train.records[0].path.is_file()


def test_coco_files_without_plain_splits(picture):
    root = picture("images/a.png")
    write(root / "one.json", coco(["a.png"]))
    write(root / "two.json", coco(["a.png"]))
    message = r'several COCO files \(one.json, two.json\).*train = \{images = "images", annotations = "one.json"\}'
    with pytest.raises(UserError, match=message):
        find_splits(root)
    write(root / "dataset.toml", 'train = {images = "images", annotations = "one.json"}')  # as the message says
    assert len(load_dataset(root, "train")) == 1
    (root / "dataset.toml").unlink()
    (root / "two.json").unlink()
    write(root / "one.json", coco(["elsewhere.png"]))
    with pytest.raises(UserError, match=r"whose picture 'elsewhere.png' is in none of .*FOLDER_OF_PICTURES"):
        find_splits(root)


def test_two_readings_need_a_word(picture):
    root = picture("images/a.png")
    write(root / "one.json", coco(["a.png"]))
    write(root / "labels/a.txt", "0 .5 .5 .5 .5")
    write(root / "classes.txt", "nut")
    with pytest.raises(UserError, match=r'read in 2 ways: COCO.*YOLO labels.*format = "coco" or format = "yolo"'):
        find_splits(root)
    write(root / "dataset.toml", 'format = "yolo"')
    assert load_dataset(root, "train").classes == ("nut",)


def voc(name, box="<xmin>5</xmin><ymin>6</ymin><xmax>14</xmax><ymax>13</ymax>", label="bolt"):
    size = "<size><width>40</width><height>20</height><depth>3</depth></size>"
    item = f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
    return f"<annotation><filename>{name}</filename>{size}{item}</annotation>"


@pytest.mark.parametrize(
    ("xml", "image"),
    [
        ("a.xml", "a.png"),
        ("train/a.xml", "train/a.png"),
        ("Annotations/a.xml", "JPEGImages/a.png"),
        ("annotations/a.xml", "images/a.png"),
        ("Annotations/train/a.xml", "images/train/a.png"),
        ("train/annotations/a.xml", "train/images/a.png"),
    ],
)
def test_voc_in_other_folders(picture, xml, image):
    root = picture(image, str(image).replace("a.png", "unlabelled.png"))
    write(root / xml, voc("a.jpg"))  # renamed since
    train = load_dataset(root, "train")
    assert (train.layout, train.classes, boxes(train)) == ("voc", ("bolt",), {"a.png": [[4, 5, 14, 13]]})
    assert "1 pictures have no XML file and are not used" in train.notes[0]


def test_voc_faults_name_the_file(picture):
    root = picture("a.png", "b.png")
    write(root / "a.xml", voc("a.png", box="<xmin>5</xmin>"))
    write(root / "b.xml", voc("b.png"))
    with pytest.raises(UserError, match=r"a\.xml: object 1: bndbox: ymin '' is not a finite number"):
        load_dataset(root, "train")
    write(root / "a.xml", voc("c.png").replace("</annotation>", ""))
    with pytest.raises(UserError, match=r"a\.xml: not valid XML"):
        load_dataset(root, "train")


def labelme(*shapes, path="a.png"):
    return json.dumps({"version": "5.4", "shapes": shapes, "imagePath": path, "imageHeight": 20, "imageWidth": 40})


def shape(kind, points, label="bolt", group=None):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": {}}


def test_labelme(picture):
    root = picture("a.png", "b.png")
    write(
        root / "a.json",
        labelme(
            shape("rectangle", [[14, 13], [4, 5]]),
            shape("polygon", [[20, 2], [30, 2], [30, 12]], "nut"),
            shape("circle", [[10, 10], [13, 14]]),
            shape("polygon", [[1, 1], [5, 1], [5, 5]], group=3),
            shape("polygon", [[8, 1], [12, 1], [12, 6]], group=3),
            shape("line", [[1, 1], [5, 5]]),
            path="..\\..\\photos\\a.png",
        ),
    )
    train = load_dataset(root, "train")
    assert train.classes == ("bolt", "nut")
    assert boxes(train) == {"a.png": [[4, 5, 14, 13], [20, 2, 30, 12], [5, 5, 15, 15], [1, 1, 12, 6]]}
    assert [segmentation and len(segmentation) for segmentation in train.records[0].segmentations] == [None, 1, None, 2]
    assert "1 shapes are points or lines" in train.notes[0]
    write(root / "b.json", labelme(shape("rectangle", [[1, 2]]), path="b.png"))
    with pytest.raises(UserError, match=r"b\.json: shape 1: shape_type 'rectangle' with 1 points is not read"):
        load_dataset(root, "train")
    write(root / "b.json", labelme(path="c.png").replace("b.png", "c.png"))
    assert boxes(load_dataset(root, "train"))["b.png"] == []  # renamed: the picture beside it
    (root / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.json: imagePath: picture 'c\.png' not found"):
        load_dataset(root, "train")


def test_cvat(picture):
    root = picture("images/Train/a.png", "images/Validation/b.png")
    write(
        root / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><job><labels>'
        "<label><name>nut</name></label><label><name>bolt</name></label></labels></job></meta>"
        '<image id="0" name="a.png" subset="Train" width="40" height="20">'
        '<box label="bolt" xtl="4" ytl="5" xbr="14" ybr="13" z_order="0"></box>'
        '<box label="bolt" xtl="4" ytl="5" xbr="14" ybr="9" rotation="90.0"></box>'
        '<polygon label="nut" points="20.0,2.0;30.0,2.0;30.0,12.0"></polygon>'
        '<mask label="nut" rle="1, 2, 3" left="3" top="4" width="3" height="2"></mask>'
        '<points label="nut" points="1,1"></points></image>'
        '<image id="1" name="b.png" subset="Validation" width="40" height="20"></image></annotations>',
    )
    train = load_dataset(root, "train")
    assert find_splits(root) == ["train", "val"] and train.classes == ("nut", "bolt")
    expected = [[4, 5, 14, 13], [7, 2, 11, 12], [20, 2, 30, 12], [3, 4, 6, 6]]
    assert boxes(train) == {"a.png": expected} and "1 points, lines, tags and cuboids" in train.notes[0]
    from directdet.data.masks import decode_mask

    mask = decode_mask(train.records[0].segmentations[3], 20, 40)
    assert mask.sum() == 2 and mask[4, 4] == mask[4, 5] == 1
    assert boxes(load_dataset(root, "val")) == {"b.png": []}
    text = (root / "annotations.xml").read_text()
    write(root / "annotations.xml", text.replace('xbr="14" ybr="13"', 'xbr="x"'))
    with pytest.raises(UserError, match=r"annotations\.xml: image 0: box 1: xbr 'x' is not a finite number"):
        load_dataset(root, "train")


def test_cvat_picture_that_claims_to_be_huge(picture):
    """A mask is decoded to the size that the file claims."""
    root = picture("images/a.png")
    mask = '<mask label="nut" rle="1, 2, 3" left="3" top="4" width="3" height="2"></mask>'
    image = f'<image id="0" name="a.png" width="2000000" height="2000000">{mask}</image>'
    write(root / "annotations.xml", f'<?xml version="1.0"?><annotations><version>1.1</version>{image}</annotations>')
    with pytest.raises(UserError, match=r"a\.png.*2000000x2000000|2000000 x 2000000"):
        load_dataset(root, "train")


def test_label_studio(picture):
    root = picture("images/0a1b2c3d-a.png", "images/b.png")
    value = {"x": 10, "y": 25, "width": 25, "height": 40, "rotation": 0, "rectanglelabels": ["bolt"]}
    points = {"points": [[50, 10], [75, 10], [75, 60]], "polygonlabels": ["nut"]}
    results = [
        {"type": "rectanglelabels", "value": value, "original_width": 40, "original_height": 20},
        {"type": "polygonlabels", "value": points, "original_width": 40, "original_height": 20},
        {"type": "choices", "value": {"choices": ["good"]}},
        {
            "type": "rectanglelabels",
            "value": {**value, "x": 50, "y": 0, "rotation": 90},
            "original_width": 40,
            "original_height": 20,
        },
    ]
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.png"}, "annotations": [{"result": results}]},
        {"id": 2, "data": {"image": "/data/local-files/?d=photos/b.png"}, "annotations": [{"result": []}]},
        {"id": 3, "data": {"image": "s3://bucket/c.png"}, "annotations": []},
    ]
    write(root / "project-1.json", json.dumps(tasks))
    train = load_dataset(root, "train")
    expected = [[4, 5, 14, 13], [20, 2, 30, 12], [12, 0, 20, 10]]
    assert boxes(train) == {"0a1b2c3d-a.png": expected, "b.png": []} and "1 tasks have no annotation" in train.notes[0]
    results[0]["value"] = {**value, "width": "x"}
    write(root / "project-1.json", json.dumps(tasks))
    with pytest.raises(UserError, match=r"project-1\.json: task 1: result 1: x, y, width and height"):
        load_dataset(root, "train")


def test_open_images(picture):
    root = picture("train/a.png", "validation/b.png")
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    lines = [head, "a,xclick,/m/01,1,0.1,0.35,0.25,0.65,0,0,1,0,0", "gone,xclick,/m/01,1,0,1,0,1,0,0,0,0,0"]
    write(root / "oidv6-train-annotations-bbox.csv", "\r\n".join(lines))
    write(root / "validation-annotations-bbox.csv", "\n".join([head, "b,xclick,/m/02,1,0,0.5,0,1,0,0,0,0,0"]))
    write(root / "class-descriptions-boxable.csv", "/m/01,Tortoise\n/m/02,Apple\n")
    train, val = load_dataset(root, "train"), load_dataset(root, "val")
    assert boxes(train) == {"a.png": [[4, 5, 14, 13]]} and train.records[0].crowd.tolist() == [True]
    assert train.classes == val.classes == ("Apple", "Tortoise") and val.records[0].labels.tolist() == [0]
    assert "1 of 2 pictures are not there" in train.notes[0]
    write(root / "validation-annotations-bbox.csv", "\n".join([head, "b,xclick,/m/02,1,0,50,0,1,0,0,0,0,0"]))
    with pytest.raises(UserError, match=r"bbox\.csv: line 2: XMax '50' is not a share"):
        load_dataset(root, "val")


def test_imagefolder(picture):
    root = picture("train/a.png", "validation/b.png")
    line = {"file_name": "a.png", "objects": {"bbox": [[4, 5, 10, 8]], "categories": ["nut"]}}
    write(root / "train/metadata.jsonl", json.dumps(line) + "\r\n\r\n")
    write(
        root / "validation/metadata.jsonl", json.dumps({"file_name": "b.png", "objects": {"bbox": [], "category": []}})
    )
    train = load_dataset(root, "train")
    assert boxes(train) == {"a.png": [[4, 5, 14, 13]]} and train.classes == ("nut",)
    assert boxes(load_dataset(root, "val")) == {"b.png": []}
    write(root / "train/metadata.jsonl", json.dumps({**line, "objects": {"bbox": [], "categories": [1]}}))
    with pytest.raises(UserError, match=r"metadata\.jsonl: line 1: objects: 0 bbox but 1 categories"):
        load_dataset(root, "train")
    write(root / "train/metadata.jsonl", json.dumps({**line, "file_name": "../../b.png"}))
    with pytest.raises(UserError, match=r"line 1: file_name: picture '\.\./\.\./b\.png' not found"):
        load_dataset(root, "train")


def test_nothing_known_says_what_is_there(picture):
    root = picture("a.png", "b/c.png")
    write(root / "x.csv", "a,b")
    with pytest.raises(UserError, match=r"dataset layout here \(found 2 pictures, 1 \.csv\).*train = \{images"):
        find_splits(root)
