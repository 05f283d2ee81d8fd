"""What a deployed model costs and what it finds: AP against milliseconds, over canvases and numbers of proposals.

The canvas decides most of the price: padding is computed like any pixel, and a square canvas around pictures of 4:3 is
a quarter padding. The candidates therefore come from the shapes of the user's own pictures. Of a two-stage detector the
number of proposals decides the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from directdet.common.errors import UserError
from directdet.common.terminal import CAPTION, TITLE, plain
from directdet.infer.preprocess import Preprocess

SHARES = (1.0, 0.85, 0.7)  # of the sides that the model was evaluated at
PROPOSALS = (300, 100, 50)
SQUARE_FROM = 1.15  # pictures whose sides differ by less are square enough
DIVISOR = 32


@dataclass(frozen=True)
class Choice:
    """A canvas (height, width) in pixels and, for a two-stage detector, a number of proposals (else None)."""

    size: tuple[int, int]
    proposals: int | None = None

    @property
    def name(self) -> str:
        """E.g. "320x448, 100 proposals"."""
        shown = f"{self.size[0]}x{self.size[1]}"
        return shown if self.proposals is None else f"{shown}, {self.proposals} proposals"


@dataclass(frozen=True)
class Price:
    """What one choice costs and finds.

    Attributes:
        ap, mask_ap: box and mask AP on the dataset, 0 to 1; mask_ap None without masks.
        ms: median milliseconds of one picture through the network with its post-processing, on this machine.
        images: pictures that AP was measured on.
    """

    choice: Choice
    ap: float
    mask_ap: float | None
    ms: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def canvases(trained: Preprocess, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Canvases worth trying for pictures of these (height, width), the largest first.

    Each is the canvas that holds at least three quarters of the pictures unshrunk at the scale that the model was
    evaluated at, that with less of each side, and a square of the same area for comparison. Sides are multiples of 32.

    A model that warps its pictures to one size (SSD) takes no other.
    """
    if trained.warp:
        return [(int(trained.size[0]), int(trained.size[1]))]
    placed = np.array([(p.height, p.width) for p in (trained.place(*shape) for shape in shapes)], np.float64)
    height, width = np.quantile(placed, 0.75, axis=0)
    if max(height, width) < SQUARE_FROM * min(height, width):
        height = width = max(height, width)
    found = [(_whole(height * share), _whole(width * share)) for share in SHARES]
    for share in SHARES[:2]:
        side = _whole((height * width) ** 0.5 * share)
        found.append((side, side))
    return sorted(dict.fromkeys(found), key=lambda size: (-size[0] * size[1], size))


def _whole(side: float) -> int:
    """The nearest multiple of 32 pixels, at least one."""
    return max(1, int(side / DIVISOR + 0.5)) * DIVISOR


def fewer_proposals(own: int | None) -> list[int | None]:
    """The model's own number of proposals, and smaller ones; None for a detector without proposals."""
    return [own] if own is None else [own, *(number for number in PROPOSALS if number < own)]


def frontier(prices: Sequence[Price]) -> list[Price]:
    """Those that no other one beats in both time and box AP, the fastest first."""
    found: list[Price] = []
    for price in sorted(prices, key=lambda one: (one.ms, -one.ap)):
        if not found or price.ap > found[-1].ap:
            found.append(price)
    return found


def choose(prices: Sequence[Price], max_ms: float | None, min_ap: float | None) -> Price:
    """The best within the limits: of `max_ms` milliseconds the highest AP, else the fastest with AP `min_ap` (0 to 1).

    Raises:
        UserError: nothing is within the limits; the message says what comes nearest.
    """
    within = [p for p in prices if (max_ms is None or p.ms <= max_ms) and (min_ap is None or p.ap >= min_ap)]
    if not within:
        fastest, best = min(prices, key=lambda p: p.ms), max(prices, key=lambda p: p.ap)
        limits = [] if max_ms is None else [f"--max-ms {max_ms:g}"]
        limits += [] if min_ap is None else [f"--min-ap {100 * min_ap:g}"]
        raise UserError(
            f"{' with '.join(limits)}: no choice is within it; the fastest is {fastest.choice.name} with "
            f"{fastest.ms:.1f} ms and AP {100 * fastest.ap:.1f}, the best {best.choice.name} with {best.ms:.1f} ms and "
            f"AP {100 * best.ap:.1f}"
        )
    return frontier(within)[-1] if max_ms is not None else frontier(within)[0]


def price_table(prices: Sequence[Price], taken: Price, title: str) -> Table:
    """All choices, the fastest first; those on the frontier are marked, and the one that is taken."""
    best = frontier(prices)
    images = prices[0].images
    table = Table(title=plain(title, TITLE), box=SIMPLE_HEAD)
    table.caption = plain(f"AP in % on {images} images; *: nothing else is both faster and better", CAPTION)
    for name in ("canvas", "proposals", "ms", "box AP", "mask AP", ""):
        table.add_column(name, justify="left" if name in ("canvas", "") else "right")
    for price in sorted(prices, key=lambda one: one.ms):
        mark = "* taken" if price == taken else "*" if price in best else ""
        table.add_row(
            f"{price.choice.size[0]}x{price.choice.size[1]}",
            str(price.choice.proposals or "-"),
            f"{price.ms:.1f}",
            f"{100 * price.ap:.1f}",
            "-" if price.mask_ap is None else f"{100 * price.mask_ap:.1f}",
            Text(mark, "bold green" if price == taken else ""),
        )
    return table
