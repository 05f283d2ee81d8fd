"""Result tables of times, and of how exact the exported formats are."""

from collections.abc import Callable
from typing import Any

from tables_cells import Cell, Figure, Row, Table, cell, cell_if_any, find, labelled

LABEL = cell("label")
SPEED_COLUMNS = {
    "ms": cell("end_to_end_ms", ".0f"),
    "speed-up": cell("speedup_end_to_end", ".2f"),
    "post-processing": cell("share_of_postprocessing", "fine share"),
    "of the matrix product": cell("share_of_matrix_product", "share"),
    "box AP": cell_if_any("ap/AP_box", "percent"),
}
ONE_STAGE = {
    "torchvision/fp32": "torchvision, eager",
    "torch/fp32": "directdet, eager",
    "onnxruntime/fp32": "ONNX Runtime, fp32",
    "openvino/fp32": "OpenVINO, fp32",
    "openvino/bf16": "OpenVINO, bf16",
    "onnxruntime/int8": "ONNX Runtime, int8",
    "openvino/int8": "OpenVINO, int8",
}
TWO_STAGE = {
    "torchvision/fp32": "torchvision, eager, 1000 proposals",
    "torch/fp32": "directdet, eager, 1000 proposals",
    "onnxruntime/fp32": "ONNX Runtime, fp32, 1000 proposals",
    "openvino/fp32": "OpenVINO, fp32, 1000 proposals",
    "openvino/fp32/300": "OpenVINO, fp32, 300 proposals",
    "openvino/bf16/300": "OpenVINO, bf16, 300 proposals",
}

OPENINGS = {
    "before": "directdet before, every time",
    "pycocotools": "pycocotools, every time",
    "first": "directdet, the first time",
    "later": "directdet, later",
}
LOADERS = {
    "torchvision_pil": "torchvision's `lsj` preset, PIL",
    "torchvision_tensor": "torchvision's `lsj` preset, tensors",
    "before": "directdet before",
    "directdet": "directdet",
    "decode": "OpenCV's decoding alone",
}
SCORING = {
    "boxes, pycocotools": "AP of boxes, pycocotools",
    "boxes, hotcoco": "AP of boxes, hotcoco",
    "masks, pycocotools": "AP of masks, pycocotools",
    "masks, hotcoco": "AP of masks, hotcoco",
    "run lengths": "masks of 28x28 cells to run lengths of the picture",
    "report": "what a report shows beside AP",
    "comparison": "two models compared, boxes, 100 draws",
}
WORKERS = {"worker, before": "before, forked", "worker, fork": "forked", "worker, spawn": "spawned"}


SMALL = {"torch": "PyTorch, eager", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def small_rows(content: Any) -> list[Row]:
    """A row for each detector and runtime of scripts/speed_small.py."""
    rows = []
    for name, row in content["rows"].items():
        detector, _, rest = name.partition("/")
        runtime, _, form = rest.partition(", ")
        words = {"": "", "all": ", masks of all slots", "sure": ", scores from 0.3 on"}[form]
        rows.append({**row, "label": f"{detector}, {SMALL[runtime]}{words}"})
    return rows


def slim_rows(content: Any) -> list[Row]:
    """A row for each recipe and form of scripts/train_step_slim.py."""
    rows = []
    for name, row in content["rows"].items():
        recipe, _, form = name.partition(", ")
        rows.append({**row, "label": f"`{recipe}`, {form}"})
    return rows


def speed(file: str, model: str, title: str, labels: dict[str, str], masks: bool = False) -> Table:
    """One detector of scripts/speed.py."""
    columns = {title: LABEL, **SPEED_COLUMNS}
    if masks:
        columns["mask AP"] = cell_if_any("ap/AP_mask", "percent")
    return Table((file,), labelled({f"{model}/{name}": label for name, label in labels.items()}), columns)


def matrix_rows(content: Any) -> list[Row]:
    """A row for each detector with its cells by format and precision."""
    rows: dict[str, Row] = {}
    for name, result in content["cells"].items():
        detector, _, kind = name.partition("/")
        rows.setdefault(detector, {"label": detector})[kind] = result
    return list(rows.values())


def differences(kind: str) -> Cell:
    """A column with the largest differences of boxes and scores in any runtime; FAILED where a cell did not pass."""

    def text(row: Row) -> str:
        if not row[kind]["passed"]:
            return "FAILED"
        runtimes = row[kind]["runtimes"].values()
        box, score = (max(one[what] for one in runtimes) for what in ("box", "score"))
        return f"{box:.0e} px, {score:.0e}"

    return text


def fewest_counted(content: Any) -> str:
    """The fewest detections that count in a cell of the matrix."""
    return str(min(one["counted"] for cell in content["cells"].values() for one in cell["runtimes"].values()))


def unmatched(precision: str) -> Figure:
    """How many detections of the matrix went unmatched in a precision, of all that count: 18 of 14287."""

    def text(content: Any) -> str:
        cells = [one for name, one in content["cells"].items() if name.endswith(f"/{precision}")]
        runtimes = [one for result in cells for one in result["runtimes"].values()]
        missing = sum(round(one["counted"] * (1 - one["matched"])) for one in runtimes)
        return f"{missing} of {sum(one['counted'] for one in runtimes)}"

    return text


def small_detections(content: Any) -> str:
    """The least and the most detections of a picture of the demo: 45 to 69."""
    found = content["rows"]["demo/torch"]["detections"]
    return f"{min(found)} to {max(found)}"


def coco_mini_counted(content: Any) -> str:
    """Detections that count, and the matched ones among them where they are not all."""
    pictures = find(content, "verification/pictures")
    total, matched = (sum(one[key] for one in pictures) for key in ("counted", "matched"))
    return str(total) if matched == total else f"{matched} of {total}"


def prepare_ms(content: Any) -> str:
    """The least and the most milliseconds that preparing a picture takes: 0.4 to 0.6."""
    times = [row["prepare_ms"] for row in content["rows"].values()]
    return f"{min(times):.1f} to {max(times):.1f}"


def report_by_ap(content: Any) -> str:
    """How many times as long as hotcoco's AP of boxes the figures of a report take."""
    return f"{find(content, 'rows/report/seconds') / find(content, 'rows/boxes, hotcoco/seconds'):.1f}"


def annotation_rows(workers: bool) -> Callable[[Any], list[Row]]:
    """The rows of scripts/annotations_size.py that are of a loader's workers, or the others."""
    labels = WORKERS if workers else OPENINGS

    def rows(content: Any) -> list[Row]:
        kinds = {name: row for name, row in content["rows"].items() if name.startswith("worker") == workers}
        return labelled(labels)({"rows": kinds})

    return rows


def loader_rows(content: Any) -> list[Row]:
    """The rows of scripts/loader_rate.py but those that the text has: shards, and decoding of larger pictures."""
    told = ("directdet_shards", "large_whole", "large_reduced")
    return labelled(LOADERS)({"rows": {name: row for name, row in content["rows"].items() if name not in told}})


TABLES = {
    "annotations_size": Table(
        ("annotations_size",),
        annotation_rows(workers=False),
        {
            "annotations of COCO's size": LABEL,
            "seconds": cell("seconds", ".1f"),
            "of the processor": cell("cpu_seconds", ".1f"),
            "peak memory, MB": cell("peak_mb", ".0f"),
        },
    ),
    "annotations_workers": Table(
        ("annotations_size",),
        annotation_rows(workers=True),
        {
            "a worker's own memory, MB": LABEL,
            "after a tenth of an epoch": cell("private_mb_tenth", ".0f"),
            "at its end": cell("private_mb_last", ".0f"),
        },
    ),
    "loader_rate": Table(
        ("loader_rate",),
        loader_rows,
        {
            "JPEG to batches at 448x448": LABEL,
            "pictures per second and core": cell("pictures_per_second", ".0f"),
            "times torchvision's (PIL)": cell_if_any("ratio", ".2f"),
        },
    ),
    "accuracy_speed": Table(
        ("accuracy_speed",),
        labelled(SCORING),
        {
            "180,000 detections": LABEL,
            "seconds": cell("seconds", ".1f"),
            "memory it adds, MB": cell("added_mb", ".0f"),
            "largest difference of a number": cell_if_any("largest_difference", "g"),
        },
    ),
    "benchmark_h200": Table(
        ("benchmark_ssd300_h200",),
        labelled(
            {"torch": "PyTorch, eager, fp32", "onnxruntime": "the artefact in ONNX Runtime, fp32"}, "cells", "runtime"
        ),
        {
            "SSD300 VGG-16": LABEL,
            "fps end to end": cell("fps_end_to_end", ".1f"),
            "fps device only": cell("fps_device_only", ".1f"),
            "device ms, median": cell("milliseconds/device/median", ".1f"),
            "ran on": cell("provider"),
        },
    ),
    "export_matrix": Table(
        ("export_matrix",),
        matrix_rows,
        {
            "detector": LABEL,
            **{
                f"{kind} {precision}": differences(f"{kind}/{precision}")
                for kind in ("onnx", "openvino", "tensorrt-rtx")
                for precision in ("fp32", "fp16")
            },
        },
    ),
    "speed_small": Table(
        ("speed_small_cpu",),
        small_rows,
        {
            "one thread, fp32": LABEL,
            "ms": cell("ms", ".1f"),
            "times eager PyTorch": cell("to_torch", ".2f"),
            "times it with all slots": cell("to_torch_all", ".2f"),
            "post-processing": cell_if_any("postprocessing", "share"),
        },
    ),
    "speed_ssd300": speed("speed_ssd300_cpu", "ssd300", "SSD300 VGG-16", ONE_STAGE),
    "speed_retinanet": speed("speed_retinanet_cpu", "retinanet", "RetinaNet R50-FPN at 448", ONE_STAGE),
    "speed_mask_rcnn": speed("speed_mask_rcnn_cpu", "mask_rcnn", "Mask R-CNN R50-FPN at 448", TWO_STAGE, masks=True),
    "speed_mask_rcnn_xeon": Table(
        ("inference_cpu",),
        labelled(
            {
                "torchvision eager": "torchvision, eager",
                "directdet eager": "directdet, eager",
                "onnxruntime": "ONNX Runtime",
                "openvino": "OpenVINO",
            }
        ),
        {
            "Mask R-CNN R50-FPN at 448, random weights": LABEL,
            "ms, median": cell("median_ms", ".0f"),
            "speed-up, median": cell("speedup", ".2f"),
            "of each round": lambda row: ", ".join(f"{one:.2f}" for one in row["speedups"]),
        },
    ),
    "video": Table(
        ("video_bottle-detection_cpu", "video_one-by-one-person-detection_cpu"),
        lambda *contents: [
            {**content["rows"], "label": label}
            for content, label in zip(
                contents, ("bottle-detection, 640x360", "one-by-one-person-detection, 768x432"), strict=True
            )
        ],
        {
            "video": LABEL,
            "network alone, fps": cell("device_alone/fps", ".1f"),
            "one step after another": cell("one_after_another/fps", ".1f"),
            "pipelined": cell("pipelined/fps", ".1f"),
            "of the network alone": cell("pipelined/share", "share"),
        },
    ),
    "video_libraries": Table(
        ("video_one-by-one-person-detection_rtmdet_nano_cpu",),
        labelled(
            {
                "device_alone": "the network alone",
                "one_after_another": "one step after another",
                "pipelined": "pipelined, PyAV",
                "pipelined_opencv": "pipelined, OpenCV",
                "before": "pipelined, before PyAV: through a pipe and an AVI file",
            }
        ),
        {
            "": LABEL,
            "fps": cell("fps", ".1f"),
            "of the network alone": cell("share", "share"),
            "processor time a frame, ms": cell("cpu_ms", ".1f"),
            "of which the network": cell("cpu_share", "share"),
        },
    ),
    "roi_pool": Table(
        ("roi_pool_cpu",),
        labelled(
            {
                f"{runtime}, {count}, {form}": f"{count}, {title}{words}"
                for count in (50, 300, 1000)
                for runtime, title, forms in (
                    ("onnxruntime", "ONNX Runtime", {"at once": ", all at once", "in turn": ", ten at a time"}),
                    ("openvino", "OpenVINO", {"at once": ", all at once", "in turn": ", ten at a time"}),
                    ("torch", "PyTorch", {"bag": ""}),
                )
                for form, words in forms.items()
            }
        ),
        {
            "RoIs": LABEL,
            "ms": cell("median_ms", ".1f"),
            "times as fast": cell_if_any("speedup", ".2f"),
            "MiB": cell("mib", ".0f"),
            "share of the memory": cell("share_of_memory", ".2f"),
        },
    ),
    "train_step_slim": Table(
        ("train_step_slim_cpu",),
        slim_rows,
        {
            "a step": LABEL,
            "ms": cell("median_ms", ".0f"),
            "times as fast": cell("speedup", ".2f"),
            "mean loss differs by": cell("loss_difference", "fine share"),
            "a single one by up to": cell("largest_loss_difference", "fine share"),
        },
    ),
    "train_step": Table(
        ("train_step_cpu",),
        labelled(
            {
                "torchvision": "torchvision",
                "directdet": "directdet",
                "directdet, channels last": "directdet, channels last",
                "directdet, fixed BN": "directdet, fixed BN",
                "backbone and FPN at 448, live BN": "backbone and FPN alone at 448, live BN",
                "backbone and FPN at 448, fixed BN": "backbone and FPN alone at 448, fixed BN",
                "backbone and FPN at 448, fixed BN, stem and stage 1 frozen": "the same, stem and first stage frozen",
            }
        ),
        {
            "forward and backward": LABEL,
            "s": cell("median_s", ".2f"),
            "of torchvision's": cell_if_any("to_torchvision", ".2f"),
            "of live BN's": cell_if_any("to_live", ".2f"),
        },
    ),
}

# Figures of the prose that are made of more than one figure of a file, or in another unit.
FIGURES: dict[str, tuple[str, Figure]] = {
    "small_detections": ("speed_small_cpu", small_detections),
    "report_by_ap": ("accuracy_speed", report_by_ap),
    "unmatched_fp32": ("export_matrix", unmatched("fp32")),
    "unmatched_fp16": ("export_matrix", unmatched("fp16")),
    "fewest_counted": ("export_matrix", fewest_counted),
    "coco_mini_counted": ("coco_mini_r50_cpu", coco_mini_counted),
    "prepare_ms_ssd300": ("speed_ssd300_cpu", prepare_ms),
    "prepare_ms_retinanet": ("speed_retinanet_cpu", prepare_ms),
}
