"""Result tables that stand next to the papers': their comparisons scaled down, times, memory and sizes."""

import statistics
from typing import Any

from tables_cells import Cell, Figure, Row, Table, cell, find, labelled, written
from tables_training import LABEL, steps

TABLE2 = labelled({"affine": "affine", "sync": "SyncBN (one process: live BN of 2 images)", "fixed": "fixed"})
TABLE2_COLUMNS = {
    "BN in fine-tuning (Table 2)": LABEL,
    "steps": steps,
    "box AP": cell("box_ap", "percent"),
    "AP50": cell("box_ap50", "percent"),
    "mask AP": cell("mask_ap", "percent"),
    "the paper's box AP": cell("paper/box_ap", ".1f"),
}
RATES = {"lr001": "0.001", "lr01": "0.01", "lr05": "0.05"}


def by_rate(content: Any) -> list[Row]:
    """ScratchDet's Table 1: a row for each place of BN, with the result at every learning rate."""
    places = {"none": "no BN", "head": "BN in the head", "backbone": "BN in the backbone", "both": "BN in both"}
    found = {row["key"]: row for row in content["rows"]}
    return [{"label": label, **{rate: found[f"{place}_{rate}"] for rate in RATES}} for place, label in places.items()]


def voc_map(rate: str) -> Cell:
    """A column with the mAP at a learning rate, or that the loss was not finite."""
    return lambda row: (
        "loss not finite" if "diverged" in row[rate] else written(row[rate]["voc"]["mAP_11point"], "percent")
    )


def table7_rows(content: Any) -> list[Row]:
    """Our times next to the paper's, as ratios to SyncBN."""
    labels = {
        "ImageNet": "ImageNet's affine BN",
        "Scratch (GN)": "from scratch, GN",
        "Scratch (SyncBN)": "from scratch, SyncBN (one process: live BN)",
        "Direct": "direct, fixed BN",
    }
    paper = {row["method"]: row for row in content["paper"]["rows"]}
    sync = paper["Scratch (SyncBN)"]
    return [
        {**row, **{f"paper_{key}": paper[row["method"]][key] / sync[key] for key in ("train_s_per_iter", "fps")}}
        for row in labelled(labels, key="method")(content)
    ]


def fps(path: str) -> Cell:
    """A column with frames per second from milliseconds."""
    return lambda row: f"{1000 / row[path]:.1f}"


def landscape_rows(content: Any) -> list[Row]:
    """Each run's loss, gradient norm and fluctuation, in few figures."""
    return [
        {
            "label": run["label"],
            "norm": run["norm"][0],
            "largest": max(run["fluctuation"]),
            "later": statistics.fmean(run["fluctuation"][20:]),
            "loss": statistics.fmean(run["loss"][-10:]),
        }
        for run in content["runs"]
    ]


def root_resnet_rows(content: Any) -> list[Row]:
    """The ten first layers, named as in the file."""
    return list(content["rows"].values())


def plan_rows(content: Any) -> list[Row]:
    """The settings of a plan; the chosen one is marked."""
    plan = content["plan"]
    return [
        {**setting, "chosen": "yes" if setting == plan["chosen"] else "", "fits": "yes" if setting["fits"] else "no"}
        for setting in plan["settings"]
    ]


def gibibytes(path: str) -> Cell:
    """A column of bytes in GiB."""
    return lambda row: f"{row[path] / 2**30:.2f}"


def milliseconds(path: str) -> Figure:
    """Seconds of a file in whole milliseconds."""
    return lambda content: f"{1e3 * find(content, path):.0f}"


TABLES = {
    "direct_table2_gpu": Table(("reproduce_direct_table2_h200",), TABLE2, TABLE2_COLUMNS),
    "scratchdet_table1": Table(
        ("reproduce_scratchdet_table1",),
        by_rate,
        {
            "ScratchDet's Table 1: mAP": LABEL,
            **{f"learning rate {text}": voc_map(rate) for rate, text in RATES.items()},
        },
    ),
    "scratchdet_table1_gpu": Table(
        ("reproduce_scratchdet_table1_h200",),
        labelled(
            {
                "none_lr001": "no BN, learning rate 0.001",
                "head_lr01": "BN in the head, 0.01",
                "both_lr05": "BN in both, 0.05",
            }
        ),
        {
            "ScratchDet's Table 1": LABEL,
            "steps": steps,
            "s/step": cell("phases/0/seconds_per_step", ".2f"),
            "loss of the last steps": cell("phases/0/last_loss", ".1f"),
            "mAP": cell("voc/mAP_11point", "fine percent"),
            "the paper's mAP": cell("paper/map", ".1f"),
        },
    ),
    "direct_table7": Table(
        ("reproduce_direct_table7",),
        table7_rows,
        {
            "time by normalisation (Table 7)": LABEL,
            "s/iteration": cell("medians/seconds", ".3f"),
            "to SyncBN": cell("to_sync/seconds", ".2f"),
            "the paper, to SyncBN": cell("paper_train_s_per_iter", ".2f"),
            "fps, PyTorch": cell("medians/fps", ".1f"),
            "fps to SyncBN": cell("to_sync/fps", ".2f"),
            "the paper, fps to SyncBN": cell("paper_fps", ".2f"),
        },
    ),
    "landscape": Table(
        ("landscape_small_cpu",),
        landscape_rows,
        {
            "run": LABEL,
            "gradient norm at the start": cell("norm", ".0f"),
            "largest fluctuation": cell("largest", ".0f"),
            "mean fluctuation from step 20 on": cell("later", ".1f"),
            "mean loss of the last ten steps": cell("loss", ".1f"),
        },
    ),
    "root_resnet": Table(
        ("root_resnet",),
        root_resnet_rows,
        {
            "ScratchDet's Table 2: first layer of ResNet-18": cell("first_layer"),
            "PyTorch, fps": fps("torch_ms"),
            "to the first": cell("torch_ratio", ".2f"),
            "ONNX Runtime, fps": fps("onnxruntime_ms"),
            "to its first": cell("onnxruntime_ratio", ".2f"),
            "the paper, fps": cell("paper_fps", ".1f"),
            "to the paper's first": cell("paper_ratio", ".2f"),
        },
    ),
    "memory_plan": Table(
        ("memory_plan",),
        plan_rows,
        {
            "length": cell("length"),
            "images per GPU": cell("batch"),
            "memory, GB": lambda row: f"{row['peak'] / 1e9:.2f}",
            "fits into 11 GB": cell("fits"),
            "GFLOP an image": lambda row: f"{row['flops'] / 1e9:.0f}",
            "learning rate": cell("rate", "g"),
            "chosen": cell("chosen"),
        },
    ),
    "memory_checks": Table(
        ("memory_plan",),
        lambda content: content["plan"]["checks"],
        {
            "training": cell("name"),
            "estimate, GiB": gibibytes("ours"),
            "the paper's Table 10, GiB": gibibytes("theirs"),
            "error": lambda row: f"{100 * row['error']:.1f} %",
        },
    ),
    "network_sizes": Table(
        ("network_sizes",),
        labelled(
            {
                "mask_rcnn_r50_fpn": "Mask R-CNN R50-FPN, two-layer head, 91 classes",
                "retinanet_r50_fpn": "RetinaNet R50-FPN",
                "cascade_rcnn_r50_fpn": "Cascade R-CNN R50-FPN",
                "cascade_mask_rcnn_r50_fpn": "Cascade Mask R-CNN R50-FPN",
                "mask_rcnn_swin_t_fpn": "Mask R-CNN Swin-T-FPN, two-layer head",
                "ssd300_vgg16": "SSD300 VGG-16, 91 classes",
                "root_resnet18": "Root-ResNet-18, without extra layers and head",
                "root_resnet34": "Root-ResNet-34, without extra layers and head",
            }
        ),
        {
            "network": LABEL,
            "parameters here": cell("here"),
            "published": cell("published"),
            "difference": cell("difference"),
        },
    ),
}

FIGURES: dict[str, tuple[str, Figure]] = {
    "data_pretrain_ms": ("reproduce_direct_table7", milliseconds("data_seconds/pretrain")),
    "data_finetune_ms": ("reproduce_direct_table7", milliseconds("data_seconds/finetune")),
}
