"""Result tables of trainings: AP, steps and times."""

from statistics import fmean
from typing import Any

from tables_cells import Cell, Figure, Row, Table, cell, cell_if_any, find, labelled, minutes, written
from tables_claims import difference

LABEL = cell("label")
PENN_FUDAN_GPU = labelled(
    {
        "ssd300_vgg16": "SSD300 VGG-16, BN in backbone and head",
        "retinanet_r50": "RetinaNet R50-FPN, pre-trained at 320, fine-tuned at 448",
        "mask_rcnn_r50": "Mask R-CNN R50-FPN, pre-trained at 320, fine-tuned at 448",
    }
)


def steps(row: Row) -> str:
    """Steps of each phase: 550 + 220."""
    counts = row["steps"] if "steps" in row else [phase["steps"] for phase in row["phases"]]
    return " + ".join(str(count) for count in counts)


def summed(path: str, how: str) -> Cell:
    """A column that adds up a list of the row."""
    return lambda row: written(sum(find(row, path)), how)


def penn_fudan_cpu_rows(content: Any) -> list[Row]:
    """AP after the first phase, after the second, and of the artefact in each runtime."""
    pretrained = [one for one in content["evaluations_in_training"] if one["phase"] == "pretrain"][-1]
    labels = {
        "checkpoint, PyTorch": "after fine-tuning at 320 to 448 (fixed BN), PyTorch",
        "artefact, ONNX Runtime": "the artefact in ONNX Runtime",
        "artefact, OpenVINO": "the artefact in OpenVINO",
    }
    first = {**pretrained, "label": "after direct pre-training at 224 (live BN)"}
    return [first, *labelled(labels, "eval")(content)]


def self_training_rows(content: Any) -> list[Row]:
    """A row for each training, as a mean over the seeds, in the order of the table."""
    labels = {
        "teacher": "the tenth",
        "longer": "the tenth, twice as long",
        "student": "the tenth and pseudo-labels, weighed by their scores",
        "continued": "the same, from the weights of the first row",
        "unweighted": "the tenth and pseudo-labels, each counting fully",
        "all": "all labels",
    }
    rows = []
    for name, label in labels.items():
        found = [row for row in content["rows"].values() if row["label"] == name]
        if found:
            means = {key: fmean(row[key] for row in found) for key in ("pictures", "objects", "AP", "AP50")}
            rows.append({**means, "label": label, "steps": found[0]["steps"], "seeds": len(found)})
    return rows


def headline_rows(gpu: Any, cpu: Any, race: Any) -> list[Row]:
    """The README's table: what is learnt from random weights on a GPU and on a CPU, the race's as a mean of seeds."""
    rows = [{**row, "time": minutes(sum(row["seconds"])), "device": "GPU"} for row in PENN_FUDAN_GPU(gpu)]
    best = find(cpu, "eval/artefact, ONNX Runtime")
    slim = {"label": "Mask R-CNN R18-FPN, slim, pre-trained at 224, fine-tuned at 320 to 448", "device": "CPU, 2 cores"}
    figures = {"box_ap": best["bbox"]["AP"], "box_ap50": best["bbox"]["AP50"], "mask_ap": best["segm"]["AP"]}
    slim |= {**figures, "time": minutes(cpu["training_seconds"]["wall, both phases"])}
    seeds = [row for row in race["rows"].values() if row["contestant"] == "rtmdet_nano" and row["minutes"] == 10]
    nano = {"label": "RTMDet-nano, pre-trained at 224, fine-tuned at 320", "device": "CPU, 1 core"}
    nano |= {name: fmean(row[key] for row in seeds) / 100 for name, key in (("box_ap", "AP"), ("box_ap50", "AP50"))}
    return [*rows, slim, {**nano, "time": minutes(fmean(row["seconds"] for row in seeds))}]


def precision_rows(content: Any) -> list[Row]:
    """A row for each model's boxes and masks, and one for the boxes of all."""
    kinds = {"box_ap": "boxes", "mask_ap": "masks"}
    rows = []
    for name, row in content["rows"].items():
        model, kind = name.split("/")
        interval = row["difference"] - row["reach"], row["difference"] + row["reach"]
        label = "all of them, boxes" if model == "all" else f"`{model}`, {kinds[kind]}"
        rows.append({**row, "label": label, "measure": "AP", "interval": interval})
    return rows


def precision_loss(content: Any) -> str:
    """The points of box AP that bf16 costs at most, with 95 % confidence, over all pairs of runs."""
    row = content["rows"]["all/box_ap"]
    return f"{100 * (row['reach'] - row['difference']):.1f}"


FIGURES: dict[str, tuple[str, Figure]] = {"precision_loss": ("precision", precision_loss)}
TABLES = {
    "headline": Table(
        ("penn_fudan_h200", "penn_fudan_cpu", "race"),
        headline_rows,
        {
            "from random weights": LABEL,
            "box AP": cell("box_ap", "percent"),
            "AP50": cell("box_ap50", "percent"),
            "mask AP": cell_if_any("mask_ap", "percent"),
            "training": cell("time"),
            "trained on": cell("device"),
        },
    ),
    "penn_fudan_gpu": Table(
        ("penn_fudan_h200",),
        PENN_FUDAN_GPU,
        {
            "detector": LABEL,
            "steps": steps,
            "seconds": summed("seconds", ".0f"),
            "box AP": cell("box_ap", "percent"),
            "AP50": cell("box_ap50", "percent"),
            "mask AP": cell_if_any("mask_ap", "percent"),
        },
    ),
    "penn_fudan_cpu": Table(
        ("penn_fudan_cpu",),
        penn_fudan_cpu_rows,
        {
            "measured": LABEL,
            "box AP": cell("bbox/AP", "percent"),
            "box AP50": cell("bbox/AP50", "percent"),
            "mask AP": cell("segm/AP", "percent"),
            "mask AP50": cell("segm/AP50", "percent"),
        },
    ),
    "precision": Table(
        ("precision",),
        precision_rows,
        {
            "trained": LABEL,
            "on": cell_if_any("data"),
            "AP, fp32": cell_if_any("fp32", "percent"),
            "AP, bf16": cell_if_any("bf16", "percent"),
            "difference": difference("difference"),
            "95 % interval": difference("interval"),
            "pairs of runs": cell("pairs"),
        },
    ),
    "self_training": Table(
        ("self_training",),
        self_training_rows,
        {
            "trained on": LABEL,
            "pictures": cell("pictures", ".0f"),
            "objects": cell("objects", ".0f"),
            "steps": cell("steps"),
            "box AP": cell("AP", ".1f"),
            "AP50": cell("AP50", ".1f"),
            "seeds": cell("seeds"),
        },
    ),
    "ssd_slim_cpu": Table(
        ("ssd_slim_cpu",),
        labelled({"bn": "BN in backbone and head", "none": "no BN"}),
        {
            "slim SSD300": LABEL,
            **{f"loss at step {step}": cell(f"loss/{step}", ".2f") for step in (250, 500, 750, 1000)},
            "box AP": cell("bbox/AP", "percent"),
            "AP50": cell("bbox/AP50", "percent"),
        },
    ),
}
