"""The made-up dataset: the same bytes each time, and annotations that fit its pixels."""

import numpy as np
import pytest

from directdet.data.dataset import find_splits, load_dataset, read_record_image
from directdet.data.masks import decode_mask
from directdet.data.synthetic import CATEGORY_IDS, CLASSES, make_synthetic


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes(synthetic, tmp_path):
    again = contents(make_synthetic(tmp_path / "a", 12, 4, seed=3))
    assert again == contents(synthetic) and len(again) == 12 + 4 + 2
    other = contents(make_synthetic(tmp_path / "b", 12, 4, seed=4))
    assert other.keys() == again.keys() and other != again


def test_boxes_areas_and_masks_are_those_of_the_visible_parts(synthetic):
    assert find_splits(synthetic) == ["train", "val"]
    for split, images in (("train", 12), ("val", 4)):
        dataset = load_dataset(synthetic, split)
        assert dataset.classes == CLASSES and dataset.category_ids == CATEGORY_IDS
        assert len(dataset) == images and dataset.problems == () and dataset.has_masks
        assert sum(len(record.boxes) == 0 for record in dataset.records) == 1
        assert sum(int(record.crowd.sum()) for record in dataset.records) == 1
        assert len({(record.width, record.height) for record in dataset.records}) > 1
        for record in dataset.records:
            assert read_record_image(record).shape == (record.height, record.width, 3)
            covered = np.zeros((record.height, record.width), int)
            for index, segmentation in enumerate(record.segmentations):
                mask = decode_mask(segmentation, record.height, record.width)
                covered += mask
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                np.testing.assert_allclose(record.boxes[index], extent, atol=1.01)
                assert abs(mask.sum() - record.areas[index]) <= 0.06 * record.areas[index] + 4
            assert (covered > 1).sum() <= 0.01 * covered.size  # visible parts share but the pixels of their outlines


def test_shapes_are_as_many_and_as_small_as_asked_for(tmp_path):
    data = load_dataset(make_synthetic(tmp_path, 8, 1, (200, 200), shapes=(5, 6), radius=(0.04, 0.06)), "train")
    objects = [record.boxes[~record.crowd] for record in data.records[:-1]]
    assert {len(boxes) for boxes in objects} == {5, 6}
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2] for boxes in objects])
    assert 16 < sides.max() <= 2 * 0.06 * 200 + 1


def test_small_sets_and_bad_sizes(tmp_path):
    root = make_synthetic(tmp_path, 1, 2, size=(64, 64))
    assert len(load_dataset(root, "train").records[0].boxes) > 0
    assert [len(record.boxes) > 0 for record in load_dataset(root, "val").records] == [True, False]
    with pytest.raises(ValueError, match="at least 64 pixels"):
        make_synthetic(tmp_path, 1, 1, size=(20, 30))
