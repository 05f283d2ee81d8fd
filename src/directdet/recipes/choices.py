"""The handful of recipes that a person picks from; the others are rows of the papers' tables and their variants."""

from dataclasses import dataclass

COST = "a 640x640 picture with 80 classes in ONNX Runtime, fp32, on 2 cores of an AMD EPYC"  # results/choices.json


@dataclass(frozen=True)
class Choice:
    """A recipe and what decides whether to take it.

    Attributes:
        recipe: its name.
        finds: "boxes", or "masks" (and their boxes).
        parameters: of its network with 80 classes, in millions.
        multiply_adds: of `COST`'s picture, in thousand millions.
        milliseconds: of `COST`, from the picture in memory to its detections; None: not measured.
        coco_ap: box AP on COCO as its paper has it, in per cent; None: no paper has it.
        suits: data, machine and need.
    """

    recipe: str
    finds: str
    parameters: float
    multiply_adds: float
    milliseconds: int | None
    coco_ap: float | None
    suits: str


# The papers' AP: RTMDet, arXiv 2212.07784, Tables 1 and 4 (tiny and s from ImageNet weights); direct pre-training,
# Table 3.
CHOICES = (
    Choice("rtmdet_nano", "boxes", 2.19, 3.6, 63, None, "any; try it first"),
    Choice("rtmdet_tiny", "boxes", 4.90, 8.0, 117, 41.1, "1000 pictures"),
    Choice("rtmdet_s", "boxes", 8.89, 14.8, 172, 44.6, "several thousands"),
    Choice("rtmdet_m", "boxes", 24.71, 39.1, 415, 49.4, "10,000s, on GPUs"),
    Choice("rtmdet_l", "boxes", 52.32, 79.9, 801, 51.5, "100,000, on GPUs"),
    Choice("rtmdet_ins_nano", "masks", 2.53, 4.7, 59, None, "any; try it first"),
    Choice("rtmdet_ins_tiny", "masks", 5.64, 10.5, 120, 40.5, "1000 pictures"),
    Choice("rtmdet_ins_s", "masks", 10.18, 19.0, 192, 44.0, "several thousands"),
    Choice("mask_rcnn_r18_slim", "masks", 4.09, 9.7, 132, None, "hundreds, on a CPU"),
    Choice("mask_rcnn_r50_fpn", "masks", 45.71, 258.7, 2459, 40.0, "the paper's, GPUs"),
)
