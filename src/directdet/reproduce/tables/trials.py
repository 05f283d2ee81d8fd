"""What a comparison is: rows, and what they get the same of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from directdet.recipes.recipe import Recipe
from directdet.reproduce.scales import Scale

SHARED = "shared"  # folder of the pre-training that rows of a comparison share
AT_THE_END = 1_000_000  # epochs between evaluations: more than there are
DROPS = (Fraction(2, 3), Fraction(11, 12))
Equal = Literal["time", "steps", "schedule"]
Metric = Literal["coco", "voc"]  # COCO's AP, VOC's mAP by the 11-point rule


@dataclass(frozen=True)
class Trial:
    """One row of a comparison.

    Attributes:
        key: the name of its folder.
        label: what it is.
        recipe: what it trains; the lengths of its phases are set later.
        shares_pretrain: it starts from the pre-training that rows share, and trains only its last phase.
        paper: the paper's figures, or None if the paper has no such row; a figure of None is the paper's "NaN".
        needs_imagenet: it starts from ImageNet weights.
        lengths: of its phases, in units of a 1x schedule; only where rows keep the paper's schedules.
        drops: where in its last phase the learning rate drops, as shares of its length.
        curve, x: in a figure, the name of its curve and its place on the x axis; None is the minutes that it trained.
    """

    key: str
    label: str
    recipe: Recipe
    shares_pretrain: bool = False
    paper: Mapping[str, float | None] | None = None
    needs_imagenet: bool = False
    lengths: Mapping[str, Fraction] = field(default_factory=dict)
    drops: tuple[Fraction, ...] = DROPS
    curve: str = ""
    x: float | None = None


@dataclass(frozen=True)
class Experiment:
    """A comparison.

    Attributes:
        title: what it compares.
        table: the key of the paper's table in recipes.table_rows.TABLES.
        equal: what all rows get the same of: "time" or "steps"; with "schedule", as long a 1x schedule, of which each
            takes as many as in the paper.
        trials: makes the rows, for a Scale.
        metric: what the paper measures.
        axis: of a figure, the title of its x axis; empty for a table.
    """

    title: str
    table: str
    equal: Equal
    trials: Callable[[Scale], list[Trial]] = field(repr=False)
    metric: Metric = "coco"
    axis: str = ""
