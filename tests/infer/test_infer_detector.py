"""Three lines of Python."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import directdet
from directdet.common.errors import UserError
from directdet.infer.detections import Detections
from directdet.infer.predictor import Predictor
from directdet.infer.runtimes.load import load


def test_three_lines(artefact):
    from directdet import Detector

    detector = Detector(artefact, device="cpu")
    image = np.zeros((96, 128, 3), np.uint8)
    found = detector(image)
    assert isinstance(found, directdet.Detections) and directdet.Detections is Detections
    same = load(artefact, device="cpu")(image)
    for name in ("boxes", "scores", "labels", "masks"):
        assert np.array_equal(getattr(found, name), getattr(same, name))
    assert [detector.classes[label] for label in found.labels] == ["person", "dog"]
    assert isinstance(detector, Predictor) and len(detector.detect_batch([image, image])) == 2
    with pytest.raises(UserError, match="not found"):
        Detector("nowhere")
    with pytest.raises(AttributeError, match="Detektor"):
        _ = directdet.Detektor


def test_importing_it_loads_no_torch_and_importing_the_package_nothing():
    code = (
        "import sys, directdet\n"
        "assert not {'numpy', 'cv2', 'torch'} & set(sys.modules)\n"
        "from directdet import Detector\n"
        "assert 'cv2' in sys.modules and 'torch' not in sys.modules and 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
