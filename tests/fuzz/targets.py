"""Every file that a user may hand over, and what reads it: with a value or a UserError, never with anything else."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import torch
from layouts import make_layouts
from mutations import damaged_bytes, damaged_json, damaged_value
from tiny_artefact import write_artefact

from directdet.data.check import check_data
from directdet.data.check_report import print_report
from directdet.data.dataset import find_splits, load_dataset
from directdet.data.image import read_image
from directdet.data.synthetic import make_synthetic
from directdet.infer.accuracy.evaluate import score_detections
from directdet.infer.predict.images import predict
from directdet.infer.predict.options import PredictOptions
from directdet.infer.predict.own_files import OwnFiles
from directdet.infer.predict.same import Origin
from directdet.infer.preprocess import fixture_image
from directdet.infer.runtimes.load import load
from directdet.models.build import build_model
from directdet.recipes.by_name import get_recipe
from directdet.reproduce.budget import Setup, make_plan
from directdet.reproduce.comparison import read_comparison
from directdet.reproduce.experiments import EXPERIMENTS
from directdet.reproduce.landscape import _trained
from directdet.reproduce.scales import SCALES
from directdet.train.log import RunLog, read_results
from directdet.train.loop import Trainer
from directdet.train.prepare import load_weights
from directdet.train.run_file import check_same_run, started_from, stored_run

TINY = {"detector": "retinanet", "num_classes": 4, "backbone": "resnet18", "width": 8}
PHASE = replace(get_recipe("retinanet_r18_slim").phases[0], size=(64, 64), eval_size=(64, 64), batch_size=1, workers=0)


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        damage: writes a damaged file with random numbers.
        read: what a command does with it.
    """

    name: str
    damage: Callable[[random.Random], None]
    read: Callable[[], object]


def make_targets(folder: Path) -> list[Target]:
    """All targets, whose files lie in `folder`."""
    found: list[Target] = []
    for make in (_datasets, _layouts, _pictures, _runs, _artefacts, _checkpoints, _results, _comparisons):
        place = folder / make.__name__
        place.mkdir(parents=True)
        found += make(place)
    return found


def _file(path: Path, damage: Callable[[bytes, random.Random], bytes]) -> Callable[[random.Random], None]:
    """Damages the content that `path` has now."""
    content = path.read_bytes()
    return lambda draw: path.write_bytes(damage(content, draw)) and None


def _datasets(folder: Path) -> Iterator[Target]:
    coco = make_synthetic(folder / "coco", images_train=3, images_val=2, size=(64, 64))
    annotations = coco / "annotations" / "instances_val2017.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["segmentation"] = {"size": [64, 64], "counts": [0, 64 * 64]}
    content["annotations"][-1]["iscrowd"] = 1
    annotations.write_text(json.dumps(content))
    yield Target("COCO", _file(annotations, damaged_json), lambda: _check(coco))

    toml = folder / "dataset.toml"
    toml.write_text(
        'images = "coco/train2017"\nannotations = "coco/annotations/instances_train2017.json"\n'
        "val_fraction = 0.4\nseed = 1\n"
    )
    yield Target("dataset.toml", _file(toml, damaged_bytes), lambda: _check(toml))

    voc = folder / "voc"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for number in (1, 2):
        cv2.imwrite(str(voc / "JPEGImages" / f"00000{number}.jpg"), fixture_image(48, 64))
    lists, xml = voc / "ImageSets" / "Main" / "test.txt", voc / "Annotations" / "000001.xml"
    for name, listed in (("trainval.txt", "000001\n000002\n"), ("test.txt", "000002\n")):
        (voc / "ImageSets" / "Main" / name).write_text(listed)
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    xml.write_text(
        "<annotation><filename>000001.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>"
        f"<object><name>dog</name><difficult>0</difficult>{box}</object>"
        f"<object><name>cat</name><difficult>1</difficult>{box}</object></annotation>"
    )
    shutil.copy(xml, xml.with_name("000002.xml"))
    yield Target("VOC's XML", _file(xml, damaged_bytes), lambda: _check(voc))

    def lists_alone(draw: random.Random) -> None:
        xml.write_bytes(whole)
        damage(draw)

    whole, damage = xml.read_bytes(), _file(lists, damaged_bytes)
    yield Target("VOC's lists", lists_alone, lambda: _check(voc))


def _layouts(folder: Path) -> Iterator[Target]:
    for name, path, kind, root in make_layouts(folder):
        damage = damaged_bytes if kind == "bytes" else partial(damaged_json, lines=kind == "json lines")
        yield Target(name, _file(path, damage), lambda root=root: _check(root))


def _check(root: Path) -> None:
    """check-data, and what training and evaluation do with annotations before and after the network."""
    print_report(check_data(root, progress=False))
    for split in find_splits(root):
        dataset = load_dataset(root, split)
        if split == "val":
            score_detections(iter(()), dataset)
        model = SimpleNamespace(config=SimpleNamespace(masks=dataset.has_masks))
        from directdet.train.data import make_phase_loader
        from directdet.train.objects import count_objects

        count_objects(PHASE, dataset)
        loader = make_phase_loader(PHASE, dataset, model.config.masks, 0, False)
        for _ in loader:
            break
        loader.close()


def _pictures(folder: Path) -> Iterator[Target]:
    image = cv2.GaussianBlur(fixture_image(40, 56), (5, 5), 2)
    for suffix in ("png", "jpg", "bmp", "webp", "tiff", "gif"):
        path = folder / f"picture.{suffix}"
        done, content = (
            cv2.imencode(f".{suffix}", image) if suffix != "gif" or hasattr(cv2, "IMWRITE_GIF_LOOP") else (0, 0)
        )
        if not done:
            continue
        path.write_bytes(content.tobytes())
        yield Target(f"a {suffix}", _file(path, damaged_bytes), lambda path=path: read_image(path))


def _runs(folder: Path) -> Iterator[Target]:
    recipe = get_recipe("demo")
    settings = {"recipe": asdict(recipe), "data": "d", "seed": 0, "classes": ["a", "b"], "images": 3}
    settings["content"] = {name: {"images": 3, "names": "9f", "objects": 4} for name in ("train", "val")}
    run = folder / "run.json"
    run.write_text(json.dumps({**settings, "init": "random", "torch": "2", "processes": 1}))

    def same_run() -> None:
        check_same_run(run, settings)
        started_from(run.parent)

    yield Target("run.json", _file(run, damaged_json), same_run)

    begun = folder / "run" / "pretrain" / "run.json"
    begun.parent.mkdir(parents=True)
    begun.write_text(run.read_text())
    yield Target("run.json to resume", _file(begun, damaged_json), lambda: stored_run(begun.parent.parent))

    log = folder / "log" / "log.jsonl"
    log.parent.mkdir()
    step = {"kind": "step", "phase": "pretrain", "step": 3, "epoch": 1.0, "lr": 0.1, "loss": 2.5, "losses": {"a": 2.5}}
    step |= {"positives": 3.0, "mask_dropped": 0.0, "seconds_per_step": 0.1, "data_seconds": 0.01}
    ap = {"AP": 0.1, "AP50": 0.2}
    rows = [step, {"kind": "eval", "phase": "pretrain", "step": 3, "bbox": ap, "segm": ap, "voc": {"mAP_area": 0.1}}]
    log.write_text("".join(json.dumps(row) + "\n" for row in (*rows, {**step, "step": 6})))

    def logs() -> None:
        read_results(log)
        with RunLog(log.parent, "pretrain", (4, 3)):
            pass

    yield Target("log.jsonl", _file(log, lambda content, draw: damaged_json(content, draw, lines=True)), logs)


def _artefacts(folder: Path) -> Iterator[Target]:
    picture = fixture_image(50, 70)

    def detect(path: Path) -> None:
        load(path, device="cpu", threads=1)(picture).to_coco(1, (1, 2, 3))

    one = write_artefact(folder / "meta")
    yield Target("meta.json", _file(one / "meta.json", damaged_json), lambda: detect(one))

    two = write_artefact(folder / "onnx")
    damage, meta = _file(two / "model.onnx", damaged_bytes), json.loads((two / "meta.json").read_text())

    def graph(draw: random.Random) -> None:
        damage(draw)
        meta["files"]["model.onnx"] = hashlib.sha256((two / "model.onnx").read_bytes()).hexdigest()
        (two / "meta.json").write_text(json.dumps(meta))

    yield Target("model.onnx", graph, lambda: detect(two))


def _checkpoints(folder: Path) -> Iterator[Target]:
    torch.manual_seed(0)
    model = build_model(TINY)
    dataset = load_dataset(make_synthetic(folder / "data", images_train=4, images_val=1, size=(64, 64)), "train")
    trainer = Trainer(model, PHASE, dataset, None, folder / "run" / PHASE.name, "tiny", 0)
    trainer.position.step = 1
    trainer.save("last.pt")
    path = folder / "run" / PHASE.name / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    picture = fixture_image(40, 60)

    def values(draw: random.Random) -> None:
        """All but the weights and moments as JSON has them; these are dropped, swapped, cut or replaced."""
        plain = {key: value for key, value in content.items() if key not in ("model", "optimizer")}
        try:
            plain = json.loads(json.dumps(plain))
        except TypeError:
            plain = {key: value for key, value in plain.items() if isinstance(value, (str, int, float, dict, list))}
        changed = damaged_value(plain, draw) if draw.random() < 0.7 else plain
        state = dict(content["model"])
        if draw.random() < 0.4:
            name, other = draw.choice(list(state)), draw.choice(list(state))
            one: Any = state[name]
            state[draw.choice((name, "x", 3))] = draw.choice(
                (state[other], one.double(), one[:0] if one.dim() else one, one.flatten(), None, 3, [one], "a",
                 torch.zeros(1).expand(10**6), one.to_sparse() if one.dim() else one, torch.empty(2, device="meta"))
            )  # fmt: skip
        whole = {**changed, "model": state} if isinstance(changed, dict) else changed
        if draw.random() < 0.6 and isinstance(whole, dict):
            whole["optimizer"] = (
                content["optimizer"] if draw.random() < 0.5 else damaged_value({"state": {"0": {}}}, draw)
            )
        try:
            torch.save(whole, path)
        except (UnicodeEncodeError, RuntimeError):
            path.write_bytes(b"")

    def whole() -> None:
        load(path, device="cpu")(picture).to_coco(1, (1, 2, 3, 4))

    def resumed() -> None:
        trainer.resume(path)

    def started() -> None:
        load_weights(model, path, dataset.classes)

    yield Target("a checkpoint's values", values, whole)
    yield Target("a checkpoint's values, resumed", values, resumed)
    yield Target("a checkpoint's values, started from", values, started)
    yield Target("a checkpoint's bytes", _file(path, damaged_bytes), whole)
    state = folder / "backbone.pt"
    torch.save({name: value for name, value in torch.nn.Linear(2, 2).state_dict().items()}, state)
    yield Target("a backbone's bytes", _file(state, damaged_bytes), lambda: load_weights(model, state, dataset.classes))


def _results(folder: Path) -> Iterator[Target]:
    pictures, out = folder / "pictures", folder / "out"
    pictures.mkdir()
    for number in range(3):
        cv2.imwrite(str(pictures / f"{number}.png"), fixture_image(30, 40 + number))
    detector = load(write_artefact(folder / "artefact"), device="cpu", threads=1)
    options = PredictOptions(pictures=False)
    predict(detector, pictures, out, options, progress=False)
    settings = {"model": detector.source, "source": str(pictures), "score": options.score, "pictures": False}
    rows = [{**settings, "classes": None}]
    content = json.loads((out / "detections.json").read_text())
    for number, image in enumerate(content["images"][:2], 1):
        entries = [entry for entry in content["annotations"] if entry["image_id"] == number]
        about = {
            "image_id": number,
            "file_name": image["file_name"],
            "width": image["width"],
            "height": image["height"],
        }
        rows.append({**about, "detections": entries})
    record = (out / ".directdet-files.jsonl").read_bytes()
    part = out / "detections.part.jsonl"
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    damage = _file(part, lambda content, draw: damaged_json(content, draw, lines=True))

    def interrupted(draw: random.Random) -> None:
        (out / ".directdet-files.jsonl").write_bytes(record)
        damage(draw)

    def resume() -> None:
        predict(detector, pictures, out, options, resume=True, progress=False)

    yield Target("detections.part.jsonl", interrupted, resume)

    files = folder / "files" / ".directdet-files.jsonl"
    files.parent.mkdir()
    files.write_bytes(record)
    (files.parent / "detections.json").write_text("{}")
    yield Target(
        ".directdet-files.jsonl",
        _file(files, lambda content, draw: damaged_json(content, draw, lines=True)),
        lambda: OwnFiles(files.parent).claim([("detections.json", lambda: Origin(str(pictures), None))]),
    )


def _comparisons(folder: Path) -> Iterator[Target]:
    data = make_synthetic(folder / "data", images_train=2, images_val=1, size=(64, 64))
    sets = [load_dataset(data, split) for split in ("train", "val")]
    setup = Setup(data, *sets, folder, torch.device("cpu"), 0, ())
    experiment = EXPERIMENTS["direct/table2"]
    trials = experiment.trials(SCALES["smoke"])
    asked = {"experiment": "direct/table2", "scale": "smoke", "seed": 0, "phase_steps": 3, "budget_s": None}
    asked |= {"metric": "coco", "images": [len(one) for one in sets]}
    plan = make_plan(asked, experiment, trials, setup)
    path = folder / "plan.json"

    def planned() -> None:
        found = make_plan(asked, experiment, trials, setup)
        read_comparison(folder, found, trials).table()

    yield Target("plan.json", _file(path, damaged_json), planned)
    end = folder / trials[-1].key / "diverged.json"
    end.parent.mkdir()
    end.write_text(json.dumps({"after_step": 3, "message": "the loss became nan"}))
    yield Target("diverged.json", _file(end, damaged_json), lambda: read_comparison(folder, plan, trials).table())
    part = folder / "landscape.part.json"
    run = {"name": "none_1x", "label": "", "learning_rate": 0.1, "stopped": None}
    run |= {"loss": [1.0, 2.0], "norm": [1.0, 2.0], "fluctuation": [1.0]}
    part.write_text(json.dumps({"asked": {"seed": 0}, "runs": [run]}))
    yield Target("landscape.part.json", _file(part, damaged_json), lambda: _trained(part, {"seed": 0}))
