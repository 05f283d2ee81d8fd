"""A round of self-training: pseudo-labels of a model, joined with the labelled set, and a training on both."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from directdet.common.errors import UsageProblem, UserError
from directdet.common.text import toml_string
from directdet.front.api import FilePath, run_training
from directdet.front.run_data import data_of

if TYPE_CHECKING:
    from directdet.train.run import RunResult

LABELS, RUN = "pseudo-labels", "run"  # folders of a round


def self_train(
    model: FilePath,
    pictures: FilePath,
    *,
    data: FilePath | None = None,
    out: FilePath,
    recipe: str | None = None,
    score: float | None = None,
    settings: Sequence[str] = (),
    phase: str | None = None,
    init: FilePath | None = None,
    resume: bool = False,
    device: str = "auto",
    seed: int | None = None,
    warn: Callable[[str], None] = print,
    say: Callable[[str], None] = print,
) -> RunResult:
    """Label pictures by a model, join them with the labelled data, and train on both.

    `out` receives `pseudo-labels`, a dataset of what the model found in the pictures that are not in `data`;
    `dataset.toml`, which joins both; and `run`, the folder of the training. Validation is that of `data` alone.

    Args:
        model: a run folder, a checkpoint or an artefact: the teacher.
        pictures: as `predict` takes them: a folder, a pattern, a file.
        data: the labelled dataset. `recipe`: the name of what is trained. None: those of the run folder `model`; a
            recipe that fits itself to the data does so anew.
        score: the least score of a pseudo-label; None: the model's own, as `infer` takes it.
        settings, phase, init, device, seed: of the training, see `run_training`; it starts anew unless `init` says.
        resume: keep the pseudo-labels that are in `out`, and go on with the run there. Without it both must be new.
        warn: called as `run_training` calls it. `say`: called with a line about each step.

    Raises:
        UserError: the model has other classes than the data, finds nothing, or `out` holds a round already; else as
            `predict` and `run_training` raise.
    """
    from directdet.infer.runtimes.load import find_model

    out, model = Path(out), Path(model)
    find_model(model)
    data, recipe = data or data_of(model), recipe or _recipe_of(model)
    for what, value in (("--data DATA", data), ("--recipe RECIPE", recipe)):
        if value is None:
            raise UsageProblem(f"{what} is missing; only a run folder knows its own")
    assert data is not None and recipe is not None  # refused above
    if out.is_dir() and not resume and any((out / name).exists() for name in (LABELS, RUN, "dataset.toml")):
        raise UserError(f"{out}: holds a round of self-training already; give --resume to go on, or another --out")
    if _has_labels(out / LABELS):
        say(f"1 of 2: kept: {out / LABELS}")
    else:
        _label(model, pictures, Path(data), out / LABELS, score, resume, device, say)
    _join(Path(data), out)
    run = out / RUN
    options = {"--phase": phase, "--init": init, "--seed": seed}
    more = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    more += [part for setting in settings for part in ("--set", setting)]
    say(f"2 of 2: {shlex.join(['directdet', 'train', recipe, '--data', str(out), '--out', str(run), *more])}")
    return run_training(
        recipe, out, run, settings, phase, init, resume=resume and any(run.glob("*/run.json")), epochs=None,
        device=device, seed=seed, dry_run=False, log=None, warn=warn,
    )  # fmt: skip


def _recipe_of(model: Path) -> str | None:
    """The name of a run folder's recipe; None for any other model."""
    if not any(model.glob("*/run.json")):
        return None
    from directdet.train.run_file import stored_run

    return stored_run(model).recipe.name


def _has_labels(out: Path) -> bool:
    """Whether pseudo-labels were written to a folder, and there are any."""
    from directdet.data.dataset import load_dataset

    return (out / "dataset.toml").is_file() and len(load_dataset(out, "train")) > 0


def _label(
    model: Path,
    pictures: FilePath,
    data: Path,
    out: Path,
    score: float | None,
    resume: bool,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Write the pseudo-labels."""
    from directdet.common.folder_lock import hold_folder
    from directdet.data.dataset import load_dataset
    from directdet.infer.accuracy.evaluate import match_classes, require_format
    from directdet.infer.predict.images import predict
    from directdet.infer.predict.options import PredictOptions
    from directdet.infer.runtimes.load import load

    detector = load(model, device=device)
    labelled = load_dataset(data, "train")
    match_classes(detector, labelled)
    require_format(detector, labelled)
    least = detector.usual_score if score is None else score
    command = ["directdet", "infer", str(model), str(pictures), "--format", "dataset", "--no-pictures"]
    command += ["--without", str(data), "--score", f"{least:g}", "--out", str(out)]
    say(f"1 of 2: {shlex.join(command)}")
    with hold_folder(out, "self-train"):
        options = PredictOptions(least, pictures=False, results="dataset")
        summary = predict(detector, str(pictures), out, options, without=data, resume=resume)
    say(f"{summary.n_detections} pseudo-labels in {summary.n_images - summary.n_empty} of {summary.n_images} pictures")
    if not summary.n_detections:
        raise UserError(f"{out}: no score reaches {least:g}; give a lower --score, and --resume")


def _join(data: Path, out: Path) -> None:
    """Write the dataset.toml of both sets."""
    from directdet.common.files import write_text_atomic
    from directdet.data.dataset import load_dataset
    from directdet.data.pixels.format import RGB

    pixels = load_dataset(data, "train").pixels
    lines = [
        "[[sets]]",
        f"data = {toml_string(os.path.abspath(data))}",
        "[[sets]]",
        f'data = "{LABELS}"',
        'split = "train"',
    ]
    lines += () if pixels == RGB else pixels.toml_lines()
    write_text_atomic(out / "dataset.toml", "\n".join([*lines, ""]))
