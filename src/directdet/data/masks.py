"""Object masks: exact decoding for evaluation, and a light form for training that can be scaled, moved and flipped."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.data.records import RLE, Segmentation

_SHIFT = 4  # cv2.fillPoly takes fixed-point coordinates; 4 bits are sixteenths of a pixel


@dataclass(frozen=True, eq=False)
class CropMask:
    """A mask of 0 and 1, uint8 [h, w], that covers ``box`` (float64 [4], xyxy in pixels of the image).

    Scaling and shifting the image changes only the box. Outside it the mask is empty.
    """

    mask: np.ndarray
    box: np.ndarray


# A mask in training: polygons, each float64 [P, 2] in pixels of the current image, or a crop with its box.
Shape = list[np.ndarray] | CropMask


def coco_mask() -> ModuleType:
    """pycocotools.mask, imported at the first mask: data with boxes only does not need it.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(f"masks and COCO's AP need pycocotools ({error}); pip install pycocotools") from None
    return mask


def to_rle(segmentation: Segmentation, height: int, width: int) -> RLE:
    """The mask as compressed COCO run lengths ({"size", "counts": bytes}), like pycocotools' annToRLE.

    Raises ValueError for None, and UserError for run lengths that cannot be decoded.
    """
    if segmentation is None:
        raise ValueError("the object has no mask")
    try:
        if isinstance(segmentation, dict):
            if isinstance(segmentation["counts"], list):
                return coco_mask().frPyObjects(segmentation, height, width)
            return segmentation
        polygons = [polygon.tolist() for polygon in segmentation]
        return coco_mask().merge(coco_mask().frPyObjects(polygons, height, width))
    except ValueError as error:
        raise UserError(f"segmentation: mask cannot be decoded: {error}") from None


def decode_mask(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """The mask as uint8 [height, width] of 0 and 1, exactly as pycocotools draws it; errors as :func:`to_rle`."""
    try:
        return coco_mask().decode(to_rle(segmentation, height, width))
    except ValueError as error:
        if segmentation is None:
            raise
        raise UserError(f"segmentation: mask cannot be decoded: {error}") from None


def to_shape(segmentation: Segmentation, height: int, width: int) -> Shape | None:
    """The training form of an object's mask in an image of ``height`` x ``width``; None if it has no mask."""
    if segmentation is None:
        return None
    if not isinstance(segmentation, dict):
        return [polygon.reshape(-1, 2) for polygon in segmentation]
    mask = decode_mask(segmentation, height, width)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return CropMask(np.zeros((1, 1), np.uint8), np.array([0.0, 0.0, 1.0, 1.0]))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    crop = np.ascontiguousarray(mask[top:bottom, left:right])
    return CropMask(crop, np.array([left, top, right, bottom], np.float64))


def scale_and_shift(shape: Shape, scale: tuple[float, float], shift: tuple[float, float]) -> Shape:
    """Move points x -> x * scale_x + shift_x, and y likewise; ``scale`` and ``shift`` are (x, y)."""
    if isinstance(shape, CropMask):
        return CropMask(shape.mask, shape.box * np.array(scale * 2) + np.array(shift * 2))
    return [points * np.array(scale) + np.array(shift) for points in shape]


def flip_shape(shape: Shape, width: float) -> Shape:
    """Mirror left and right in an image of ``width``."""
    if isinstance(shape, CropMask):
        x1, y1, x2, y2 = shape.box
        return CropMask(np.ascontiguousarray(shape.mask[:, ::-1]), np.array([width - x2, y1, width - x1, y2]))
    return [points * np.array([-1.0, 1.0]) + np.array([width, 0.0]) for points in shape]


def turn_shape(shape: Shape, height: float, width: float) -> Shape:
    """Turn by a quarter, counter-clockwise, with an image of ``height`` x ``width``: (x, y) -> (y, width - x)."""
    if isinstance(shape, CropMask):
        x1, y1, x2, y2 = shape.box
        turned = np.ascontiguousarray(np.rot90(shape.mask))
        return CropMask(turned, np.array([y1, width - x2, y2, width - x1]))
    return [points[:, ::-1] * np.array([1.0, -1.0]) + np.array([0.0, width]) for points in shape]


def draw_pixels(shape: Shape, box: np.ndarray) -> CropMask:
    """The part of a shape inside ``box`` (xyxy, same pixels) as whole pixels: all that the box touches.

    A pixel is 1 where its centre is in the box and in the mask; of polygons, where they cover at least half of it
    (measured on cells four times finer, since OpenCV widens polygons by half a cell).
    """
    left, top = (int(np.floor(value)) for value in box[:2])
    right, bottom = max(left + 1, int(np.ceil(box[2]))), max(top + 1, int(np.ceil(box[3])))
    height, width = bottom - top, right - left
    times = 1 if isinstance(shape, CropMask) else 4
    moved = scale_and_shift(shape, (float(times), float(times)), (-left * times - 0.5, -top * times - 0.5))
    drawn = _draw(moved, (height * times, width * times))
    if times > 1:
        drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = np.arange(top, bottom) + 0.5, np.arange(left, right) + 0.5
    drawn[(rows < box[1]) | (rows > box[3])] = 0
    drawn[:, (columns < box[0]) | (columns > box[2])] = 0
    return CropMask((drawn >= 128).astype(np.uint8), np.array([left, top, right, bottom], np.float64))


def rasterise(shape: Shape, box: np.ndarray, size: int = 56) -> np.ndarray:
    """The object's mask inside ``box`` (xyxy, same pixels as ``shape``), uint8 [size, size] of 0 and 1.

    The box is divided into size x size cells; a cell is 1 where the mask covers at least half of it (measured on cells
    four times finer).
    """
    fine = size * 4
    x1, y1, x2, y2 = (float(value) for value in box)
    # From image pixels to fine cells; in OpenCV the centre of a cell has integer coordinates, hence the half.
    scale = (fine / max(x2 - x1, 1e-6), fine / max(y2 - y1, 1e-6))
    moved = scale_and_shift(shape, scale, (-x1 * scale[0] - 0.5, -y1 * scale[1] - 0.5))
    drawn = _draw(moved, (fine, fine))
    cells = cv2.resize(drawn, (size, size), interpolation=cv2.INTER_AREA)  # the mean of each 4 x 4 block
    return (cells >= 128).astype(np.uint8)


def _draw(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    return _draw_crop(shape, size) if isinstance(shape, CropMask) else _draw_polygons(shape, size)


def _draw_polygons(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The union of polygons in cells, uint8 [size] of 0 and 255; the centre of a cell has whole coordinates."""
    drawn = np.zeros(size, np.uint8)
    limit = 2.0**30 / 2**_SHIFT  # far outside the canvas; keeps the fixed-point numbers within 32 bits
    for points in polygons:  # one by one: if drawn together, overlaps would cancel out
        fixed = np.rint(np.clip(points, -limit, limit) * 2**_SHIFT).astype(np.int32)
        cv2.fillPoly(drawn, [fixed], 255, lineType=cv2.LINE_8, shift=_SHIFT)
    return drawn


def _draw_crop(crop: CropMask, size: tuple[int, int]) -> np.ndarray:
    """Sample a crop whose box is in cells (minus the half), uint8 [size] of 0 and 255."""
    height, width = crop.mask.shape
    x1, y1, x2, y2 = crop.box
    step_x, step_y = width / (x2 - x1), height / (y2 - y1)
    # Fine cell i, whose centre is i here, has the crop coordinate (i - x1) * step - 0.5.
    matrix = np.array([[step_x, 0.0, -x1 * step_x - 0.5], [0.0, step_y, -y1 * step_y - 0.5]])
    # Nearest, since a mask pixel is a square: interpolation would round the corners of small objects.
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(crop.mask * 255, matrix, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_CONSTANT)
