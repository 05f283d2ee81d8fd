"""A tiny artefact whose detections are known, and images on which they are right."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from directdet.data.dataset import Dataset
from directdet.data.records import AnnotatedObject, make_record
from directdet.infer.preprocess import Preprocess

CLASSES = ("person", "traffic light", "dog")
CATEGORY_IDS = (1, 10, 18)
BOXES = np.array([[10, 20, 60, 90], [30, 5, 90, 60], [0, 0, 0, 0]], np.float32)
SCORES = np.array([0.9, 0.6, 0.0], np.float32)
LABELS = np.array([0, 2, 0], np.int32)


def build_onnx(
    path: Path,
    size: tuple[int, int],
    batch: int | str = 1,
    masks: bool = True,
    dtype: str = "float32",
    factor: float = 0.0,
) -> None:
    """A graph that returns BOXES, SCORES + factor x the mean of the input, LABELS; with 0, nothing folds away."""
    rows = 1 if isinstance(batch, str) else batch
    values = {
        "num": np.full((rows, 1), 2, np.int32),
        "boxes": np.tile(BOXES, (rows, 1, 1)),
        "labels": np.tile(LABELS, (rows, 1)),
    }
    if masks:
        ramp = np.linspace(0, 1, 28, dtype=np.float32)
        values["masks"] = np.tile(np.broadcast_to(ramp, (28, 28)), (rows, 3, 1, 1))
    names = ["num", "boxes", "scores", "labels"] + (["masks"] if masks else [])
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_value") for name, value in values.items()
    ]
    constants.append(numpy_helper.from_array(np.tile(SCORES, (rows, 1)), "scores_value"))
    constants.append(numpy_helper.from_array(np.full(1, factor, np.float32), "factor"))
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Mul", ["column", "factor"], ["change"]),
        helper.make_node("Add", ["scores_value", "change"], ["scores"]),
    ]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    kinds = {"num": (TensorProto.INT32, [1]), "boxes": (TensorProto.FLOAT, [3, 4]), "scores": (TensorProto.FLOAT, [3])}
    kinds |= {"labels": (TensorProto.INT32, [3]), "masks": (TensorProto.FLOAT, [3, 28, 28])}
    for name in values:
        if isinstance(batch, str):  # repeat the constant along the batch
            shape = [1] * (values[name].ndim - 1)
            constants.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}_rest"))
            if not any(node.name == "rows" for node in nodes):
                nodes.append(helper.make_node("Shape", ["images"], ["rows"], name="rows", start=0, end=1))
            nodes.append(helper.make_node("Concat", ["rows", f"{name}_rest"], [f"{name}_repeat"], axis=0))
            nodes.append(helper.make_node("Tile", [f"{name}_value", f"{name}_repeat"], [name]))
        else:
            nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", *input_of(dtype, batch, size))],
        [helper.make_tensor_value_info(name, kinds[name][0], [batch, *kinds[name][1]]) for name in names],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def input_of(dtype: str, batch: int | str, size: tuple[int, int]) -> tuple[int, list[int | str]]:
    """ONNX's element type and shape."""
    if dtype == "uint8":
        return TensorProto.UINT8, [batch, *size, 3]
    return TensorProto.FLOAT, [batch, 3, *size]


def write_artefact(
    folder: Path,
    batch: int | str = 1,
    masks: bool = True,
    classes=CLASSES,
    ids=CATEGORY_IDS,
    dtype: str = "float32",
    batches: tuple[int, int, int] | None = None,
    factor: float = 0.0,
) -> Path:
    """An artefact folder as `directdet export` writes it, around `build_onnx`."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = Preprocess((96, 128))
    build_onnx(folder / "model.onnx", preprocess.size, batch, masks, dtype, factor)
    least, usual, most = batches or (1, 1, 8) if isinstance(batch, str) else (batch,) * 3
    meta = {
        "format": 2,
        "kind": "onnx",
        "file": "model.onnx",
        "files": {"model.onnx": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()},
        "classes": list(classes),
        "category_ids": list(ids),
        "preprocess": preprocess.to_dict(),
        "preprocess_checksum": preprocess.checksum(dtype),
        "precision": "fp32",
        "input": {
            "name": "images",
            "shape": [None if isinstance(size, str) else size for size in input_of(dtype, batch, preprocess.size)[1]],
            "dtype": dtype,
            "layout": "NHWC" if dtype == "uint8" else "NCHW",
        },
        "shapes": {"batch": {"min": least, "opt": usual, "max": most}, "height": 96, "width": 128},
        "kept_fp32": [],
        "outputs": ["num", "boxes", "scores", "labels", "masks"],
        "built_for": None,
        "recipe": "tiny",
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def write_dataset(folder: Path) -> Dataset:
    """Three images of 192 x 256 on which the artefact is right: its boxes, doubled, are the ground truth."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(1, 4):
        path = folder / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (192, 256, 3), dtype=np.uint8))
        objects = [
            AnnotatedObject(
                annotation_id=10 * number + row,
                label=int(LABELS[row]),
                box=[2 * float(value) for value in BOXES[row]],
                area=float(4 * np.prod(BOXES[row, 2:] - BOXES[row, :2])),
            )
            for row in range(2)
        ]
        records.append(make_record(number, path, 256, 192, objects))
    return Dataset(folder, "val", "coco", CLASSES, CATEGORY_IDS, tuple(records))
