"""The pages about a model on a dataset: of `eval --report`, and of a run at its end."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path

from directdet.infer.accuracy.evaluate import Evaluation
from directdet.infer.predictor import Predictor
from directdet.pages.evaluation import EvaluationPage, write_evaluation


def write_model_report(evaluation: Evaluation, detector: Predictor, folder: Path) -> Path:
    """Write FOLDER/report.html and report.json about a model; returns the page's path.

    Raises:
        UserError: a picture cannot be read, or a file cannot be written.
    """
    data = evaluation.dataset
    described = detector.describe()
    recipe = f", trained by the recipe {detector.meta['recipe']}" if detector.meta.get("recipe") else ""
    page = EvaluationPage(
        title=f"{Path(detector.source).name} on {data.root.name}",
        intro=f"What this detector{recipe} finds and misses in the {data.split} split of {data.root}.",
        evaluation=evaluation,
        about={**_made(), "model": detector.source, "runs in": f"{detector.runtime}, {described.get('provider', '')}"},
    )
    return write_evaluation(page, folder, {"model": described, **_where(evaluation)})


def _where(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    return {"dataset": {"root": str(evaluation.dataset.root), "split": evaluation.dataset.split}}


def _made() -> dict[str, str]:
    return {
        "command": shlex.join(["directdet", *sys.argv[1:]]),
        "date": datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
    }
