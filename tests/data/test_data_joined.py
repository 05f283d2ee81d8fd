"""Several sets joined by a dataset.toml: a COCO export, a YOLO folder and a folder of VOC's XML."""

import json
from pathlib import Path

import numpy as np
import pytest
from layout_files import write

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.dataset import check_same_classes, find_splits, load_dataset
from directdet.data.formats.write.convert import convert
from directdet.front.cli import main

SETS = """
[[sets]]
format = "coco"
folder = "export"
[[sets]]
format = "yolo"
folder = "yolo"
[[sets]]
format = "voc"
folder = "xml"
"""
SQUARE = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]
VOC = """<annotation><filename>{name}</filename><size><width>40</width><height>20</height></size>
<object><name>{label}</name><difficult>{difficult}</difficult>
<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>14</xmax><ymax>16</ymax></bndbox></object></annotation>"""


def coco(file, names, first_id=1):
    """One object a picture, in turn of car (id 3) and bus (id 8), the first with a mask; the last is a crowd."""
    images = [{"id": first_id + k, "file_name": name, "width": 40, "height": 20} for k, name in enumerate(names)]
    annotations = [
        {"id": k + 1, "image_id": first_id + k, "category_id": (3, 8)[k % 2], "bbox": [4, 2, 16, 10], "area": 160}
        for k in range(len(names))
    ]
    annotations[0]["segmentation"] = [SQUARE]
    annotations[-1]["iscrowd"] = 1
    categories = [{"id": 8, "name": "bus"}, {"id": 3, "name": "car"}]
    write(file, json.dumps({"images": images, "annotations": annotations, "categories": categories}))


@pytest.fixture
def root(picture, tmp_path):
    """export: 4 train, 2 val; yolo: 3 train, 1 valid; xml: 5 pictures without splits."""
    for split, names in (("train", "abcd"), ("val", "ef")):
        picture(*(f"export/{split}/{name}.png" for name in names))
        coco(tmp_path / f"export/annotations/{split}.json", [f"{name}.png" for name in names])
    for split, names in (("train", ("1", "2", "a")), ("valid", ("4",))):
        picture(*(f"yolo/{split}/images/{name}.png" for name in names))
        for name in names:
            write(tmp_path / f"yolo/{split}/labels/{name}.txt", "0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.5 0.5\n")
    write(tmp_path / "yolo/data.yaml", "train: train/images\nval: valid/images\nnames: [lorry, car]")
    for number in range(5):
        picture(f"xml/{number}.png")
        content = VOC.format(name=f"{number}.png", label=("bus", "van")[number % 2], difficult=int(number == 4))
        write(tmp_path / f"xml/{number}.xml", content)
    return tmp_path


def toml(root, content):
    write(root / "dataset.toml", content)
    return root


def places(dataset):
    return [str(record.path.relative_to(dataset.root)) for record in dataset.records]


def found(dataset):
    """Each picture's objects: (class, box, difficult, crowd, whether it has a mask)."""
    return {
        str(record.path.relative_to(dataset.root)): [
            (dataset.classes[label], box, bool(difficult), bool(crowd), mask is not None)
            for label, box, difficult, crowd, mask in zip(
                record.labels,
                np.round(record.boxes, 3).tolist(),
                record.difficult,
                record.crowd,
                record.segmentations,
                strict=True,
            )
        ]
        for record in dataset.records
    }


def test_splits_are_joined_and_classes_are_the_same_by_name(root):
    toml(root, SETS)
    assert find_splits(root) == ["train", "val"]
    train, val = load_dataset(root, "train"), load_dataset(root, "val")
    # Those of the first set, by its ids, then what the second and the third add.
    assert train.classes == val.classes == ("car", "bus", "lorry", "van")
    assert train.category_ids == val.category_ids == (1, 2, 3, 4)
    assert (train.layout, train.root, train.split) == ("toml", root, "train")
    assert places(train)[:5] == ["export/train/a.png", "export/train/b.png", "export/train/c.png", "export/train/d.png",
                                 "yolo/train/images/1.png"]  # fmt: skip
    assert len(train) == 4 + 3 + 5 and places(val) == [
        "export/val/e.png",
        "export/val/f.png",
        "yolo/valid/images/4.png",
    ]
    objects = found(train)
    square = [4.0, 2.0, 20.0, 12.0]
    assert objects["export/train/a.png"] == [("car", square, False, False, True)]
    assert objects["export/train/d.png"] == [("bus", square, False, True, False)]
    assert objects["yolo/train/images/a.png"] == [
        ("lorry", [15.0, 5.0, 25.0, 15.0], False, False, False),
        ("car", [0.0, 5.0, 20.0, 15.0], False, False, False),
    ]
    assert objects["xml/1.png"] == [("van", [2.0, 2.0, 14.0, 16.0], False, False, False)]
    assert objects["xml/4.png"] == [("bus", [2.0, 2.0, 14.0, 16.0], True, False, False)]
    for dataset in (train, val):
        assert len({record.image_id for record in dataset.records}) == len(dataset)
    notes = "\n".join(train.notes)
    assert "train: pictures of 3 joined sets: export 4, yolo 3, xml 5" in notes
    assert "train: image ids are 1 to 12, as the joined sets share some of theirs" in notes
    lacking = "export lacks lorry, van; yolo lacks bus, van; xml lacks car, lorry"
    assert f"classes that a set lacks are background in its pictures: {lacking}" in notes
    assert val.notes[0] == "val: pictures of 3 joined sets: export 2, yolo 1, xml 0"


def test_vocs_folders_and_lists_can_be_joined(root):
    """A folder of VOC's kind has all of VOC's classes; keep_classes says which are meant."""
    for name in ("000005", "000007"):
        write(root / f"VOC2007/Annotations/{name}.xml", VOC.format(name=f"{name}.png", label="car", difficult=0))
        (root / "VOC2007/JPEGImages").mkdir(exist_ok=True)
        (root / f"VOC2007/JPEGImages/{name}.png").write_bytes((root / "xml/0.png").read_bytes())
    write(root / "VOC2007/ImageSets/Main/extra.txt", "000005\n000007\n")
    lists = '[[sets]]\nvoc = ["VOC2007/extra"]\nsplit = "val"\n'
    val = load_dataset(toml(root, SETS + lists), "val")
    assert places(val)[-2:] == ["VOC2007/JPEGImages/000005.png", "VOC2007/JPEGImages/000007.png"]
    assert "VOC2007/extra 2" in val.notes[0] and len(val.classes) == 2 + 2 + 18
    val = load_dataset(toml(root, 'keep_classes = ["car", "bus"]\n' + SETS + lists), "val")
    assert val.classes == ("car", "bus") and found(val)["VOC2007/JPEGImages/000007.png"][0][0] == "car"


def test_ids_that_are_unique_stay(root):
    coco(root / "other.json", ["1.png", "2.png"], first_id=100)
    toml(root, 'sets = [{format = "coco", folder = "export"}, {images = "xml", annotations = "other.json"}]')
    train = load_dataset(root, "train")
    assert [record.image_id for record in train.records] == [1, 2, 3, 4, 100, 101]
    assert (train.classes, train.category_ids) == (("car", "bus"), (3, 8))
    assert [record.annotation_ids for record in train.records] == [(1,), (2,), (3,), (4,), (1,), (2,)]


def test_one_rule_divides_sets_without_splits(root):
    coco(root / "other.json", [f"{name}.png" for name in "abcd"])
    sets = '[[sets]]\nimages = "export/train"\nannotations = "other.json"\n[[sets]]\nformat = "voc"\nfolder = "xml"\n'
    toml(root, "val_fraction = 0.34\nseed = 3\n" + sets)
    train, val = load_dataset(root, "train"), load_dataset(root, "val")
    assert len(val) == 3 and len(train) == 6 and not set(places(train)) & set(places(val))
    assert found(load_dataset(root, "val")) == found(val)
    assert train.classes == val.classes == ("car", "bus", "van")
    seen = []
    for fold in range(3):
        toml(root, f"folds = 3\nfold = {fold}\n" + sets)
        part = places(load_dataset(root, "val"))
        assert len(part) == 3 and not set(part) & set(places(load_dataset(root, "train")))
        seen += part
    assert sorted(seen) == sorted(places(train) + places(val))
    write(root / "val.txt", "a.png\nxml/3.png\n")
    toml(root, 'val_list = "val.txt"\n' + sets)
    assert places(load_dataset(root, "val")) == ["export/train/a.png", "xml/3.png"]
    toml(root, 'val_count = 1\ngroup = "folder"\n' + sets)
    train, val = load_dataset(root, "train"), load_dataset(root, "val")
    assert {len(train), len(val)} == {4, 5} and len({record.path.parent for record in val.records}) == 1


def test_where_a_set_goes_can_be_said(root):
    def splits(role, above="val_count = 2\n"):
        sets = SETS.replace('folder = "yolo"', f'folder = "yolo"\nsplit = "{role}"').replace(
            'folder = "export"', 'folder = "export"\nsplit = "own"'
        )
        toml(root, above + sets)
        return {split: places(load_dataset(root, split)) for split in find_splits(root)}

    def of(one, places):
        return sum(place.startswith(one) for place in places)

    own = splits("own")
    assert [of("xml", own["train"]), of("xml", own["val"])] == [3, 2]
    assert [of("yolo", own["train"]), of("yolo", own["val"])] == [3, 1]
    for role in ("train", "val", "test"):
        found = splits(role)
        assert of("yolo", found[role]) == 4 and sum(of("yolo", places) for places in found.values()) == 4
    assert find_splits(root) == ["train", "val", "test"]
    divided = splits("divide", "val_count = 4\n")
    assert of("yolo", divided["train"]) + of("yolo", divided["val"]) == 4 and len(divided["val"]) == 4 + 2
    assert splits("val", "")["val"][2:] == own_places(root, "yolo")


def own_places(root, name):
    return sorted(str(path.relative_to(root)) for path in (root / name).rglob("*.png"))


def test_a_set_may_be_divided_alone(root):
    toml(root, SETS + "val_count = 2\n")  # belongs to the last table
    assert len(load_dataset(root, "val")) == 2 + 1 + 2


@pytest.mark.parametrize("linked", ["folder", "pictures"])
def test_a_picture_of_several_sets_is_told_and_never_on_both_sides(root, linked):
    coco(root / "all.json", [f"{number}.png" for number in range(5)])
    if linked == "folder":
        (root / "link").symlink_to(root / "xml")
    else:  # as convert --link makes them
        (root / "link").mkdir()
        for number in range(5):
            (root / f"link/{number}.png").symlink_to(root / f"xml/{number}.png")
    sets = '[[sets]]\nformat = "voc"\nfolder = "xml"\n[[sets]]\nimages = "link"\nannotations = "all.json"\n'
    train = load_dataset(toml(root, sets), "train")
    note = next(note for note in train.notes if "in several sets" in note)
    assert note.startswith("train: 5 pictures are in several sets (the first: ") and "in xml and all.json" in note
    for seed in range(4):
        toml(root, f"val_count = 2\nseed = {seed}\n" + sets)
        sides = [[record.path.name for record in load_dataset(root, split).records] for split in ("train", "val")]
        assert not set(sides[0]) & set(sides[1]) and [len(side) for side in sides] == [6, 4]


def test_a_picture_that_another_set_keeps_on_one_side_stays_there(root):
    coco(root / "kept.json", ["0.png", "1.png"])
    coco(root / "tested.json", ["2.png"])
    sets = '[[sets]]\nformat = "voc"\nfolder = "xml"\n'
    for name, split in (("kept", "train"), ("tested", "val")):
        sets += f'[[sets]]\nimages = "xml"\nannotations = "{name}.json"\nsplit = "{split}"\n'
    for seed in range(6):
        toml(root, f"val_count = 2\nseed = {seed}\n" + sets)
        train, val = ([record.path.name for record in load_dataset(root, split).records] for split in ("train", "val"))
        assert not set(train) & set(val) and len(train) + len(val) == 5 + 3
        assert train.count("0.png") == train.count("1.png") == val.count("2.png") == 2


def test_no_group_is_on_both_sides(picture, tmp_path):
    for one in ("first", "second"):
        clips = [(clip, frame) for clip in range(4) for frame in range(clip + 1)]
        picture(*(f"{one}/clip{clip}/{frame}.png" for clip, frame in clips))
        coco(tmp_path / f"{one}.json", [f"clip{clip}/{frame}.png" for clip, frame in clips])
    sets = "".join(f'[[sets]]\nimages = "{one}"\nannotations = "{one}.json"\n' for one in ("first", "second"))
    for seed in range(5):
        for how in ("val_fraction = 0.3", "val_count = 3", "folds = 4\nfold = 1"):
            toml(tmp_path, f'{how}\nseed = {seed}\ngroup = "folder"\n{sets}')
            sides = [load_dataset(tmp_path, split) for split in ("train", "val")]
            clips = [{record.path.parent for record in side.records} for side in sides]
            assert not clips[0] & clips[1] and len(clips[1]) == (3 if "count" in how else 2)
            assert sum(map(len, sides)) == 20


def test_one_format_of_pixels_for_all(root):
    toml(root, SETS + '[pixels]\nchannels = 3\ndtype = "uint16"\nmean = [1, 2, 3]\nstd = [1, 1, 1]')
    train = load_dataset(root, "train")
    assert {record.pixels.dtype for record in train.records} == {"uint16"}


def test_faults_of_all_sets_are_collected(root):
    content = json.loads((root / "export/annotations/train.json").read_text())
    content["annotations"][1]["category_id"] = 77
    content["annotations"][2]["bbox"] = [4, 2, 400, 10]
    write(root / "export/annotations/train.json", json.dumps(content))
    write(root / "yolo/train/labels/1.txt", "5 0.5 0.5 0.25 0.5\n0 0.5 0.5 0 0\n")
    write(root / "xml/2.xml", "<annotation>")
    toml(root, SETS)
    with pytest.raises(UserError, match=r"train\.json: annotation 2: category_id 77 .* \(and 2 more"):
        load_dataset(root, "train")
    train = load_dataset(root, "train", leave_out=True)
    assert [error.split(": ")[0].rsplit("/", 1)[1] for error in train.errors] == ["train.json", "1.txt", "2.xml"]
    assert [problem.kind for problem in train.problems] == ["clipped-box", "empty-box"]
    report = check_data(root, verify_images=False, progress=False)
    assert report.splits[0].unreadable_entries == 3 and report.fatal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sets = 3", r"sets: write a table \[\[sets\]\]"),
        ("sets = [3]", r"\[\[sets\]\] 1: 3 is not a table"),
        ("[[sets]]\nfolder = 'yolo'", r"\[\[sets\]\] 1: key 'format' is missing; add one of coco"),
        ("[[sets]]\nformat = 'yolo'\nfoldr = 'yolo'", r"\[\[sets\]\] 1: unknown key 'foldr'; did you mean 'folder'"),
        ("[[sets]]\nimages = 'xml'", r"\[\[sets\]\] 1: key 'annotations' is missing"),
        ("[[sets]]\nformat = 'yolo'\nkeep_classes = ['car']", "belongs above its first"),
        ("[[sets]]\nformat = 'yolo'\nfolder = 'gone'", r"\[\[sets\]\] 1: folder: .*gone not found"),
        ("[[sets]]\nformat = 'yolo'\nfolder = '../yolo'", r"\[\[sets\]\] 1: folder: path '../yolo' may point outside"),
        ("format = 'yolo'\n[[sets]]\nformat = 'yolo'", r"format: belongs into one of the tables \[\[sets\]\]"),
        ("train = {}\n[[sets]]\nformat = 'yolo'", "train: belongs into"),
        ("val_fractio = 0.2\n" + SETS, "unknown key 'val_fractio'; did you mean 'val_fraction'"),
        ("val_fraction = 0.2\n" + SETS, r'1: has the splits train, val already; write split = "own" to keep them'),
        ("val_fraction = 2\n[[sets]]\nformat = 'voc'\nfolder = 'xml'", "val_fraction: 2 is not a number between"),
        (SETS + "split = 'tran'", r"\[\[sets\]\] 3: split: 'tran' is not one of train, val, test, own, divide"),
        (SETS + "split = 'divide'", r"\[\[sets\]\] 3: split = \"divide\": how is not said"),
        (SETS + "classes = {vann = 'car'}", r"\[\[sets\]\] 3: classes: train has no class 'vann'; did you mean 'van'"),
        (SETS + "val_count = 5", r"\[\[sets\]\] 3: val_count: 5 does not leave images for both splits; there are 5"),
        ("val_count = 1\n[[sets]]\nformat = 'yolo'\nfolder = 'yolo'\nsplit = 'own'", "nothing to divide: no set has"),
    ],
)
def test_mistakes_are_named(root, content, message):
    toml(root, content)
    with pytest.raises(UserError, match=message):
        load_dataset(root, "val")


def test_classes_of_one_set_and_of_all(root):
    sets = SETS.replace('folder = "yolo"', 'folder = "yolo"\nclasses = {lorry = "truck", car = false}')
    train = load_dataset(toml(root, sets + '[classes]\ntruck = "vehicle"\nvan = "vehicle"\nbus = "vehicle"\n'), "train")
    assert (train.classes, train.category_ids) == (("car", "vehicle"), (1, 2))
    objects = found(train)
    assert [name for name, *_ in objects["yolo/train/images/1.png"]] == ["vehicle"]
    assert [name for name, *_ in objects["export/train/a.png"]] == ["car"]  # another set's car stays
    notes = "\n".join(train.notes)
    assert (
        "[[sets]] 2: classes: lorry -> truck\n" in notes
        and "[[sets]] 2: classes: left out: car (1 of 2 classes)" in notes
    )
    assert "[classes]: bus and truck and van -> vehicle" in notes
    toml(root, 'keep_classes = ["car", "van"]\n' + SETS)
    assert load_dataset(root, "train").category_ids == (1, 2)  # 1, 2, ... where sets with other classes are joined
    assert "in its pictures: yolo lacks car; xml lacks car" in notes  # and export has a bus, which is a vehicle


def test_names_that_differ_in_case_are_told(root):
    write(root / "yolo/data.yaml", "train: train/images\nval: valid/images\nnames: [lorry, Car]")
    notes = "\n".join(load_dataset(toml(root, SETS), "train").notes)
    assert """classes 'car' and 'Car' are two; [classes] with "Car" = "car" joins them""" in notes


def test_the_example_in_the_docs(picture, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    example = next(block for block in text.split("```toml\n")[1:] if "[[sets]]" in block).split("```")[0]
    picture("export/images/a.png", "labelled_later/train/images/b.png", "drawn/c.png")
    for file, names in (("export/x.json", ("car", "person", "traffic light")), ("drawn.json", ("truck", "boat"))):
        images = [{"id": 1, "file_name": "a.png" if "export" in file else "c.png", "width": 40, "height": 20}]
        objects = [{"id": k, "image_id": 1, "category_id": k, "bbox": [1, 1, 5, 5]} for k in range(len(names))]
        categories = [{"id": k, "name": name} for k, name in enumerate(names)]
        write(tmp_path / file, json.dumps({"images": images, "annotations": objects, "categories": categories}))
    write(tmp_path / "labelled_later/train/labels/b.txt", "0 0.5 0.5 0.25 0.5\n")
    write(tmp_path / "labelled_later/data.yaml", "train: train/images\nnames: [lorry]")
    train = load_dataset(toml(tmp_path, example), "train")
    assert train.classes == ("person", "vehicle")
    assert [[train.classes[label] for label in record.labels] for record in train.records] == [
        ["vehicle", "person"],
        ["vehicle"],
        ["vehicle"],
    ]


RENAMED = SETS + '[classes]\nlorry = "truck"\nvan = "truck"\n'


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_convert_writes_a_joined_set_out(root, tmp_path_factory, to):
    out = tmp_path_factory.mktemp("out") / to
    toml(root, 'keep_classes = ["truck", "bus", "car"]\n' + RENAMED)
    lost = convert(root, to, out)
    assert any("ids of annotations" in line for line in lost) == (to == "coco")
    for split, count in (("train", 12), ("val", 3)):
        before, after = load_dataset(root, split), load_dataset(out, split)
        assert len(before) == len(after) == count and set(after.classes) == {"truck", "bus", "car"}
        if to != "voc":
            assert before.classes == after.classes == ("truck", "bus", "car")
        check_same_classes(after, load_dataset(out, "train"))
        # a.png and 1.png are in two sets, so names change; the contents do not.
        sides = [sorted(map(repr, found(dataset).values())) for dataset in (before, after)]
        if to == "coco":
            assert sides[0] == sides[1]
        else:  # without crowd regions, masks (VOC) and marks of difficult objects (YOLO)
            kept = [
                sorted(
                    (dataset.classes[label], *box)
                    for record in dataset.records
                    for label, box, crowd in zip(
                        record.labels, np.round(record.boxes, 3).tolist(), record.crowd, strict=True
                    )
                    if not crowd
                )
                for dataset in (before, after)
            ]
            assert kept[0] == kept[1] and len(kept[0]) == {"train": 14, "val": 3}[split]


def test_convert_does_not_overwrite_a_set_that_is_joined(root, tmp_path_factory):
    convert(root / "yolo", "coco", root / "written")
    other = tmp_path_factory.mktemp("other")
    toml(other, f'[[sets]]\nformat = "coco"\nfolder = "{root / "written"}"\n')
    with pytest.raises(UserError, match="written: holds pictures of the data at"):
        convert(other, "coco", root / "written", link=True)
    assert len(load_dataset(root / "written", "train")) == 3


def test_check_data_says_what_was_joined(root, capsys):
    toml(root, RENAMED)
    assert main(["check-data", str(root)]) == 0
    said = capsys.readouterr().out
    for line in ("train: pictures of 3 joined sets: export 4, yolo 3, xml 5", "lorry and van -> truck"):
        assert line in said
    assert "export lacks truck; yolo lacks bus; xml lacks car" in said
