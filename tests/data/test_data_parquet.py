"""Datasets in Parquet files: as the folder they were made from, as Hugging Face's datasets writes them, and damaged."""

import io
import json
import os
import sys

import numpy as np
import pytest

from directdet.common.errors import MissingLibraryError, UserError
from directdet.data.check import check_data
from directdet.data.dataset import find_splits, load_dataset, read_record_image
from directdet.data.digest import describe_content
from directdet.data.formats.packed import kept as keeping
from directdet.data.formats.packed import parquet as reading
from directdet.data.formats.write.convert import convert
from directdet.data.image import is_picture_file, read_bytes
from directdet.data.inside import rows
from directdet.front.cli import main

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
LISTS = pa.struct({"bbox": pa.list_(pa.list_(pa.float32(), 4)), "category": pa.list_(pa.int64())})
NAMES = ["cat", "dog"]
# What `datasets` 2 and 4 write of the same columns, and of a list of dicts.
FEATURES = {
    "2": {"feature": {"bbox": {}, "category": {"names": NAMES, "_type": "ClassLabel"}}, "_type": "Sequence"},
    "4": {"bbox": {}, "category": {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "List"}},
    "list": [{"bbox": {}, "category": {"names": NAMES, "_type": "ClassLabel"}}],
}
OBJECTS = {"bbox": [[1, 2, 5, 6], [2, 3, 4, 5]], "category": [1, 0]}


@pytest.fixture(scope="module")
def packed(synthetic, tmp_path_factory):
    """The synthetic set as Parquet files of a few pictures each."""
    out = tmp_path_factory.mktemp("parquet") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("directdet.data.formats.write.parquet._MB", 4000)
        patch.setattr("directdet.data.formats.write.parquet.ROWS", 2)
        convert(synthetic, "parquet", out, shard_mb=20)
    assert len(list((out / "data").glob("train-*.parquet"))) > 1
    return out


@pytest.fixture(scope="module")
def pictures(synthetic):
    """The bytes of four pictures, and their sizes."""
    records = load_dataset(synthetic, "train").records[:4]
    return [read_bytes(record.path) for record in records], [(record.width, record.height) for record in records]


def write(file, columns, objects=LISTS, features=FEATURES["4"], names=True, group=2, **types):
    """A Parquet file of these columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"image": IMAGE, "objects": objects, "width": pa.int32(), "height": pa.int32(), "image_id": pa.int64()}
    schema = pa.schema({name: types.get(name) or kinds[name] for name in columns})
    if names:
        about = {"info": {"features": {"image": {"_type": "Image"}, "objects": features}}}
        schema = schema.with_metadata({"huggingface": json.dumps(about)})
    pq.write_table(pa.table(columns, schema=schema), file, row_group_size=group)
    return file


def hub(pictures, **changes):
    """The columns of a set with three pictures; a column that is None is left out."""
    content = {
        "image": [{"bytes": one, "path": f"p{index}.jpg"} for index, one in enumerate(pictures[0][:3])],
        "objects": [OBJECTS, {"bbox": [], "category": []}, OBJECTS],
        **changes,
    }
    return {name: value for name, value in content.items() if value is not None}


def test_records_and_pictures_are_those_of_the_folder(synthetic, packed):
    assert find_splits(packed) == find_splits(synthetic)
    for split in find_splits(synthetic):
        before, after = load_dataset(synthetic, split), load_dataset(packed, split)
        assert before.classes == after.classes and after.category_ids == (0, 1, 2, 3)
        assert len(before) == len(after) > 0 and not after.errors and not after.problems and not after.notes
        for left, right in zip(before.records, after.records, strict=True):
            assert (left.image_id, left.width, left.height) == (right.image_id, right.width, right.height)
            assert left.annotation_ids == right.annotation_ids and left.path.name == right.path.name
            for name in ("boxes", "labels", "crowd", "difficult", "areas", "weights"):
                one, other = getattr(left, name), getattr(right, name)
                assert one.dtype == other.dtype and np.array_equal(one, other), name
            for one, other in zip(left.segmentations, right.segmentations, strict=True):
                assert other is None if isinstance(one, dict) else all(map(np.array_equal, one, other))
            assert is_picture_file(right.path) and read_bytes(left.path) == read_bytes(right.path)
            assert read_bytes(right.path, 10) == read_bytes(left.path)[:10]
            assert np.array_equal(read_record_image(left), read_record_image(right))


def test_it_is_written_the_same_again_and_converts_back(synthetic, packed, tmp_path):
    lost = convert(packed, "parquet", tmp_path / "again", shard_mb=1000)
    assert lost == []  # the first time, run lengths and ids were
    convert(synthetic, "parquet", tmp_path / "whole", shard_mb=1000)
    convert(tmp_path / "again", "parquet", tmp_path / "third", shard_mb=1000)
    files = [tmp_path / name / "data" / "train-00000.parquet" for name in ("again", "third")]
    assert files[0].read_bytes() == files[1].read_bytes()
    convert(packed, "coco", tmp_path / "coco")
    assert describe_content(load_dataset(tmp_path / "coco", "train")) == describe_content(load_dataset(packed, "train"))
    with pytest.raises(UserError, match="lies inside a file, to which there are no links"):
        convert(packed, "coco", tmp_path / "links", link=True)


def test_check_data_and_the_command(packed, tmp_path, capsys):
    assert not check_data(packed).fatal
    arguments = ["convert", str(packed), "--to", "parquet", "--out", str(tmp_path / "out"), "--shard-mb", "1"]
    assert main(arguments) == 0 and (tmp_path / "out" / "data" / "train-00000.parquet").is_file()
    assert main([*arguments[:-2], "--link"]) == 2
    assert "parquet files hold the pictures themselves" in capsys.readouterr().err


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_a_set_of_the_hub(features, pictures, tmp_path):
    write(tmp_path / "data" / "train-00000-of-00001-af3c.parquet", hub(pictures), features=features)
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", hub(pictures), features=features)
    assert find_splits(tmp_path) == ["train", "val"]
    dataset = load_dataset(tmp_path, "val")
    assert (dataset.layout, dataset.classes, dataset.category_ids) == ("parquet", ("cat", "dog"), (0, 1))
    assert "3 images have no width or height" in dataset.notes[0]
    for index, record in enumerate(dataset.records):
        assert (record.image_id, record.path.name) == (index + 1, f"p{index}.jpg")
        assert (record.width, record.height) == pictures[1][index] and read_bytes(record.path) == pictures[0][index]
    assert dataset.records[0].boxes.tolist() == [[1, 2, 6, 8], [2, 3, 6, 8]]
    assert dataset.records[0].labels.tolist() == [1, 0] and len(dataset.records[1].boxes) == 0
    assert [record.annotation_ids for record in dataset.records] == [(1, 2), (), (3, 4)]


def test_objects_as_a_list_of_structs_with_ids_areas_and_polygons(pictures, tmp_path):
    fields = {"bbox": pa.list_(pa.float64()), "category": pa.string(), "id": pa.int64(), "area": pa.float32()}
    fields |= {"iscrowd": pa.bool_(), "segmentation": pa.list_(pa.list_(pa.float64()))}
    whole = {"bbox": [1, 2, 5, 6], "category": "dog", "id": 70, "area": 12, "iscrowd": True}
    bare = {"bbox": [1, 2, 5, 6], "category": "cat", "id": 71, "segmentation": [[1, 2, 6, 2, 6, 8]]}
    columns = hub(pictures, objects=[[whole], [], [bare]], image_id=[9, 8, 7])
    write(tmp_path / "train.parquet", columns, objects=pa.list_(pa.struct(fields)), names=False)
    dataset = load_dataset(tmp_path, "train")
    assert dataset.classes == ("cat", "dog") and [record.image_id for record in dataset.records] == [9, 8, 7]
    first, _, last = dataset.records
    assert (first.annotation_ids, first.areas.tolist(), first.crowd.tolist()) == ((70,), [12], [True])
    assert last.segmentations[0][0].tolist() == [1, 2, 6, 2, 6, 8] and last.labels.tolist() == [0]


def test_ids_that_objects_share_are_numbered(pictures, tmp_path):
    kind = pa.struct(
        {"id": pa.list_(pa.int64()), "bbox": pa.list_(pa.list_(pa.int64())), "category": pa.list_(pa.int8())}
    )
    objects = {**OBJECTS, "id": [0, 1]}
    write(tmp_path / "train.parquet", hub(pictures, objects=[objects] * 3), objects=kind)
    assert [record.annotation_ids for record in load_dataset(tmp_path, "train").records] == [(1, 2), (3, 4), (5, 6)]


def test_classes_of_a_file_and_of_numbers(pictures, tmp_path):
    write(tmp_path / "train.parquet", hub(pictures), names=False)
    dataset = load_dataset(tmp_path, "train")
    assert dataset.classes == ("0", "1") and "classes are numbers, without names" in dataset.notes[0]
    (tmp_path / "classes.json").write_text('{"categories": [{"id": 1, "name": "b"}, {"id": 0, "name": "a"}]}')
    dataset = load_dataset(tmp_path, "train")
    assert dataset.classes == ("a", "b") and dataset.records[0].labels.tolist() == [1, 0]
    (tmp_path / "classes.json").write_text("[1]")
    with pytest.raises(UserError, match=r"classes.json: not a list of classes: expected an object with categories"):
        load_dataset(tmp_path, "train")


def test_bytes_alone_and_pictures_without_a_name(pictures, tmp_path):
    write(tmp_path / "a" / "train.parquet", hub(pictures, image=pictures[0][:3]), image=pa.binary())
    write(tmp_path / "b" / "train.parquet", hub(pictures, image=[{"bytes": one} for one in pictures[0][:3]]))
    for name in ("a", "b"):
        dataset = load_dataset(tmp_path / name, "train")
        assert [read_bytes(record.path) for record in dataset.records] == pictures[0][:3]
        assert [record.path.name for record in dataset.records] == ["000000.jpg", "000001.jpg", "000002.jpg"]


def test_other_boxes_are_said_in_dataset_toml(pictures, tmp_path):
    objects = {"bbox": [[1, 2, 5, 8]], "category": [1]}
    write(tmp_path / "train.parquet", hub(pictures, objects=[objects] * 3))
    found = {}
    for name in ("xywh", "xyxy", "cxcywh"):
        (tmp_path / "dataset.toml").write_text(f'format = "parquet"\nbox_format = "{name}"\n')
        found[name] = load_dataset(tmp_path, "train").records[2].boxes.tolist()
    assert found == {"xywh": [[1, 2, 6, 10]], "xyxy": [[1, 2, 5, 8]], "cxcywh": [[0, 0, 3.5, 6]]}
    for line, message in (
        ('box_format = "corners"', "box_format: 'corners' is not one of xywh, xyxy, cxcywh"),
        ("box_format = 3", "box_format: 3 is not one of"),
    ):
        (tmp_path / "dataset.toml").write_text(f'format = "parquet"\n{line}\n')
        with pytest.raises(UserError, match=message):
            load_dataset(tmp_path, "train")
    (tmp_path / "dataset.toml").write_text('format = "coco"\nbox_format = "xyxy"\n')
    with pytest.raises(UserError, match="box_format: coco says itself what its boxes are; leave it out"):
        find_splits(tmp_path)


ROW = "train.parquet: row group 1, row 2: "


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"image": None},
            {},
            "train.parquet: no column of pictures: expected image, a struct of bytes and path; found",
        ),
        (
            {"objects": [{"bbox": [[1, 2, 3, 4]], "n": [1]}] * 3},
            {"objects": pa.struct({"bbox": LISTS.field(0).type, "n": LISTS.field(1).type})},
            "train.parquet: objects: expected a column of structs with bbox and category; found bbox, n",
        ),
        (
            {"objects": [OBJECTS, OBJECTS, {"bbox": [[1, 2, 3, 4]], "category": [0, 1]}]},
            {},
            ROW + "lists of different lengths: objects.bbox 1, objects.category 2",
        ),
        (
            {"objects": [OBJECTS, OBJECTS, {"bbox": [[1, 2, 3, 4]], "category": [7]}]},
            {},
            ROW + "objects.category[0]: 7 is not among the classes (cat, dog",
        ),
        (
            {"objects": [OBJECTS, OBJECTS, {"bbox": [None], "category": [1]}]},
            {},
            ROW + "annotation 5: bbox None is not four finite numbers",
        ),
        ({"image_id": [1, 2, 1]}, {}, ROW + "image_id 1 is used twice"),
        ({"image_id": [1, 2, None]}, {}, None),
        ({"width": [10, 10, -1], "height": [20, 20, 20]}, {}, ROW + "width -1 and height 20 are not both positive"),
    ],
)
def test_faults_name_file_row_group_row_and_field(columns, options, message, pictures, tmp_path):
    write(tmp_path / "train.parquet", hub(pictures, **columns), **options)
    if message is None:
        assert len(load_dataset(tmp_path, "train")) == 3
        return
    with pytest.raises(UserError) as error:
        load_dataset(tmp_path, "train")
    assert str(error.value).startswith(f"{tmp_path}/{message}") and "\n" not in str(error.value)


def test_pictures_that_are_not_embedded_and_rows_that_are_not_there(pictures, tmp_path):
    columns = hub(pictures, image=[*({"bytes": one} for one in pictures[0][:2]), {"path": "p.jpg"}])
    file = write(tmp_path / "train.parquet", {**columns, "width": [10] * 3, "height": [20] * 3})
    record = load_dataset(tmp_path, "train").records[2]
    with pytest.raises(UserError, match=r"train.parquet: row group 1, row 2: image: no bytes; embed the pictures"):
        read_bytes(record.path)
    for name in ("3", "x", "-1", "9" * 30):
        assert not is_picture_file(file / name)
        with pytest.raises(UserError, match=f"train.parquet: no row '{name}' in it: it has 3"):
            read_bytes(file / name / "p.jpg")


def test_damaged_files(pictures, tmp_path):
    file = write(tmp_path / "train.parquet", hub(pictures))
    whole = file.read_bytes()
    for content in (
        whole[:-20],
        whole[: len(whole) // 2],
        whole[:-8] + b"\xff" * 4 + b"PAR1",
        whole[:-200] + b"x" * 192 + whole[-8:],
    ):
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            load_dataset(tmp_path, "train")
        assert str(file) in str(error.value) or "no known dataset layout" in str(error.value)
        assert "\n" not in str(error.value)


def test_files_that_are_no_such_sets_are_passed_over(synthetic, tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"no known dataset layout here \(found 1 .parquet\)"):
        load_dataset(tmp_path, "train")


def test_names_without_a_split(pictures, tmp_path):
    write(tmp_path / "a.parquet", hub(pictures))
    assert find_splits(tmp_path) == ["train"]
    write(tmp_path / "test" / "0000.parquet", hub(pictures))
    with pytest.raises(UserError, match=r"a.parquet: its name begins with no split, such as train-; rename it"):
        find_splits(tmp_path)


def test_without_pyarrow_the_message_says_what_to_install(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setattr(rows, "_files", {})
    assert find_splits(packed) == ["train", "val"]
    with pytest.raises(MissingLibraryError, match=r"pip install 'directdet\[parquet\]'") as error:
        load_dataset(packed, "train")
    assert "\n" not in str(error.value)


def test_a_picture_is_one_row_group_and_few_are_kept(packed, monkeypatch):
    records = load_dataset(packed, "train").records
    read = []
    original = rows.RowFile.pictures
    monkeypatch.setattr(rows.RowFile, "pictures", lambda self, group: read.append(group) or original(self, group))
    monkeypatch.setattr(rows, "_groups", type(rows._groups)())
    for _ in range(2):
        for record in records[:2]:
            read_bytes(record.path)
    assert read == [0]
    monkeypatch.setattr(rows, "KEPT_BYTES", 1)
    for record in (records[-1], records[0], records[-1]):
        read_bytes(record.path)
    assert len(read) == 4 and len(rows._groups) == 1


def test_a_file_that_was_replaced_is_read_anew(pictures, tmp_path):
    file = write(tmp_path / "train.parquet", hub(pictures))
    assert read_bytes(file / "0" / "p.jpg") == pictures[0][0]
    other = write(tmp_path / "other.parquet", hub((pictures[0][1:], None)))
    os.replace(other, file)
    assert read_bytes(file / "0" / "p.jpg") == pictures[0][1]


def test_a_second_opening_reads_no_annotations(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("DIRECTDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "LARGE", 0)
    first = load_dataset(packed, "train")
    monkeypatch.setattr(reading, "_read", lambda *_: pytest.fail("they are read again"))
    second = load_dataset(packed, "train")
    assert describe_content(first) == describe_content(second) and second.records.columns.file.is_file()
    assert all(read_bytes(record.path) for record in second.records)


def test_a_set_of_hugging_face_s_own_library(packed, tmp_path):
    datasets = pytest.importorskip("datasets")
    opened = datasets.load_dataset("parquet", data_dir=str(packed / "data"), cache_dir=str(tmp_path / "cache"))
    assert opened["train"].features["objects"]["category"].feature.names == list(load_dataset(packed, "train").classes)
    picture = opened["train"][0]["image"]
    assert picture.size == (
        load_dataset(packed, "train").records[0].width,
        load_dataset(packed, "train").records[0].height,
    )
    for split, name in (("train", "train"), ("validation", "validation")):
        opened[split].to_parquet(io.FileIO(tmp_path / f"{name}-00000-of-00001.parquet", "w"))
    for split in ("train", "val"):
        assert describe_content(load_dataset(tmp_path, split)) == describe_content(load_dataset(packed, split))
