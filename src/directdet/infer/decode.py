"""Converting a network's raw outputs into `Detections` in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from directdet.common.errors import UserError
from directdet.infer.detections import Detections
from directdet.infer.preprocess import Placement

OUTPUT_NAMES = ("num", "boxes", "scores", "labels", "masks")
_DTYPES = (np.int32, np.float32, np.float32, np.int32, np.float32)


def check_raw(outputs: Sequence[np.ndarray], batch: int, source: str) -> tuple[np.ndarray, ...]:
    """A runtime's outputs, with types converted and shapes checked.

    Args:
        outputs: num [B, 1], boxes [B, K, 4], scores [B, K], labels [B, K] and, for mask models, masks [B, K, M, M].
        batch: B, the number of images in the batch.
        source: what to name in the error message.

    Raises:
        UserError: the graph returns something else, so it is not a directdet export.
    """
    if len(outputs) not in (4, 5):
        raise UserError(
            f"{source}: the model has {len(outputs)} outputs; expected 4 (num, boxes, scores, labels) or 5 with masks; "
            "use a model written by `directdet export`"
        )
    if not all(isinstance(value, np.ndarray) and value.dtype.kind in "fiub" for value in outputs):
        raise UserError(f"{source}: the model returns other things than numbers; use a model of `directdet export`")
    arrays = tuple(
        np.ascontiguousarray(value, dtype) for value, dtype in zip(outputs, _DTYPES[: len(outputs)], strict=True)
    )
    count = arrays[2].shape[1] if arrays[2].ndim == 2 else -1
    expected = ((batch, 1), (batch, count, 4), (batch, count), (batch, count))
    for name, array, shape in zip(OUTPUT_NAMES, arrays, expected, strict=False):
        if array.shape != shape:
            raise UserError(
                f"{source}: output {name!r} has shape {list(array.shape)}, expected {list(shape)}; "
                "use a model written by `directdet export`"
            )
    if len(arrays) == 5 and (arrays[4].ndim != 4 or arrays[4].shape[:2] != (batch, count)):
        raise UserError(
            f"{source}: output 'masks' has shape {list(arrays[4].shape)}, expected [{batch}, {count}, M, M]"
        )
    return arrays


def to_detections(raw: Sequence[np.ndarray], index: int, placement: Placement) -> Detections:
    """One image's detections.

    Boxes are scaled back to the original image and clipped to it. Boxes without any area left lie completely in the
    padding and are dropped. A mask covers the box as predicted, before it is clipped.

    Args:
        raw: num int32 [B, 1], boxes [B, K, 4] in canvas pixels, scores [B, K], labels [B, K], optional masks.
        index: which image of the batch.
        placement: where that image was placed on the canvas.

    Raises:
        UserError: the network returned NaN or infinite values.
    """
    count = int(raw[0][index, 0])
    if not 0 <= count <= raw[2].shape[1]:
        raise UserError(f"the network reports {count} detections in {raw[2].shape[1]} rows; export the model again")
    boxes = raw[1][index, :count].astype(np.float32)  # a copy: raw is not changed
    scores = raw[2][index, :count]
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UserError("the network returned NaN or infinite values; if it runs in fp16 or bf16, use fp32")
    predicted = boxes / np.array([placement.scale_x, placement.scale_y] * 2, np.float32)
    width, height = placement.original_width, placement.original_height
    boxes = np.clip(predicted, 0, np.array([width, height, width, height], np.float32))
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = raw[4][index, :count][keep] if len(raw) == 5 else None
    return Detections(
        boxes=boxes[keep],
        scores=scores[keep],
        labels=raw[3][index, :count][keep],
        masks=masks,
        image_size=(height, width),
        mask_boxes=None if masks is None else predicted[keep],
    )
