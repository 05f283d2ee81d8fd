"""The comparisons of both papers, scaled down, by paper and table.

The results are not the paper's AP: rows are compared with each other within minutes.
"""

from functools import partial

from directdet.reproduce.tables import direct, direct_schedules, scratchdet
from directdet.reproduce.tables.trials import Experiment

_scheduled = partial(Experiment, equal="schedule")

EXPERIMENTS = {
    "direct/table1": Experiment(
        "batch size and resolution of direct pre-training", "direct/table1", "time", direct.table1
    ),
    "direct/table2": Experiment("batch normalisation in fine-tuning", "direct/table2", "steps", direct.table2),
    "direct/table3": _scheduled("main results", "direct/table3", trials=direct_schedules.table3),
    "direct/table4": _scheduled("lengths of the two phases", "direct/table4", trials=direct_schedules.table4),
    "direct/table5": Experiment(
        "which parts of the pre-trained detector are loaded", "direct/table5", "steps", direct.table5
    ),
    "direct/table6": _scheduled("multi-scale training", "direct/table6", trials=direct_schedules.table6),
    "direct/table8": Experiment("other detectors", "direct/table8", "time", direct.table8),
    "direct/table9": _scheduled("less data", "direct/table9", trials=direct_schedules.table9),
    "direct/table10": _scheduled("against DropBlock-style training", "direct/table10", trials=direct_schedules.table10),
    "direct/section3.2": _scheduled(
        "resizing while pre-training", "direct/section3.2", trials=direct_schedules.section3_2
    ),
    "direct/figure1b": _scheduled(
        "AP against the time of training",
        "direct/table3",
        trials=direct_schedules.figure1b,
        axis="minutes of training",
    ),
    "direct/figure2": _scheduled(
        "batch size and resolution, for the same steps",
        "direct/table1",
        trials=direct_schedules.figure2,
        axis="length of the pre-training's pictures in pixels",
    ),
    "direct/figure4": _scheduled(
        "the length of fine-tuning", "direct/table4", trials=direct_schedules.figure4, axis="epochs of fine-tuning"
    ),
    # Rows of Tables 1 and 3.
    "direct/scratch": Experiment(
        "from scratch against direct pre-training, for the same time",
        "direct/table3",
        "time",
        direct.against_scratch,
    ),
    "direct/montage": Experiment(
        "Montage pre-training against direct pre-training, for the same time", "direct/table3", "time", direct.montage
    ),
    "scratchdet/table1": Experiment(
        "where batch normalisation is, and the learning rate",
        "scratchdet/table1",
        "steps",
        scratchdet.table1,
        "voc",
    ),
    "scratchdet/table2": Experiment(
        "the first layer of ResNet-18", "scratchdet/table2", "steps", scratchdet.table2, "voc"
    ),
    "scratchdet/section4": Experiment(
        "results in the text of section 4", "scratchdet/section4", "steps", scratchdet.section4, "voc"
    ),
}
# What is timed, not trained; see timing.py.
TIMED = {"direct/table7": "time by batch normalisation"}
