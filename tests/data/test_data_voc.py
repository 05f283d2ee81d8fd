"""Reading PASCAL VOC folders."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.dataset import find_splits, load_dataset, read_record_image
from directdet.data.formats.voc import VOC_CLASSES


def object_xml(name="cat", box=(1, 1, 10, 20), difficult=0):
    xmin, ymin, xmax, ymax = box
    bounds = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{bounds}</bndbox>{part}</object>"


@pytest.fixture
def voc(tmp_path, write_image):
    """``voc({"train": {"000001": [object_xml()]}})`` writes lists, xml and 40x30 pictures; returns the VOC folder."""

    def write(lists, size="<size><width>40</width><height>30</height></size>", year=2007):
        folder = tmp_path / "VOCdevkit" / f"VOC{year}"
        (folder / "Annotations").mkdir(parents=True)
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        for list_name, images in lists.items():
            (folder / "ImageSets" / "Main" / f"{list_name}.txt").write_text("\n".join(images) + "\n")
            for name, objects in images.items():
                xml = f"<annotation>{size}{''.join(objects)}</annotation>"
                (folder / "Annotations" / f"{name}.xml").write_text(xml)
                write_image(folder / "JPEGImages" / f"{name}.jpg", 30, 40)
        return folder

    return write


def test_boxes_become_zero_based(voc, tmp_path):
    voc({"trainval": {"000012": [object_xml(), object_xml("dog", (40, 30, 40, 30), 1)]}})
    dataset = load_dataset(tmp_path, "train")
    assert (dataset.layout, dataset.classes, dataset.category_ids) == ("voc", VOC_CLASSES, tuple(range(1, 21)))
    (record,) = dataset.records
    np.testing.assert_array_equal(record.boxes, np.float32([[0, 0, 10, 20], [39, 29, 40, 30]]))
    assert record.labels.tolist() == [VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")]
    assert record.difficult.tolist() == [False, True] and not record.crowd.any()
    assert record.image_id == 12 and len(set(record.annotation_ids)) == 2
    assert record.segmentations == (None, None) and not dataset.has_masks and dataset.problems == ()


def test_ids_stay_apart_whatever_the_number_of_objects(voc, tmp_path):
    voc({"trainval": {"000001": [object_xml()] * 1001, "000002": [object_xml()] * 2}})
    ids = [number for record in load_dataset(tmp_path, "train").records for number in record.annotation_ids]
    assert len(set(ids)) == len(ids) == 1003


@pytest.mark.parametrize("root", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_root_may_be_any_of_the_folders(voc, tmp_path, root):
    voc({"trainval": {"1": [object_xml()]}, "test": {"2": [object_xml()]}})
    assert find_splits(tmp_path / root) == ["train", "val"]
    assert load_dataset(tmp_path / root, "val").records[0].image_id == 2


def test_val_is_held_out_of_trainval(voc, tmp_path):
    voc({"val": {"b": []}, "trainval": {"a": [object_xml("cat")], "b": [object_xml("dog")]}})
    train, val = load_dataset(tmp_path, "train"), load_dataset(tmp_path, "val")
    assert [record.path.stem for record in train.records] == ["a"]
    assert [record.path.stem for record in val.records] == ["b"]


def test_other_classes_are_those_of_all_splits_sorted(voc, tmp_path):
    voc({"train": {"a": [object_xml("cat")]}, "val": {"b": [object_xml("ant")]}})
    assert load_dataset(tmp_path, "train").classes == load_dataset(tmp_path, "val").classes == ("ant", "cat")


def test_boxes_clipped_and_dropped(voc, tmp_path):
    boxes = [(0, 0, 5, 5), (35, 5, 45, 10), (5, 5, 4, 9), (50, 5, 60, 9), (1.5, 1.5, 3.5, 3.5)]
    voc({"train": {"a": [object_xml(box=box) for box in boxes]}})
    dataset = load_dataset(tmp_path, "train")
    expected = [[0, 0, 5, 5], [34, 4, 40, 10], [0.5, 0.5, 3.5, 3.5]]
    np.testing.assert_array_equal(dataset.records[0].boxes, np.float32(expected))
    assert [problem.action for problem in dataset.problems] == ["clipped", "clipped", "dropped", "dropped"]
    assert all("a.xml" in problem.file for problem in dataset.problems)


def test_missing_size_is_read_from_the_picture(voc, tmp_path):
    voc({"train": {"a": [object_xml()]}}, size="<size><width>0</width><height>0</height></size>")
    record = load_dataset(tmp_path, "train").records[0]
    assert (record.width, record.height) == (40, 30)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", r"a\.xml: not valid XML"),
        (f"<annotation>{object_xml().replace('cat', '')}</annotation>", r"a\.xml: object 1: name is missing"),
        (f"<annotation>{object_xml(box=('x', 1, 2, 3))}</annotation>", "object 1: bndbox: xmin 'x' is not"),
        (f"<annotation>{object_xml(box=('nan', 1, 2, 3))}</annotation>", "object 1: bndbox: xmin 'nan' is not"),
        ("<annotation><object><name>cat</name></object></annotation>", "object 1: bndbox is missing"),
        ("<annotation><size><width>x</width><height>3</height></size></annotation>", "size: 'x' x '3'"),
    ],
)
def test_bad_xml_is_refused_by_name(voc, tmp_path, xml, message):
    folder = voc({"train": {"a": []}})
    (folder / "Annotations" / "a.xml").write_text(xml)
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path, "train")


def test_bad_lists(voc, tmp_path):
    folder = voc({"train": {"a": []}})
    for names, message in (
        ("b", r"b\.xml: annotation file not found"),
        ("../a", "may point outside"),
        ("a\na", "listed twice"),
    ):
        (folder / "ImageSets" / "Main" / "train.txt").write_text(names)
        with pytest.raises(UserError, match=message):
            load_dataset(tmp_path, "train")


def test_several_years_are_ambiguous(voc, tmp_path):
    folder = voc({"train": {"a": []}})
    for name in ("Annotations", "ImageSets/Main"):
        (folder.parent / "VOC2012" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"several VOC folders \(VOC2007, VOC2012\)"):
        load_dataset(tmp_path, "train")


@pytest.fixture
def years(voc, tmp_path):
    """Two years, and what of them a dataset.toml lists; returns a function from its content to the file."""
    voc({"trainval": {"000005": [object_xml("cat")]}, "test": {"000007": [object_xml("cat")]}})
    voc({"trainval": {"2008_000002": [object_xml("dog")], "000005": []}, "val": {"000005": []}}, year=2012)

    def write(content):
        file = tmp_path / "VOCdevkit" / "dataset.toml"
        file.write_text(content)
        return file

    return write


TRAIN_0712 = '[train]\nvoc = ["VOC2007/trainval", "VOC2012/trainval"]\n'


def test_lists_of_several_years_make_one_split(years):
    root = years(f'{TRAIN_0712}[val]\nvoc = ["VOC2007/test"]').parent
    assert find_splits(root) == ["train", "val"]
    train, val = load_dataset(root, "train"), load_dataset(root, "val")
    parts = [(record.path.parts[-3], record.path.stem, record.labels.tolist()) for record in train.records]
    # The same name in two years is two pictures; val of one year is in trainval, and stays there.
    assert parts == [("VOC2007", "000005", [7]), ("VOC2012", "2008_000002", [11]), ("VOC2012", "000005", [])]
    assert [record.image_id for record in train.records] == [1, 2, 3]
    assert [record.image_id for record in val.records] == [7]
    assert (train.classes, train.category_ids) == (val.classes, val.category_ids) == (VOC_CLASSES, tuple(range(1, 21)))


def test_classes_are_those_of_all_lists(years, tmp_path):
    file = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "2008_000002.xml"
    file.write_text(file.read_text().replace("dog", "ant"))
    root = years(f'{TRAIN_0712}[val]\nvoc = ["VOC2007/test"]').parent
    assert load_dataset(root, "train").classes == load_dataset(root, "val").classes == ("ant", "cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('voc = ["VOC2007/trainval", "VOC2007/trainval"]', "image '000005' is in two lists of 'train'"),
        ('voc = ["VOC2007/nothing"]', "nothing.txt: image list not found"),
        ('voc = ["../VOC2007/trainval"]', "may point outside"),
        ('voc = "VOC2007/trainval"', "is not a list such as"),
        ("voc = []", "is not a list such as"),
        ("voc = [3]", "3 is not a file name"),
        ('voc = ["VOC2007/trainval"]\nimages = "x"', "not both"),
    ],
)
def test_lists_that_do_not_do(years, content, message):
    with pytest.raises(UserError, match=message):
        load_dataset(years(f"[train]\n{content}"), "train")


def test_real_voc_agrees_with_its_xml(real_data):
    root = real_data / "voc2007mini"
    for split, images, objects, difficult in (("train", 80, 234, 48), ("val", 40, 110, 26)):
        dataset = load_dataset(root, split)
        assert len(dataset) == images and dataset.classes == VOC_CLASSES and dataset.problems == ()
        assert sum(len(record.boxes) for record in dataset.records) == objects
        assert sum(int(record.difficult.sum()) for record in dataset.records) == difficult
        identifiers = [number for record in dataset.records for number in record.annotation_ids]
        assert len(set(identifiers)) == objects and min(identifiers) > 0
        for record in dataset.records[:20]:
            tree = ElementTree.parse(root / "VOCdevkit" / "VOC2007" / "Annotations" / f"{record.path.stem}.xml")
            for item, box, label in zip(tree.findall("object"), record.boxes, record.labels, strict=True):
                corners = [int(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
                assert np.add(box, [1, 1, 0, 0]).tolist() == corners
                assert dataset.classes[label] == item.findtext("name")
        assert read_record_image(dataset.records[0]).shape[2] == 3


def test_real_voc_boxes_are_the_extent_of_the_masks(real_data):
    """Object k of the xml is value k of the mask picture: an independent witness of the coordinates' origin."""
    import cv2

    root = real_data / "voc2007mini"
    folder = root / "VOCdevkit" / "VOC2007" / "SegmentationObject"
    differences = []
    for record in load_dataset(root, "train").records:
        file = folder / f"{record.path.stem}.png"
        if not file.is_file():
            continue
        colours = cv2.imread(str(file)).astype(np.int64) @ [65536, 256, 1]  # BGR
        void = int(np.array([192, 224, 224]) @ [65536, 256, 1])
        extents = []
        for colour in set(np.unique(colours)) - {0, void}:
            rows, columns = np.nonzero(colours == colour)
            extents.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        for box in record.boxes:
            differences.append(np.abs(np.array(extents) - box).sum(axis=1).min() / 4)
    assert len(differences) > 50 and np.median(differences) < 3


def names_of(root, split):
    return [record.path.stem for record in load_dataset(root, split).records]


def image(name):
    return {name: [object_xml()]}


@pytest.mark.parametrize(
    ("lists", "expected", "note"),
    [
        ({"train": "a", "val": "b", "test": "c"}, {"train": "a", "val": "b", "test": "c"}, None),
        ({"trainval": "ab", "val": "b"}, {"train": "a", "val": "b"}, None),
        (
            {"trainval": "ab", "train": "a", "val": "b", "test": "c"},
            {"train": "ab", "val": "c"},
            "val.txt is not used (1",
        ),
        ({"train": "a", "test": "c"}, {"train": "a", "val": "c"}, "as in VOC's protocol: best.pt"),
        (
            {"train": "abc", "val": "b", "test": "c"},
            {"train": "a", "val": "b", "test": "c"},
            "2 images are in val or test",
        ),
        ({"val": "b"}, {"val": "b"}, None),
    ],
)
def test_lists_mean_what_they_say(voc, tmp_path, lists, expected, note):
    voc({name: {letter: [object_xml()] for letter in images} for name, images in lists.items()})
    assert find_splits(tmp_path) == list(expected)
    assert {split: "".join(names_of(tmp_path, split)) for split in expected} == expected
    notes = " ".join(load_dataset(tmp_path, next(iter(expected))).notes)
    assert note in notes if note else notes == ""


def test_a_test_list_without_annotations_is_left_out(voc, tmp_path):
    folder = voc({"train": image("a"), "trainval": {**image("a"), **image("b")}, "val": image("b"), "test": image("c")})
    (folder / "Annotations" / "c.xml").unlink()
    assert find_splits(tmp_path) == ["train", "val"]
    assert (names_of(tmp_path, "train"), names_of(tmp_path, "val")) == (["a"], ["b"])
    (folder / "ImageSets" / "Main" / "test.txt").write_text("a\nc\n")  # one of two is missing: that is a fault
    with pytest.raises(UserError, match=r"c\.xml: annotation file not found"):
        load_dataset(tmp_path, "val")
    assert load_dataset(tmp_path, "val", leave_out=True).records[0].path.stem == "a"
    assert names_of(tmp_path, "train") == ["b"]  # which the other split's fault does not concern


def test_no_lists_or_others_are_named(voc, tmp_path):
    folder = voc({"default": image("a")})
    with pytest.raises(UserError, match=r'but default\.txt; rename.*voc = \["VOC2007/default"\]'):
        find_splits(tmp_path)
    (folder / "ImageSets" / "Main" / "default.txt").unlink()
    with pytest.raises(UserError, match="holds no image lists"):
        load_dataset(tmp_path, "train")


@pytest.mark.parametrize("end", [".JPG", ".Png", ".bmp", ".jpeg", ".tif"])
def test_images_are_found_whatever_their_ending(voc, tmp_path, end):
    folder = voc({"train": image("a.1")})
    (folder / "JPEGImages" / "a.1.jpg").rename(folder / "JPEGImages" / f"a.1{end}")
    assert load_dataset(tmp_path, "train").records[0].path.name == f"a.1{end}"


def test_filename_decides_between_images(voc, tmp_path, write_image):
    folder = voc({"train": image("a")}, size="<filename>a.png</filename>")
    write_image(folder / "JPEGImages" / "a.png", 50, 60)
    assert (load_dataset(tmp_path, "train").records[0].path.name, load_dataset(tmp_path, "train").records[0].width) == (
        "a.png",
        60,
    )
    for image_file in (folder / "JPEGImages").iterdir():
        image_file.rename(image_file.with_stem("photo"))
    xml = folder / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("a.png", r"C:\photos\photo.png"))
    assert load_dataset(tmp_path, "train").records[0].path.name == "photo.png"


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "big5", "shift_jis", "euc-kr", "utf-16", "utf-8", "latin-1"])
def test_xml_in_the_encoding_that_it_declares(voc, tmp_path, encoding):
    folder = voc({"train": {"a": []}})
    name = {"gb2312": "螺母", "gbk": "螺母", "big5": "螺母", "shift_jis": "ネジ", "euc-kr": "나사"}.get(encoding, "é")
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation>{object_xml(name)}</annotation>'
    (folder / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    assert load_dataset(tmp_path, "train").classes == (name,)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gb2312", b"\xff\xff"),
        ("shift_jis", b"\x81 "),
        ("gb2312", b"<unclosed>"),
        ("nothing", b""),
        ("base64", b""),
        ("euc-kr", b"\xff"),
    ],
)
def test_encodings_that_do_not_do_are_one_line(voc, tmp_path, encoding, content):
    folder = voc({"train": {"a": []}})
    text = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + b"<annotation>" + content + b"</annotation>"
    (folder / "Annotations" / "a.xml").write_bytes(text)
    with pytest.raises(UserError, match=r"a\.xml: not") as caught:
        load_dataset(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_numbers_as_floats_and_byte_order_marks(voc, tmp_path):
    size = "<size><width>40.0</width><height>30.0</height></size>"
    folder = voc({"train": {"a": [object_xml(box=("1.0", "2.0", "9.0", "8.0"), difficult="1.0")]}}, size=size)
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes("\ufeffa\r\n".encode())
    (record,) = load_dataset(tmp_path, "train").records
    assert (record.width, record.height, record.difficult.tolist()) == (40, 30, [True])


def test_all_faults_are_collected_the_worst_first(voc, tmp_path):
    bad = "<object><name>cat</name></object>"
    folder = voc({"train": {"a": [bad, object_xml()], "b": [object_xml()], "c": [bad, bad], "d": [object_xml()]}})
    (folder / "Annotations" / "b.xml").write_text("<annotation>")
    (folder / "Annotations" / "d.xml").unlink()
    with pytest.raises(UserError, match=r"b\.xml: not valid XML.*\(and 4 more: check-data lists them\)$"):
        load_dataset(tmp_path, "train")
    dataset = load_dataset(tmp_path, "train", leave_out=True)
    assert [line.rpartition("/")[2][:19] for line in dataset.errors] == [
        "b.xml: not valid XM",
        "d.xml: annotation f",
        "a.xml: object 1: bn",
        "c.xml: object 1: bn",
        "c.xml: object 2: bn",
    ]
    assert [(record.path.stem, len(record.boxes)) for record in dataset.records] == [("a", 1), ("c", 0)]
