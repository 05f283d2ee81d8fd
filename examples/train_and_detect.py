"""Train a small detector from random weights, evaluate it, and detect objects in a picture.

    python examples/train_and_detect.py [FOLDER]

No data is needed: a set of made-up pictures (disks, squares, triangles and stars) is written to FOLDER/data. It takes
about a minute on two CPU cores.
"""

import sys
from pathlib import Path

import cv2

from directdet import Detector
from directdet.data.dataset import load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.infer.accuracy.evaluate import evaluate
from directdet.infer.draw import draw
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings
from directdet.train.run import train

# The slim RetinaNet made slimmer still, for pictures of 96 to 128 pixels. `directdet recipes retinanet_r18_slim` shows
# every setting that there is.
SETTINGS = [
    "model.width=16",
    "model.head_convs=1",
    "model.anchor_scale=3",
    "pretrain.size=96,96",
    "pretrain.epochs=20",
    "pretrain.warmup_iterations=20",
    "pretrain.eval_every=0",
    "finetune.size=128,128",
    "finetune.epochs=3",
    "finetune.warmup_iterations=5",
    "eval_size=128,128",
    "workers=0",
]


def main(folder: Path) -> None:
    data = make_synthetic(folder / "data", images_train=64, images_val=12, size=(96, 128))
    recipe = apply_settings(get_recipe("retinanet_r18_slim"), SETTINGS)
    train(recipe, data, folder / "run", device="cpu")

    detector = Detector(folder / "run", device="cpu")
    val = load_dataset(data, "val")
    print(f"box AP50 on {len(val)} pictures: {100 * evaluate(detector, val).bbox['AP50']:.1f} %")

    image = cv2.imread(str(val.records[1].path))  # uint8 [H, W, 3], BGR
    found = detector(image).above(0.2)
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        print(f"{detector.classes[label]} {score:.2f} at {box.round().astype(int).tolist()}")
    cv2.imwrite(str(folder / "detected.jpg"), draw(image, found, detector.classes))
    print(f"{len(found)} objects drawn into {folder / 'detected.jpg'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-train"))
