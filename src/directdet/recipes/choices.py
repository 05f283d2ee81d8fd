"""The handful of recipes that a person picks from; the others are rows of the papers' tables and their variants."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A recipe and what decides whether to take it.

    Attributes:
        recipe: its name.
        finds: "boxes", or "boxes, masks".
        parameters: of its network with 80 classes, in millions.
        suits: data, machine and need.
    """

    recipe: str
    finds: str
    parameters: float
    suits: str


CHOICES = (
    Choice("rtmdet_nano", "boxes", 2.19, "small machines; try it first"),
    Choice("rtmdet_tiny", "boxes", 4.90, "a thousand pictures and more"),
    Choice("rtmdet_s", "boxes", 8.89, "thousands of pictures"),
    Choice("rtmdet_m", "boxes", 24.71, "tens of thousands, GPUs"),
    Choice("rtmdet_l", "boxes", 52.32, "a hundred thousand, GPUs"),
    Choice("mask_rcnn_r18_slim", "boxes, masks", 4.09, "hundreds of pictures, a CPU"),
    Choice("mask_rcnn_r50_fpn", "boxes, masks", 45.71, "the paper's flagship, GPUs"),
)
