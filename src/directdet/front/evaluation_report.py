"""The pages about a model on a dataset: of `eval --report`, and of a run at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from directdet.front.say import now, typed
from directdet.infer.accuracy.evaluate import Evaluation
from directdet.infer.predictor import Predictor
from directdet.pages.evaluation import EvaluationPage, write_evaluation

if TYPE_CHECKING:
    from directdet.recipes.recipe import Recipe
    from directdet.train.run import RunResult


def write_model_report(evaluation: Evaluation, detector: Predictor, folder: Path, comparison: str = "") -> Path:
    """Write FOLDER/report.html and report.json about a model; returns the page's path.

    Args:
        comparison: a sentence about it and another model.

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
        comparison=comparison,
    )
    return write_evaluation(page, folder, {"model": described, **_where(evaluation)})


def write_run_report(run: RunResult, recipe: Recipe) -> Path | None:
    """Write RUN/report.html and report.json from the run's log and its last evaluation, and return the page's path;
    None if this call of train() made no evaluation.

    Raises:
        UserError: a picture or the log cannot be read, or a file cannot be written.
    """
    from directdet.train.log import read_log  # which imports torch

    if run.evaluation is None:
        return None
    data = run.evaluation.dataset
    log = {one.name: read_log(path) for one in recipe.phases if (path := run.out / one.name / "log.jsonl").is_file()}
    page = EvaluationPage(
        title=f"{run.out.absolute().name}: {recipe.name} on {data.root.absolute().name}",
        intro=f"What the network finds and misses in the {data.split} split of {data.root}, with the weights at the "
        f"end of the {run.phases[-1]['name']} phase; best.pt may hold earlier ones.",
        evaluation=run.evaluation,
        about={**_made(), "run": str(run.out)},
        log=log,
    )
    return write_evaluation(page, run.out, {"recipe": recipe.name, "phases": run.phases, **_where(run.evaluation)})


def _where(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    return {"dataset": {"root": str(evaluation.dataset.root), "split": evaluation.dataset.split}}


def _made() -> dict[str, str]:
    return {"command": typed(), "date": now()}
