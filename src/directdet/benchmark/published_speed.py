"""What was measured here next to a paper's table of frame rates: ratios to the same row, each within its own table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from directdet.benchmark.cell import Cell, Request
from directdet.recipes.networks import has_network_of
from directdet.recipes.published import ApRow, PaperTable, SpeedRow


@dataclass(frozen=True)
class TimedHere:
    """A cell whose model has the network of a row of a paper's table.

    Attributes:
        model: its path.
        setting: what it ran in, in words.
        fps_end_to_end, fps_device_only: images per second.
        ratio_end_to_end, ratio_device_only: to the reference row's in the same setting; None where the reference was
            not timed in it.
    """

    model: str
    setting: str
    fps_end_to_end: float
    ratio_end_to_end: float | None
    fps_device_only: float
    ratio_device_only: float | None


@dataclass(frozen=True)
class ComparedRow:
    """A row of a paper's table, the ratio of its frame rate to the reference row's, and what was timed here of it."""

    row: SpeedRow
    ratio: float
    ours: tuple[TimedHere, ...]

    def to_dict(self) -> dict[str, Any]:
        """The row's own fields with "ratio" and "ours" as plain values for JSON."""
        return {**asdict(self.row), "ratio": self.ratio, "ours": [asdict(mine) for mine in self.ours]}


@dataclass(frozen=True)
class SpeedComparison:
    """A paper's table of frame rates with what was timed here.

    Attributes:
        table: as the paper prints it.
        reference: method of the row that ratios are to: the first one that was timed here, or the first of all.
        rows: in the paper's order.
    """

    table: PaperTable
    reference: str
    rows: tuple[ComparedRow, ...]

    @property
    def has_ours(self) -> bool:
        """Whether any row was timed here."""
        return any(row.ours for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `PaperTable.to_dict` with more in each row, and "reference"."""
        return {**self.table.to_dict(), "rows": [row.to_dict() for row in self.rows], "reference": self.reference}


def runtime_words(cell: Cell | Request) -> str:
    """The runtime's name, followed by "compiled" for compiled torch."""
    return f"{cell.runtime}, compiled" if cell.compiled else cell.runtime


def setting(cell: Cell) -> str:
    """What a cell ran in, in words: only cells of one setting are compared with each other."""
    size = "x".join(str(edge) for edge in cell.size)
    return f"{runtime_words(cell)}, {cell.precision}, {cell.batch}x{size}"


def compare_with(table: PaperTable, cells: Sequence[Cell]) -> SpeedComparison:
    """A paper's table with the detectors of its rows that were timed here.

    A model belongs to a row if it has the network of the row's recipe: how it was trained makes no difference to its
    speed, so one model may belong to several rows.

    Args:
        table: one of `published.speed_tables`: each row has a frame rate.
        cells: those of a benchmark that were measured.
    """
    rows = [(*_with_rate(row), [cell for cell in cells if _belongs(cell, row.recipe)]) for row in table.rows]
    reference, reference_fps, references = next((row for row in rows if row[2]), rows[0])
    compared = []
    for row, fps, own in rows:
        ours = [_timed_here(cell, references) for cell in own]
        compared.append(ComparedRow(row, fps / reference_fps, tuple(ours)))
    return SpeedComparison(table, reference.method, tuple(compared))


def _with_rate(row: SpeedRow | ApRow) -> tuple[SpeedRow, float]:
    """The row with its frame rate; ValueError where the paper prints none."""
    if not isinstance(row, SpeedRow) or row.fps is None:
        raise ValueError(f"{row.method}: the paper prints no frame rate")
    return row, row.fps


def _belongs(cell: Cell, recipe: str | None) -> bool:
    """Whether a cell's model has the network of a recipe; of a cell without settings, whether it is of that recipe."""
    if recipe is None or cell.network is None:
        return recipe is not None and cell.recipe == recipe
    return has_network_of(cell.network, recipe)


def _timed_here(cell: Cell, references: Sequence[Cell]) -> TimedHere:
    """A cell with its ratios to the one of `references` that was timed in the same setting."""
    same = next((other for other in references if setting(other) == setting(cell)), None)
    return TimedHere(
        cell.path,
        setting(cell),
        cell.fps_end_to_end,
        None if same is None else cell.fps_end_to_end / same.fps_end_to_end,
        cell.fps_device_only,
        None if same is None else cell.fps_device_only / same.fps_device_only,
    )
