"""Everything a benchmark measured and what it ran on, as an object and as the content of benchmark.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from directdet.benchmark.cell import Cell, Failure, Request, cell_from_dict
from directdet.benchmark.published_speed import SpeedComparison, compare_with, runtime_words
from directdet.recipes.published import speed_tables
from directdet.recipes.table_rows import PublishedResult, published_rows


@dataclass(frozen=True)
class DatasetFacts:
    """The dataset that was timed on."""

    root: str
    split: str
    images: int


@dataclass(frozen=True)
class About:
    """What a benchmark ran on.

    Attributes:
        date: start, ISO 8601 in UTC.
        command: the command line.
        hardware: as `infer.machine.hardware` returns it.
        versions: of Python and the libraries outside the runtimes.
        dataset: images and ground truth.
        quick: whether it was a quick run, whose figures are not to be quoted.
    """

    date: str
    command: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    dataset: DatasetFacts
    quick: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> About:
        """What `to_dict` describes."""
        return cls(**{**content, "dataset": DatasetFacts(**content["dataset"])})


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything a benchmark measured and what it ran on.

    Attributes:
        cells: one for each model, runtime, precision, batch size and, for checkpoints, eager and compiled.
        about: hardware, versions, date, command, dataset.
    """

    cells: tuple[Cell | Failure, ...]
    about: About

    @property
    def good(self) -> list[Cell]:
        """The cells that were measured."""
        return [cell for cell in self.cells if isinstance(cell, Cell)]

    @property
    def failed(self) -> list[Failure]:
        """The cells that failed."""
        return [cell for cell in self.cells if isinstance(cell, Failure)]

    @property
    def papers(self) -> list[SpeedComparison]:
        """The papers' tables of frame rates with these cells in them; never a comparison of absolute figures."""
        return [compare_with(table, self.good) for table in speed_tables()]

    @property
    def published(self) -> dict[str, list[PublishedResult]]:
        """What the papers report for the recipes of these cells, by recipe, for those that they have."""
        recipes = dict.fromkeys(cell.recipe for cell in self.good if cell.recipe is not None)
        return {recipe: found for recipe in recipes if (found := published_rows(recipe))}

    @property
    def failures(self) -> list[str]:
        """One line for every cell that failed."""
        return [f"{short(cell.request.path)} in {where(cell.request)}: {cell.error}" for cell in self.failed]

    @property
    def exit_code(self) -> int:
        """1 if any cell failed, else 0."""
        return int(bool(self.failed))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "about": self.about.to_dict(),
            "cells": [cell.to_dict() for cell in self.cells],
            "papers": [paper.to_dict() for paper in self.papers],
            "in_the_papers": {recipe: [asdict(one) for one in found] for recipe, found in self.published.items()},
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> BenchmarkResult:
        """The result that `to_dict` describes; "papers" and "in_the_papers" follow from the cells and are not read."""
        return cls(tuple(map(cell_from_dict, content["cells"])), About.from_dict(content["about"]))


def where(request: Request) -> str:
    """Runtime and batch size in words."""
    return f"{runtime_words(request)}, batch {request.batch}"


def short(path: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(path).parts[-2:])
