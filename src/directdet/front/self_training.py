"""A round of self-training: pseudo-labels of a model, joined with the labelled set, and a training on both."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from directdet.common.errors import UsageProblem, UserError
from directdet.common.text import toml_string
from directdet.common.urls import absolute
from directdet.front.api import FilePath, run_training
from directdet.front.run_data import data_of

if TYPE_CHECKING:
    from directdet.infer.predictor import Predictor
    from directdet.train.run import RunResult

LABELS, RUN = "pseudo-labels", "run"  # folders of a round
ROUND = "round.json"  # what its pseudo-labels are of
_FIX = "restore it, or remove it to go on without its check of model and score"


@dataclass(frozen=True)
class _Round:
    """What is read of the file: the score from which detections are kept, the model's name, a digest of its content.

    per_class: the score of each class, where the model has such; `score` is then that of the others.
    """

    score: float
    model: str
    digest: str
    per_class: tuple[float, ...] = ()

    @property
    def least(self) -> float | tuple[float, ...]:
        return self.per_class or self.score


def _round_of(detector: Predictor, model: Path, score: float | None) -> _Round:
    """What a round of a model is, with the `score` that is asked for or else the model's own."""
    from directdet.infer.predict.same import model_digest

    own = detector.usual_scores if score is None else score
    least = detector.usual_score if score is None else score
    return _Round(least, str(model), model_digest(detector), own if isinstance(own, tuple) else ())


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
        resume: keep the pseudo-labels that are in `out`, which must be of the same model and score, and go on with the
            run there. Without it both must be new.
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
    toml_string(absolute(data))  # refused before pictures are read
    if _has_labels(out / LABELS):
        _check_round(out, model, score, device)
        say(f"1 of 2: kept: {out / LABELS}")
    else:
        _label(model, pictures, Path(data), out, score, resume, device, say)
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
    """Write the pseudo-labels of the round in `out`, and what they are of."""
    from directdet.common.files import write_json_atomic
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
    made = _round_of(detector, model, score)
    command = ["directdet", "infer", str(model), str(pictures), "--format", "dataset", "--no-pictures"]
    labels = out / LABELS
    command += ["--without", str(data), "--out", str(labels)]
    command += [] if made.per_class else ["--score", f"{made.score:g}"]  # those of the classes are infer's own default
    say(f"1 of 2: {shlex.join(command)}")
    with hold_folder(labels, "self-train"):
        options = PredictOptions(made.least, pictures=False, results="dataset")
        summary = predict(detector, str(pictures), labels, options, without=data, resume=resume)
        write_json_atomic(out / ROUND, asdict(made))
    say(f"{summary.n_detections} pseudo-labels in {summary.n_images - summary.n_empty} of {summary.n_images} pictures")
    if not summary.n_detections:
        least = options.selection(detector).words(detector.classes)
        raise UserError(f"{labels}: no score reaches {least}; give a lower --score, and --resume")


def _check_round(out: Path, model: Path, score: float | None, device: str) -> None:
    """UserError if the pseudo-labels in `out` are of another model or score; older rounds do not say."""
    from directdet.common.json_files import read_json
    from directdet.infer.predict.options import Selection
    from directdet.infer.runtimes.load import load

    path = out / ROUND
    if not path.is_file():
        return
    before, detector = read_json(path, _Round, _FIX)[1], load(model, device=device)
    now = _round_of(detector, model, score)
    what = ""
    if before.digest != now.digest:
        what = f"model was {before.model}, now {model}, or another version of it"
    elif len(before.per_class) not in (0, len(detector.classes)):
        raise UserError(f"{path}: per_class: {len(before.per_class)} of {len(detector.classes)} numbers; {_FIX}")
    elif before.least != now.least:
        was, least = (Selection(one.least).words(detector.classes) for one in (before, now))
        what = f"score was {was}, now {least}"
    if what:
        raise UserError(
            f"{path}: the pseudo-labels were made otherwise: {what}; resume with the same, or give another --out"
        )


def _join(data: Path, out: Path) -> None:
    """Write the dataset.toml of both sets."""
    from directdet.common.files import write_text_atomic
    from directdet.data.dataset import load_dataset
    from directdet.data.pixels.format import RGB

    pixels = load_dataset(data, "train").pixels
    lines = [
        "[[sets]]",
        f"data = {toml_string(absolute(data))}",
        "[[sets]]",
        f'data = "{LABELS}"',
        'split = "train"',
    ]
    lines += () if pixels == RGB else pixels.toml_lines()
    write_text_atomic(out / "dataset.toml", "\n".join([*lines, ""]))
