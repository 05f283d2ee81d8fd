"""Masks: decoding, and rasterising into boxes."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from directdet.common.errors import UserError
from directdet.data.dataset import load_dataset
from directdet.data.masks import CropMask, decode_mask, flip_shape, rasterise, scale_and_shift, to_rle, to_shape


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def paste(cells, box, height, width):
    """The mask that a raster stands for: pixel centres looked up, linearly, in the cells."""
    x1, y1, x2, y2 = box
    columns = (np.arange(width) + 0.5 - x1) / (x2 - x1) * cells.shape[1] - 0.5
    rows = (np.arange(height) + 0.5 - y1) / (y2 - y1) * cells.shape[0] - 0.5
    grid = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    return cv2.remap(cells.astype(np.float32), *grid, cv2.INTER_LINEAR) >= 0.5


def iou(first, second):
    first, second = first.astype(bool), second.astype(bool)
    return (first & second).sum() / max((first | second).sum(), 1)


def as_rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def test_synthetic_masks_survive_a_56_raster(synthetic):
    large, both = [], []
    for record in load_dataset(synthetic, "train").records:
        for crowd, box, segmentation in zip(record.crowd, record.boxes, record.segmentations, strict=True):
            exact = decode_mask(segmentation, record.height, record.width)
            polygons = to_shape(segmentation, record.height, record.width)
            crop = to_shape(as_rle(exact), record.height, record.width)
            cells, crop_cells = rasterise(polygons, box), rasterise(crop, box)
            assert cells.shape == (56, 56) and cells.dtype == np.uint8 and set(np.unique(cells)) <= {0, 1}
            if not crowd and min(box[2] - box[0], box[3] - box[1]) >= 32:
                large.append(iou(paste(cells, box, record.height, record.width), exact))
                both.append(iou(cells, crop_cells))
    assert len(large) > 15
    assert np.mean(large) > 0.97 and min(large) > 0.93
    assert np.mean(both) > 0.95


def test_run_lengths_survive_almost_exactly(synthetic):
    """Crops hold the very pixels, so only the 56 cells can lose anything: nothing in boxes smaller than that."""
    overlaps = []
    for record in load_dataset(synthetic, "val").records:
        for segmentation in record.segmentations:
            exact = decode_mask(segmentation, record.height, record.width)
            box = box_of(exact)
            cells = rasterise(to_shape(as_rle(exact), record.height, record.width), box)
            overlaps.append(iou(paste(cells, box, record.height, record.width), exact))
    assert np.mean(overlaps) > 0.99 and min(overlaps) > 0.96


def test_real_masks_survive(real_data):
    polygons, overlaps = load_dataset(real_data / "coco-mini", "val"), []
    for record in polygons.records[:60]:
        for crowd, box, segmentation in zip(record.crowd, record.boxes, record.segmentations, strict=True):
            if not crowd and min(box[2] - box[0], box[3] - box[1]) >= 32:
                exact = decode_mask(segmentation, record.height, record.width)
                cells = rasterise(to_shape(segmentation, record.height, record.width), box)
                overlaps.append(iou(paste(cells, box, record.height, record.width), exact))
    assert len(overlaps) > 100 and np.mean(overlaps) > 0.95


def test_cells_are_exact_for_aligned_rectangles():
    polygon = [np.array([10, 10, 38, 10, 38, 66, 10, 66], np.float64)]
    box = np.array([10, 10, 66, 66], np.float32)
    mask = np.zeros((80, 80), np.uint8)
    mask[10:66, 10:38] = 1
    expected = np.zeros((56, 56), np.uint8)
    expected[:, :28] = 1
    np.testing.assert_array_equal(rasterise(to_shape(polygon, 80, 80), box), expected)
    np.testing.assert_array_equal(rasterise(to_shape(as_rle(mask), 80, 80), box), expected)
    half = np.array([24, 10, 52, 66], np.float32)  # a box that cuts through the object
    np.testing.assert_array_equal(rasterise(to_shape(polygon, 80, 80), half), expected)
    np.testing.assert_array_equal(rasterise(to_shape(as_rle(mask), 80, 80), half), expected)


def test_several_polygons_are_united():
    square = [0, 0, 40, 0, 40, 40, 0, 40]
    shape = to_shape([np.array(square, np.float64)] * 2, 50, 50)
    assert rasterise(shape, np.float32([0, 0, 40, 40]), 28).all()


@pytest.mark.parametrize("box", [(3, 4, 4, 5), (3.2, 4.3, 3.4, 4.5), (0, 0, 300, 2), (1000, 1000, 1010, 1010)])
def test_odd_boxes(box):
    pixel = np.zeros((30, 40), np.uint8)
    pixel[4, 3] = 1
    for segmentation in (as_rle(pixel), [np.array([3, 4, 4, 4, 4, 5, 3, 5], np.float64)]):
        cells = rasterise(to_shape(segmentation, 30, 40), np.float32(box))
        assert cells.shape == (56, 56)
        inside = 3 <= box[0] < 4
        assert cells.all() == inside and (cells.any() == inside or box == (0, 0, 300, 2))


def test_geometry_of_crops_and_polygons_agrees():
    mask = np.zeros((60, 80), np.uint8)
    cv2.fillPoly(mask, [np.array([[10, 10], [60, 15], [30, 50]])], 1)
    contour = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0].reshape(-1) + 0.5
    box = box_of(mask)
    crop, polygons = to_shape(as_rle(mask), 60, 80), to_shape([contour.astype(np.float64)], 60, 80)
    np.testing.assert_array_equal(crop.box, box)
    flipped_box = np.float32([80 - box[2], box[1], 80 - box[0], box[3]])
    for shape in (crop, polygons):
        cells = rasterise(shape, box)
        moved = scale_and_shift(shape, (0.5, 2.0), (-7.0, 11.0))
        np.testing.assert_array_equal(rasterise(moved, box * [0.5, 2, 0.5, 2] + [-7, 11, -7, 11]), cells)
        flipped = rasterise(flip_shape(shape, 80), flipped_box)
        assert iou(flipped, cells[:, ::-1]) > 0.99
    assert iou(rasterise(crop, box), rasterise(polygons, box)) > 0.93


def test_empty_and_absent_masks():
    empty = as_rle(np.zeros((5, 6), np.uint8))
    assert isinstance(to_shape(empty, 5, 6), CropMask)
    assert not rasterise(to_shape(empty, 5, 6), np.float32([0, 0, 6, 5])).any()
    assert to_shape(None, 5, 6) is None
    with pytest.raises(ValueError, match="no mask"):
        to_rle(None, 5, 6)


def test_broken_run_lengths_are_a_user_error():
    with pytest.raises(UserError, match="cannot be decoded"):
        decode_mask({"size": [5, 6], "counts": as_rle(np.ones((9, 9)))["counts"]}, 5, 6)


def test_rle_forms_decode_alike():
    mask = np.zeros((6, 7), np.uint8)
    mask[2:4, 1:5] = 1
    flat = mask.ravel(order="F")
    counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])).tolist()
    for segmentation in (as_rle(mask), {"size": [6, 7], "counts": counts}):
        np.testing.assert_array_equal(decode_mask(segmentation, 6, 7), mask)
        assert to_rle(segmentation, 6, 7)["size"] == [6, 7]
