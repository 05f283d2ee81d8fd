"""Export a trained detector to ONNX, look at its verification, and run it in ONNX Runtime.

    python examples/export_and_verify.py [FOLDER]

A small detector is trained first, on made-up pictures. It takes about a minute on two CPU cores.
"""

import sys
from pathlib import Path

import cv2
from rich.console import Console

from directdet import Detector
from directdet.data.dataset import load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.export.run import export
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings
from directdet.train.run import train

# What `directdet demo` trains, smaller and shorter. `directdet recipes demo` shows every setting that there is.
SETTINGS = """
size=96,96 epochs=10 warmup_iterations=10 eval_every=0 eval_size=128,128 workers=0
"""


def main(folder: Path) -> None:
    data = make_synthetic(folder / "data", images_train=48, images_val=6, size=(96, 128))
    recipe = apply_settings(get_recipe("demo"), SETTINGS.split())
    train(recipe, data, folder / "run", phase="pretrain", device="cpu")

    # Batch normalisation is folded, the post-processing goes into the graph, and every runtime that is installed here
    # must find what PyTorch finds in the val pictures, and reach its AP.
    checkpoint = folder / "run" / "pretrain" / "checkpoints" / "last.pt"
    result = export(checkpoint, folder / "artefact", data=data)
    Console().print(result.verification.table())
    print("verification:", "PASS" if result.verification.passed else "FAIL")
    print("files:", ", ".join(sorted(file.name for file in result.artefact.iterdir())))

    detector = Detector(result.artefact, runtime="onnxruntime", device="cpu")
    image = cv2.imread(str(load_dataset(data, "val").records[1].path))  # uint8 [H, W, 3], BGR
    found = detector(image).above(0.3)
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        print(f"{detector.classes[label]} {score:.2f} at {box.round().astype(int).tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-export"))
