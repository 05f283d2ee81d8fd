"""Train a small detector from random weights, evaluate it, and detect objects in a picture.

    python examples/train_and_detect.py [FOLDER]

No data is needed: a set of made-up pictures (disks, squares, triangles and stars) is written to FOLDER/data. It takes
less than a minute on two CPU cores.
"""

import sys
from pathlib import Path

import cv2

from directdet import Detector, evaluate, load_dataset, train
from directdet.data.synthetic import make_synthetic
from directdet.infer.draw import draw

# What `directdet demo` trains, smaller and shorter. `directdet recipes demo` shows every setting that there is.
SETTINGS = {
    "pretrain.size": (96, 96),
    "pretrain.epochs": 24,
    "pretrain.eval_every": 0,
    "finetune.size": (128, 128),
    "finetune.epochs": 4,
    "eval_size": (128, 128),
    "warmup_iterations": 10,
    "workers": 0,
}


def main(folder: Path) -> None:
    data = make_synthetic(folder / "data", images_train=48, images_val=12, size=(96, 128))
    run = train("demo", data=data, out=folder / "run", device="cpu", **SETTINGS)

    val = load_dataset(data, "val")
    metrics = evaluate(run.out, data=data, device="cpu").metrics
    print(f"box AP50 on {len(val)} pictures: {100 * metrics.bbox['AP50']:.1f} %")

    detector = Detector(run.out, device="cpu")
    image = cv2.imread(str(val.records[1].path))  # uint8 [H, W, 3], BGR
    found = detector(image).above(0.3)
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        print(f"{detector.classes[label]} {score:.2f} at {box.round().astype(int).tolist()}")
    cv2.imwrite(str(folder / "detected.jpg"), draw(image, found, detector.classes))
    print(f"{len(found)} objects drawn into {folder / 'detected.jpg'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-train"))
