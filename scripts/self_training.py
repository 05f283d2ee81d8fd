"""What a round of self-training gives where few pictures are labelled, beside as many steps on the labels alone.

    python scripts/self_training.py --data DATA --pictures FOLDER      # writes results/self_training.json

Of DATA's train pictures a tenth keeps its labels. Rows: the teacher, trained on that tenth; "longer", trained on it
twice as long; the student, trained from random weights on the tenth and on what the teacher found in the others of
FOLDER, as long as the teacher, so that both together take as many steps as the second; "continued", the same from the
teacher's weights; "unweighted", the student without scores, so that each pseudo-label counts fully; and "all", with
all labels, as long as the teacher: what there is to gain. All have the same settings, and are evaluated on DATA's val
split. Rows that the file of results has are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import ROOT, measured_on

import directdet
from directdet.common.files import write_json_atomic
from directdet.data.dataset import Dataset, load_dataset
from directdet.data.formats.write.coco import write_coco
from directdet.front.self_training import LABELS, self_train
from directdet.infer.predictor import USUAL_SCORE

RECIPE, PHASE = "rtmdet_nano", "pretrain"
LABELS_OF_ROWS = ("teacher", "student", "longer", "all", "continued", "unweighted")
SHARE = 0.1  # of the train pictures, whose labels are kept
SETTINGS = {
    "pretrain.size": "224,224",
    "pretrain.batch_size": 8,
    "pretrain.base_batch": 8,
    "pretrain.warmup_iterations": 50,
    "pretrain.mosaic": 0,
    "pretrain.mixup": 0,
    "pretrain.eval_every": 100000,  # at the end alone
    "pretrain.workers": 0,
    "precision": "bf16",
}


def write_set(root: Path, train: Dataset, val: Dataset) -> Path:
    """A dataset of these splits in `root`, with links to their pictures."""
    splits = {"train": train, "val": val}
    names = {split: [record.path.name for record in dataset.records] for split, dataset in splits.items()}
    folders, _ = write_coco(root, splits, names)
    for split, dataset in splits.items():
        (root / folders[split]).mkdir(exist_ok=True)
        for record in dataset.records:
            link = root / folders[split] / record.path.name
            if not link.is_symlink():
                link.symlink_to(record.path.resolve())
    return root


def without_scores(data: Path, out: Path) -> Path:
    """The joined set of a round in `out`, in which every pseudo-label counts fully."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(data / LABELS, out / LABELS)
    shutil.copyfile(data / "dataset.toml", out / "dataset.toml")
    file = out / LABELS / "pseudo_labels.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for entry in content["annotations"]:
        del entry["score"]
    write_json_atomic(file, content)
    return out


def trained(data: Path, out: Path, steps: int, seed: int, init: Path | None = None) -> dict[str, Any]:
    """The row of a run on all of `data`."""
    settings = {**SETTINGS, "pretrain.iterations": steps}
    result = directdet.train(RECIPE, data=data, out=out, phase=PHASE, init=init, device="cpu", seed=seed, **settings)
    return row_of(result, data, steps)


def row_of(result: Any, data: Path, steps: int) -> dict[str, Any]:
    """Pictures, objects, steps and AP of a run."""
    dataset = load_dataset(data, "train")
    box = result.metrics.bbox
    found = {"pictures": len(dataset), "objects": sum(len(record.boxes) for record in dataset.records), "steps": steps}
    return {**found, "AP": 100 * box["AP"], "AP50": 100 * box["AP50"], "seconds": result.phases[-1]["seconds"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--pictures", type=Path, required=True, help="folder that holds DATA's train pictures")
    options.add_argument("--steps", type=int, default=500, help="of the teacher and of the student")
    options.add_argument("--rows", nargs="+", choices=LABELS_OF_ROWS, default=LABELS_OF_ROWS, help="only these")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--work", type=Path, default=Path("runs/self_training"), help="a new folder for the runs")
    options.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    given = options.parse_args()
    train, val = (load_dataset(given.data, split) for split in ("train", "val"))
    every, file = write_set(given.work / "all", train, val), given.results / "self_training.json"
    rows: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else {}
    settings = {**SETTINGS, "recipe": RECIPE, "share": SHARE, "score": USUAL_SCORE, "data": given.data.name}
    settings |= {"steps": given.steps, "pictures": len(train), "val": len(val)}
    command = f"python scripts/self_training.py --data {given.data.name} --pictures FOLDER --seeds "

    def keep(label: str, seed: int, make: Callable[[], dict[str, Any]]) -> None:
        key = f"{label}/{seed}"
        if key not in rows:
            rows[key] = {"label": label, "seed": seed, **make()}
            print(key, rows[key], flush=True)
            seeds = sorted({row["seed"] for row in rows.values()})
            facts = {**measured_on(), "command": command + " ".join(map(str, seeds))}
            write_json_atomic(file, {**facts, "settings": settings, "rows": rows})

    for seed in given.seeds:
        tenth = write_set(given.work / f"tenth-{seed}", train.subset(SHARE, seed), val)
        run = partial(one_of_seed, given.work / f"seed-{seed}", tenth, every, given.pictures, given.steps, seed)
        for label in given.rows:
            keep(label, seed, partial(run, label))


def one_of_seed(
    place: Path, tenth: Path, every: Path, pictures: Path, steps: int, seed: int, label: str
) -> dict[str, Any]:
    """The row of this label; those of the student need the teacher's run."""
    if label == "continued":
        return trained(place / "round", place / label, steps, seed, place / "teacher")
    if label == "student":
        more = [f"{key}={value}" for key, value in {**SETTINGS, "pretrain.iterations": steps}.items()]
        result = self_train(
            place / "teacher", pictures, out=place / "round", phase=PHASE, device="cpu", seed=seed, settings=more
        )
        labels = load_dataset(place / "round" / LABELS, "train")
        pseudo = {"pictures": len(labels), "objects": sum(len(record.boxes) for record in labels.records)}
        return {**row_of(result, place / "round", steps), "pseudo": pseudo}
    if label == "unweighted":
        data = without_scores(place / "round", place / "without-scores")
        return trained(data, place / label, steps, seed)
    data = every if label == "all" else tenth
    return trained(data, place / label, 2 * steps if label == "longer" else steps, seed)


if __name__ == "__main__":
    main()
