"""Export a trained detector to ONNX, look at its verification, and run it in ONNX Runtime.

    python examples/export_and_verify.py [FOLDER]

A small detector is trained first, on made-up pictures. It takes about a minute on two CPU cores.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from directdet import Detector
from directdet.data.dataset import load_dataset
from directdet.data.synthetic import make_synthetic
from directdet.export.run import export
from directdet.recipes.by_name import get_recipe
from directdet.recipes.settings import apply_settings
from directdet.train.run import train

SETTINGS = [
    "model.width=16",
    "model.head_convs=1",
    "model.anchor_scale=3",
    "size=96,96",
    "eval_size=128,128",
    "epochs=10",
    "warmup_iterations=20",
    "eval_every=0",
    "workers=0",
]


def main(folder: Path) -> None:
    data = make_synthetic(folder / "data", images_train=64, images_val=6, size=(96, 128))
    recipe = apply_settings(get_recipe("retinanet_r18_slim"), SETTINGS)
    train(recipe, data, folder / "run", phase="pretrain", device="cpu")

    # Batch normalisation is folded, the post-processing goes into the graph, and every runtime that is installed here
    # must find what PyTorch finds in the val pictures.
    result = export(folder / "run" / "pretrain" / "checkpoints" / "last.pt", folder / "artefact", data=data)
    Console().print(result.verification.table())
    print("verification:", "PASS" if result.verification.passed else "FAIL")

    # Small differences remain: the artefact pads with whole grey levels, the checkpoint with the exact mean colour.
    image = cv2.imread(str(load_dataset(data, "val").records[1].path))  # uint8 [H, W, 3], BGR
    torch_found = Detector(folder / "run" / "pretrain" / "checkpoints" / "last.pt", device="cpu")(image)
    onnx_found = Detector(result.artefact, runtime="onnxruntime", device="cpu")(image)
    difference = np.abs(torch_found.boxes[:5] - onnx_found.boxes[:5]).max()
    print(f"best score: {torch_found.scores[0]:.4f} in PyTorch, {onnx_found.scores[0]:.4f} in ONNX Runtime")
    print(f"the five best boxes differ by at most {difference:.4f} pixels")
    print("files:", ", ".join(sorted(file.name for file in result.artefact.iterdir())))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example-export"))
