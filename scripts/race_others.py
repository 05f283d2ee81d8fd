"""The contestants of race.py that are not ours: each learns from random weights and writes its detections as JSON.

Run by race.py, in a process of its own, with the Python that has the other tool: Ultralytics is under the AGPL and no
dependency of this project; who wants it in the race installs it in another environment. Nothing of directdet is
imported here.

    PYTHON race_others.py ultralytics yolo26n TASK.json      # TASK.json is written by race.py
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LOWEST = 0.001  # score of the detections that are kept, as COCO's evaluation expects many


def yolo_dataset(task: dict, folder: Path) -> Path:
    """The task's pictures and boxes in YOLO's layout; returns its data.yaml."""
    for split in ("train", "val"):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for one in task[split]:
            name = f"{one['image_id']}{Path(one['path']).suffix}"
            (images / name).unlink(missing_ok=True)
            (images / name).symlink_to(one["path"])
            lines = []
            for (x0, y0, x1, y1), label in zip(one["boxes"], one["labels"], strict=True):
                w, h = one["width"], one["height"]
                values = ((x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h)
                lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]))
            (labels / f"{one['image_id']}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = json.dumps(task["classes"])
    yaml = folder / "data.yaml"
    yaml.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {names}\n", encoding="utf-8")
    return yaml


def ultralytics(name: str, task: dict) -> dict:
    """A network of Ultralytics from its yaml, with its own defaults but for size, batch and time."""
    import torch
    from ultralytics import YOLO, settings  # pyright: ignore[reportMissingImports]
    from ultralytics import __version__ as version  # pyright: ignore[reportMissingImports]

    settings.update({"sync": False})
    folder = Path(task["out"])
    data = yolo_dataset(task, folder / "yolo")
    model = YOLO(f"{name}.yaml")
    began = time.perf_counter()
    options = {"imgsz": task["side"], "batch": 8, "seed": task["seed"], "device": task["device"], "workers": 0}
    model.train(
        data=str(data),
        epochs=1000,
        time=task["seconds"] / 3600,
        pretrained=False,
        project=str(folder),
        name="run",
        exist_ok=True,
        plots=False,
        verbose=False,
        **options,
    )
    seconds = time.perf_counter() - began
    best = YOLO(str(folder / "run" / "weights" / "best.pt"))
    found = []
    for one in task["val"]:
        result = best.predict(one["path"], imgsz=task["side"], conf=LOWEST, device=task["device"], verbose=False)[0]
        for box, score, label in zip(*(result.boxes.xyxy, result.boxes.conf, result.boxes.cls), strict=True):
            found.append([one["image_id"], int(label), float(score), *map(float, box)])
    onnx = best.export(format="onnx", imgsz=task["side"], simplify=False, nms=False)
    rows = (folder / "run" / "results.csv").read_text(encoding="utf-8").splitlines()
    return {
        "seconds": seconds, "found": found, "onnx": str(onnx), "epochs": len(rows) - 1, "canvas": [task["side"]] * 2,
        "version": f"Ultralytics {version}, torch {torch.__version__}",
    }  # fmt: skip


def torchvision(name: str, task: dict) -> dict:
    """torchvision's SSDlite320, trained as its references do (SGD, cosine), with steps that fill the time."""
    import random

    import torch
    import torchvision
    from torchvision.io import ImageReadMode, read_image
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from torchvision.transforms import v2
    from torchvision.tv_tensors import BoundingBoxes

    if name != "ssdlite":
        raise SystemExit(f"{name}: torchvision's contestant is ssdlite")
    torch.manual_seed(task["seed"])
    random.seed(task["seed"])
    device = torch.device(task["device"])
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(task["classes"]) + 1)
    model = model.to(device)
    change = v2.Compose(
        [v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, True)]
    )

    def sample(one: dict) -> tuple:
        picture = read_image(one["path"], ImageReadMode.RGB)
        corners: Any = torch.tensor(one["boxes"]).reshape(-1, 4)
        boxes = BoundingBoxes(corners, format="XYXY", canvas_size=(one["height"], one["width"]))  # pyright: ignore
        picture, target = change(picture, {"boxes": boxes, "labels": torch.tensor(one["labels"]).long() + 1})
        return picture.to(device), {key: torch.as_tensor(value).to(device) for key, value in target.items()}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.15 * 8 / 192, momentum=0.9, weight_decay=4e-5)
    began = time.perf_counter()
    steps, share = 0, 0.0
    model.train()
    while share < 1:
        batch = [sample(one) for one in random.sample(task["train"], min(8, len(task["train"])))]
        for group in optimizer.param_groups:
            rise = min(1.0, (steps + 1) / 100)
            group["lr"] = 0.15 * 8 / 192 * rise * 0.5 * (1 + torch.cos(torch.tensor(3.14159265 * share)).item())
        losses = model([picture for picture, _ in batch], [target for _, target in batch])
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        steps += 1
        share = (time.perf_counter() - began) / task["seconds"]
    seconds = time.perf_counter() - began
    model.eval()
    found = []
    with torch.inference_mode():
        for one in task["val"]:
            result = model([read_image(one["path"], ImageReadMode.RGB).to(device) / 255])[0]
            for box, score, label in zip(result["boxes"], result["scores"], result["labels"], strict=True):
                found.append([one["image_id"], int(label) - 1, float(score), *map(float, box)])
    version = f"torchvision {torchvision.__version__}, torch {torch.__version__}"
    return {"seconds": seconds, "found": found, "onnx": None, "steps": steps, "canvas": [320, 320], "version": version}


TOOLS = {"ultralytics": ultralytics, "torchvision": torchvision}


def main() -> None:
    tool, name, path = sys.argv[1:]
    task = json.loads(Path(path).read_text(encoding="utf-8"))
    result = TOOLS[tool](name, task)
    Path(task["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
