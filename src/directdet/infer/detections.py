"""`Detections`: the result for one image, which drawing, COCO JSON and AP consume."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from directdet.common.errors import UserError
from directdet.common.text import shown
from directdet.data.masks import coco_mask
from directdet.infer.runtimes.library import import_library

if TYPE_CHECKING:
    from directdet.infer.pictures import Order, PictureLike

MASK_THRESHOLD = 0.5
_LISTED = 5  # rows of a repr


@dataclass(frozen=True, eq=False)
class Detection:
    """One of the objects found in an image.

    Attributes:
        box: float32 [4], xyxy in pixels of the original image.
        score, label, name: of its class; the name is the label's number where no names are known.
        mask, mask_box, image_size: see `Detections`; None without masks.
    """

    box: np.ndarray
    score: float
    label: int
    name: str
    mask: np.ndarray | None
    mask_box: np.ndarray | None
    image_size: tuple[int, int]

    def full_mask(self) -> np.ndarray:
        """The mask in image pixels, bool [H, W]; ValueError without masks."""
        if self.mask is None or self.mask_box is None:
            raise ValueError("this detection has no mask")
        full = np.zeros(self.image_size, bool)
        x, y, crop = paste_crop(self.mask, self.mask_box, self.image_size)
        full[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return full


@dataclass(repr=False)
class Detections:
    """The objects found in one image, in the network's order: highest score first.

    `len(found)`; `found[0]` and a loop give one `Detection` each; a slice, an array of bool [K] or one of indices gives
    `Detections`: `found[:10]`, `found[found.scores > 0.5]`.

    Attributes:
        boxes: float32 [K, 4], xyxy in pixels of the original image; pixel x covers [x, x + 1).
        scores: float32 [K].
        labels: int64 [K], contiguous 0..C-1.
        masks: float32 [K, M, M] (28 x 28 in the papers), foreground probability inside each mask box, or None.
        image_size: (height, width) of the original image.
        mask_boxes: float32 [K, 4], the boxes that the masks cover, as the network predicted them: they may reach beyond
            the image, where `boxes` end. None: the boxes themselves.
        classes, category_ids: by label; empty where they are not known.

    Raises:
        ValueError: shapes do not match, or boxes or scores are not finite.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    image_size: tuple[int, int]
    mask_boxes: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.boxes = np.asarray(self.boxes, np.float32)
        self.scores = np.asarray(self.scores, np.float32)
        self.labels = np.asarray(self.labels, np.int64)
        self.image_size = (int(self.image_size[0]), int(self.image_size[1]))
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.scores.ndim != 1 or self.labels.shape != (count,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape} and labels {self.labels.shape} do not "
                "match; expected [K, 4], [K] and [K]"
            )
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("boxes or scores contain NaN or infinite values")
        if count and self.labels.min() < 0:
            raise ValueError(f"negative label {self.labels.min()}")
        if self.masks is not None:
            self.masks = np.asarray(self.masks, np.float32)
            if self.masks.ndim != 3 or len(self.masks) != count:
                raise ValueError(f"masks {self.masks.shape} do not match {count} boxes; expected [K, M, M]")
            self.mask_boxes = self.boxes if self.mask_boxes is None else np.asarray(self.mask_boxes, np.float32)
            if self.mask_boxes.shape != (count, 4) or not np.isfinite(self.mask_boxes).all():
                raise ValueError(
                    f"mask_boxes {self.mask_boxes.shape} do not match {count} boxes; expected [K, 4], finite"
                )
        if min(self.image_size) < 1:
            raise ValueError(f"image_size {self.image_size} is empty; expected (height, width)")

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, key: SupportsIndex) -> Detection: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray | Sequence[bool] | Sequence[int]) -> Detections: ...
    def __getitem__(
        self, key: SupportsIndex | slice | np.ndarray | Sequence[bool] | Sequence[int]
    ) -> Detection | Detections:
        """See the class; IndexError where there is no such row, or not a bool for each."""
        if not isinstance(key, (slice, Sequence)) and not (isinstance(key, np.ndarray) and key.ndim):
            return self._one(operator.index(key))
        if not isinstance(key, slice):
            key = np.asarray(key)
            key = key if key.size or key.dtype == bool else key.astype(int)  # an empty list has no type
            if key.ndim != 1:
                raise IndexError(f"an index of shape {list(key.shape)}; give one dimension, as found.scores > 0.5 has")
        masks, mask_boxes = (None if one is None else one[key] for one in (self.masks, self.mask_boxes))
        boxes, scores, labels = self.boxes[key], self.scores[key], self.labels[key]
        return replace(self, boxes=boxes, scores=scores, labels=labels, masks=masks, mask_boxes=mask_boxes)

    def __iter__(self) -> Iterator[Detection]:
        return map(self._one, range(len(self)))

    def _one(self, row: int) -> Detection:
        if not -len(self) <= row < len(self):
            raise IndexError(f"detection {row} of {len(self)}")
        mask, mask_box = (None if one is None else one[row] for one in (self.masks, self.mask_boxes))
        label = int(self.labels[row])
        score, name = float(self.scores[row]), self._name(label)
        return Detection(self.boxes[row], score, label, name, mask, mask_box, self.image_size)

    @property
    def names(self) -> list[str]:
        """The class names of all detections; labels as text where no names are known."""
        return [self._name(int(label)) for label in self.labels]

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)

    def __repr__(self) -> str:
        height, width = self.image_size
        masks = "" if self.masks is None else ", with masks"
        lines = [f"{len(self)} detection{'s' * (len(self) != 1)} in a picture of {width} x {height} pixels{masks}"]
        for one in self[:_LISTED]:
            box = ", ".join(f"{value:.1f}" for value in one.box)
            lines.append(f"  {shown(one.name)} {one.score:.2f} at [{box}]")
        if len(self) > _LISTED:
            lines.append(f"  and {len(self) - _LISTED} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from directdet.infer.detections_html import to_html

        return to_html(self)

    def above(self, score: float | Sequence[float], labels: Sequence[int] | None = None) -> Detections:
        """The detections with at least `score`, one for all or one for each label, and, if `labels` are given, with one
        of these labels."""
        least = np.asarray(score, np.float32)
        keep = self.scores >= (least[self.labels] if least.ndim else least)
        if labels is not None:
            keep &= np.isin(self.labels, labels)
        return self[keep]

    def relabelled(self, order: np.ndarray, classes: Sequence[str], category_ids: Sequence[int]) -> Detections:
        """The same detections with other labels.

        Args:
            order: the new label of every label, int64 [C].
            classes, category_ids: by the new labels.
        """
        labels = order[self.labels]
        return replace(self, labels=labels, classes=tuple(classes), category_ids=tuple(category_ids))

    def without_masks(self) -> Detections:
        """The same detections, boxes only."""
        return replace(self, masks=None, mask_boxes=None)

    def draw(self, picture: PictureLike, *, scores: bool = True, order: Order = "bgr") -> np.ndarray:
        """A copy of the picture with boxes, masks and class names on it.

        Args:
            picture: the one they were found in, in any form that a `Detector` of 8-bit RGB takes; of other pictures
                `preprocess.pixels.drawable` makes one.
            scores: write them after the names.
            order: of the channels of an array that is given, and of the result.

        Returns:
            uint8 [h, w, 3].

        Raises:
            UserError: it cannot be read, or has another size.
        """
        from directdet.infer.draw import draw
        from directdet.infer.pictures import to_array
        from directdet.infer.preprocess import Preprocess

        image = to_array(picture, Preprocess(self.image_size), order)
        if image.shape[:2] != self.image_size:
            sizes = [f"{width} x {height}" for height, width in (image.shape[:2], self.image_size)]
            raise UserError(f"a picture of {sizes[0]} pixels: these detections are of one of {sizes[1]}; give that one")
        drawn = draw(image, self, self.classes, scores)
        return drawn if order == "bgr" else np.ascontiguousarray(drawn[:, :, ::-1])

    def mask_crop(self, index: int) -> tuple[int, int, np.ndarray]:
        """Mask of one object inside its box and the image.

        Returns:
            (x, y, crop): crop is bool [h, w], and its top left pixel is pixel (x, y) of the image. It may be empty.
        """
        if self.masks is None or self.mask_boxes is None:
            raise ValueError("these detections have no masks")
        return paste_crop(self.masks[index], self.mask_boxes[index], self.image_size)

    def mask_crops(self) -> list[tuple[int, int, np.ndarray]] | None:
        """`mask_crop` of every object, to compute them only once; None without masks."""
        return None if self.masks is None else [self.mask_crop(index) for index in range(len(self))]

    def full_masks(self) -> np.ndarray:
        """All masks in image pixels, bool [K, H, W]. Takes K * H * W bytes; `mask_crop` takes less."""
        full = np.zeros((len(self), *self.image_size), bool)
        for index in range(len(self)):
            x, y, crop = self.mask_crop(index)
            full[index, y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return full

    def to_coco(
        self,
        image_id: int,
        category_ids: Sequence[int] | None = None,
        crops: list[tuple[int, int, np.ndarray]] | None = None,
    ) -> list[dict[str, Any]]:
        """COCO result entries (`bbox` is xywh; with masks, `segmentation` is a compressed RLE).

        Args:
            image_id: the id of this image in the annotation file.
            category_ids: label -> category id in the annotation file; None: the detections' own.
            crops: the result of `mask_crops`, if it is already known.
        """
        ids = self.category_ids if category_ids is None else category_ids
        if len(self) and not len(ids):
            raise ValueError("these detections know no category ids; give category_ids")
        results = []
        for index, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            x0, y0, x1, y1 = (float(value) for value in box)
            entry: dict[str, Any] = {
                "image_id": int(image_id),
                "category_id": int(ids[int(label)]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(score),
            }
            if self.masks is not None:
                crop = self.mask_crop(index) if crops is None else crops[index]
                entry["segmentation"] = encode_crop(*crop, self.image_size)
            results.append(entry)
        return results

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, with masks bool [K, H, W], and class names in `data["class_name"]`.

        Raises:
            MissingLibraryError: supervision is not installed.
        """
        supervision = import_library("supervision", "supervision", "pip install supervision")
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            mask=None if self.masks is None else self.full_masks(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_pandas(self) -> Any:
        """As a `pandas.DataFrame` with the columns name, label, score, x0, y0, x1, y1, a row for each detection.

        Raises:
            MissingLibraryError: pandas is not installed.
        """
        pandas = import_library("pandas", "pandas", "pip install pandas")
        columns: dict[str, Any] = {"name": self.names, "label": self.labels, "score": self.scores}
        columns |= {name: self.boxes[:, number] for number, name in enumerate(("x0", "y0", "x1", "y1"))}
        return pandas.DataFrame(columns)


def paste_crop(mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Sample one mask at the centres of the image's pixels inside its box, then threshold at 0.5.

    The sampling is bilinear and exact, like Detectron2's `grid_sample` paste: the cells of the mask tile the box, and
    beyond the outermost cell centres the probability falls to zero. torchvision's paste rounds the box to whole pixels
    first, so its masks differ from these by up to a pixel along the outline.

    Args:
        mask: float32 [M, N] probabilities that cover the box.
        box: float32 [4], xyxy in pixels; parts beyond the image are cut off.
        image_size: (height, width).

    Returns:
        (x, y, crop bool [h, w]); the crop is empty if no pixel centre lies in the box.
    """
    height, width = image_size
    x0, y0, x1, y1 = (float(value) for value in box)
    left, right = _pixel_span(x0, x1, width)
    top, bottom = _pixel_span(y0, y1, height)
    if left >= right or top >= bottom:
        return left, top, np.zeros((max(0, bottom - top), max(0, right - left)), bool)
    # Bilinear interpolation on a grid is separable: first along the few rows of the mask, then between whole rows.
    # Matrix products would be shorter to write, but a BLAS library would wake all its threads for each small mask, on
    # cores that a network may be using.
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.float32)
    padded[1:-1, 1:-1] = mask
    column, across = _taps(x0, x1, left, right, mask.shape[1])
    row, down = _taps(y0, y1, top, bottom, mask.shape[0])
    wide = padded[:, column] + (padded[:, column + 1] - padded[:, column]) * across  # [M + 2, w]
    value = (wide[1:] - wide[:-1])[row]
    value *= down[:, None]
    value += wide[row]
    return left, top, value >= MASK_THRESHOLD


def _pixel_span(low: float, high: float, limit: int) -> tuple[int, int]:
    """First and one-past-last pixel whose centre lies in [low, high], within [0, limit)."""
    first = max(0, math.ceil(low - 0.5))
    last = min(limit, math.floor(high - 0.5) + 1)
    start = max(low, 0.0)
    if first >= last and min(high, limit) > start:
        # What the image shows of a box may be thinner than a pixel and contain no centre; take the pixel it lies in.
        first = math.floor(start)
        last = first + 1
    return min(first, limit), min(max(last, 0), limit)


def _taps(low: float, high: float, first: int, last: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel centre, the two cells to interpolate between, in a row with a zero cell at both ends: the index of
    the first, int64 [last - first], and the weight of the second, float32 [last - first]."""
    centre = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    if last - first == 1 and not low <= centre[0] <= high:
        centre[0] = (max(low, first) + min(high, last)) / 2
    position = (centre - np.float32(low)) * np.float32(cells / (high - low)) + np.float32(0.5)
    cell = np.clip(np.floor(position).astype(np.int64), 0, cells)
    return cell, position - cell


def encode_crop(x: int, y: int, crop: np.ndarray, image_size: tuple[int, int]) -> dict[str, Any]:
    """Compressed COCO RLE (`counts` is a str, as JSON needs) of a mask given only inside a crop.

    COCO's runs go down the columns, so the run lengths follow from the columns of the crop, shifted by the columns to
    its left; the mask of the whole image is never created.
    """
    height, width = image_size
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), bool)
    columns[:, 1:-1] = crop.T
    place, row = np.divmod(np.flatnonzero(columns[:, 1:] != columns[:, :-1]), crop.shape[0] + 1)
    changes = (x + place) * height + y + row
    if crop.shape[0] == height:
        # A run that continues from the bottom of one column to the top of the next ends and starts at the same place.
        changes = changes[(np.diff(changes, prepend=-1) != 0) & (np.diff(changes, append=-1) != 0)]
    bounds = np.empty(len(changes) + 2, np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, changes, height * width
    counts = bounds[1:] - bounds[:-1]
    if len(counts) > 1 and counts[-1] == 0:  # the mask ends with the image; COCO's own encoder writes no empty run
        counts = counts[:-1]
    encoded = coco_mask().frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
