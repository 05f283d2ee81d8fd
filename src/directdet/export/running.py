"""How an artefact is run without directdet, for its README.md: in Python, in C++, and by NVIDIA's Triton server."""

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import onnx

from directdet.common.files import write_text_atomic

TRITON_FILE = "config.pbtxt"
_CPP_FILES = ("run_onnx.cpp", "CMakeLists.txt")
_TRITON_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int32": "TYPE_INT32"}
_DELAY = 2000  # microseconds that Triton waits for a batch to fill up


def write_programs(folder: Path, meta: dict[str, Any]) -> None:
    """Put beside an ONNX model what README.md tells about: the C++ program, and Triton's configuration."""
    if meta["kind"] != "onnx" or not _takes_rgb(meta):
        return
    for name in _CPP_FILES:
        with resources.as_file(resources.files("directdet.export") / "cpp" / name) as source:
            shutil.copyfile(source, folder / name)
    write_text_atomic(folder / TRITON_FILE, triton_config(meta, _outputs(folder / meta["file"])))


def running(meta: dict[str, Any]) -> list[str]:
    """The lines of README.md, from the content of meta.json; none for engines, which other libraries hardly take, nor
    for pictures that are not 8-bit RGB, of which each sensor's software has its own reader."""
    if meta["kind"] not in _OPEN or not _takes_rgb(meta):
        return []
    lines = ["## Run it in Python", "", "In this folder, with numpy, OpenCV and the runtime alone:", ""]
    lines += ["```python", *python_code(meta), "```", ""]
    if meta["kind"] != "onnx":
        return lines
    file = meta["file"]
    return [
        *lines,
        "## Run it in C++",
        "",
        "`run_onnx.cpp` needs ONNX Runtime, OpenCV and nlohmann-json. `ONNXRUNTIME_ROOT` is the folder of an ONNX "
        "Runtime release. Without a score the program keeps those that the export found best, or from 0.3 on.",
        "",
        "```sh",
        "cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DONNXRUNTIME_ROOT=/path/to/onnxruntime",
        "cmake --build build",
        "build/run_onnx . picture.jpg 0.3 found.png",
        "```",
        "",
        "## Serve it with Triton",
        "",
        f"`{TRITON_FILE}` describes the model for NVIDIA's Triton Inference Server, which takes the input and gives "
        "the outputs described above:",
        "",
        "```sh",
        "mkdir -p models/detector/1",
        f"cp {TRITON_FILE} models/detector/",
        f"cp {file} models/detector/1/model.onnx",
        "tritonserver --model-repository=models",
        "```",
        "",
    ]


def _takes_rgb(meta: dict[str, Any]) -> bool:
    rules = meta["preprocess"]
    return len(rules["mean"]) == 3 and rules.get("dtype", "uint8") == "uint8" and not rules.get("upright", False)


# ---- Python

_OPEN: dict[str, tuple[str, str, str]] = {  # by kind: the library, how the model is opened, how it is run
    "onnx": (
        "onnxruntime",
        'session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])',
        "{names} = session.run({outputs}, {{{input}: batch}})",
    ),
    "openvino": (
        "openvino",
        # Without the hint it computes in bf16 where the processor can.
        'network = openvino.compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})',
        "result = network({{{input}: batch}})\n{names} = (result[name] for name in {outputs})",
    ),
}

_PASTE = '''
def along(low, high, size, cells):
    """Of one axis: the pixels whose centres lie in the box, the cell before each centre, the next cell's weight."""
    pixels = np.arange(max(0, math.ceil(low - 0.5)), min(size, math.floor(high - 0.5) + 1))
    place = (pixels + 0.5 - low) / (high - low) * cells + 0.5
    cell = np.clip(place.astype(int), 0, cells)
    return pixels, cell, place - cell


def pixels_of(mask, box):
    """The object's pixels, bool [height, width]: bilinear between the centres of the cells that tile the box."""
    x, column, across = along(box[0], box[2], width, mask.shape[1])
    y, row, down = along(box[1], box[3], height, mask.shape[0])
    cells = np.pad(mask, 1)  # zero beyond the outermost centres
    lines = cells[:, column] * (1 - across) + cells[:, column + 1] * across
    pixels = np.zeros((height, width), bool)
    pixels[np.ix_(y, x)] = lines[row] * (1 - down)[:, None] + lines[row + 1] * down[:, None] >= 0.5
    return pixels

'''


def python_code(meta: dict[str, Any]) -> list[str]:
    """The lines of a program that finds objects in picture.jpg, with the numbers of this artefact in it."""
    library, opened, ran = _OPEN[meta["kind"]]
    rules, masks = meta["preprocess"], "masks" in meta["outputs"]
    height, width = rules["size"]
    outputs = '["' + '", "'.join(meta["outputs"]) + '"]'
    words = {"file": meta["file"], "input": f'"{meta["input"]["name"]}"', "outputs": outputs}
    rows = meta["shapes"]["batch"]["min"]
    lines = ["import json", *["import math"] * masks, "", "import cv2", "import numpy as np", f"import {library}", ""]
    lines += [
        'with open("meta.json", encoding="utf-8") as file:',
        '    classes = json.load(file)["classes"]',
        opened.format(**words),
        "",
        'picture = cv2.imread("picture.jpg", cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)',
        "height, width = picture.shape[:2]",
    ]
    if rules["warp"]:
        lines.append(f"new_height, new_width = {height}, {width}")
    else:
        lines += [
            f"scale = min({height} / height, {width} / width)",
            f"new_height = min({height}, max(1, int(height * scale + 0.5)))",
            f"new_width = min({width}, max(1, int(width * scale + 0.5)))",
        ]
    lines.append("small = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)")
    if meta["input"]["dtype"] == "uint8":
        padding = ", ".join(map(str, meta["contract"]["padding_value"]))
        lines += [
            f"canvas = np.empty(({height}, {width}, 3), np.uint8)",
            f"canvas[:] = ({padding})  # the padding",
            "canvas[:new_height, :new_width] = small",
        ]
    else:
        lines += [
            f"mean, std = np.array({rules['mean']}), np.array({rules['std']})",
            f"canvas = np.zeros((3, {height}, {width}), np.float32)",
            "canvas[:, :new_height, :new_width] = ((small[:, :, ::-1] - mean) / std).transpose(2, 0, 1)",
        ]
    many = f"batch = np.repeat(canvas[None], {rows}, axis=0)  # no fewer at once; the first one's results are used"
    lines += ["batch = canvas[None]" if rows == 1 else many, ""]
    lines += ran.format(names=", ".join(meta["outputs"]), **words).splitlines()
    lines += _PASTE.splitlines() if masks else [""]
    lines += [
        *[""] * masks,
        "found = []",
        "for row in range(num[0, 0]):",
        "    box = boxes[0, row] / np.array([new_width / width, new_height / height] * 2, np.float32)",
        "    x0, y0, x1, y1 = np.clip(box, 0, np.array([width, height] * 2, np.float32)).tolist()",
        "    if x0 < x1 and y0 < y1:  # otherwise it lies in the padding",
        f"        mask = {'pixels_of(masks[0, row], box.tolist())' if masks else None}",
        "        found.append((classes[labels[0, row]], float(scores[0, row]), (x0, y0, x1, y1), mask))",
        "for name, score, box, mask in found:",
        "    print(name, round(score, 3), box" + (', int(mask.sum()), "pixels")' if masks else ")"),
    ]
    return lines


# ---- Triton


def _outputs(model: Path) -> list[tuple[str, str, list[int]]]:
    """(name, type, shape) of every output of an ONNX file; -1 for a size that it leaves open."""
    kinds: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT32: "int32"}
    found = []
    for value in onnx.load(str(model), load_external_data=False).graph.output:
        tensor = value.type.tensor_type
        shape = [size.dim_value if size.dim_value > 0 else -1 for size in tensor.shape.dim]
        found.append((value.name, kinds[tensor.elem_type], shape))
    return found


def triton_config(meta: dict[str, Any], outputs: list[tuple[str, str, list[int]]]) -> str:
    """Triton's description of an ONNX artefact (`ModelConfig` as protobuf text).

    Triton leaves the batch out of the shapes, and batches by itself, where a model takes any number from one on
    (`max_batch_size` above 0). Other graphs get their whole shapes.

    Args:
        outputs: (name, type, shape) of each.
    """
    given, batch = meta["input"], meta["shapes"]["batch"]
    batches = batch["min"] == 1 < batch["max"]
    shape = [-1 if size is None else size for size in given["shape"]]
    lines = [
        "# For NVIDIA's Triton Inference Server. README.md says where it belongs, and what goes in and comes out.",
        'backend: "onnxruntime"',
        f"max_batch_size: {batch['max'] if batches else 0}",
        *_tensor("input", given["name"], given["dtype"], shape[batches:]),
        *(line for name, kind, size in outputs for line in _tensor("output", name, kind, size[batches:])),
    ]
    if batches:
        preferred = f"preferred_batch_size: [ {batch['opt']} ]"
        lines.append(f"dynamic_batching {{ {preferred} max_queue_delay_microseconds: {_DELAY} }}")
    return "\n".join(lines) + "\n"


def _tensor(where: str, name: str, kind: str, shape: list[int]) -> list[str]:
    dims = ", ".join(map(str, shape))
    return [f'{where} [ {{ name: "{name}" data_type: {_TRITON_TYPES[kind]} dims: [ {dims} ] }} ]']
