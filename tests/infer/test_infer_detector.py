"""Three lines of Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


class Odd:
    """Nothing that is a picture."""


@pytest.mark.parametrize(
    "wrong,text",
    [
        (
            "nowhere.jpg",
            "the path 'nowhere.jpg': give its pixels, as cv2.imread(path) reads them, and there is no such",
        ),
        (Path(__file__), "reads them"),
        (None, "None: cv2.imread returns it for a file that it cannot read"),
        (Image.new("RGB", (8, 6)), "a picture of PIL: np.asarray(image.convert('RGB'))[:, :, ::-1] makes"),
        (np.zeros((40, 60, 3), np.uint8)[50:, :], "uint8 [0, 60, 3]: there are no pixels in it; is it a crop"),
        (np.zeros((40, 60), np.uint8), "uint8 [40, 60]: a grey picture"),
        (np.zeros((40, 60, 4), np.uint8), "a picture with transparency"),
        (np.zeros((40, 60, 3), np.float32), "float32 [40, 60, 3]: the pixels have to be uint8"),
        (np.zeros((2, 40, 60, 3), np.uint8), "several pictures; give them to detect_batch"),
        (Odd(), "a Odd: np.asarray makes an array of it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_picture_is_refused_in_one_line(wrong, text, artefact):
    detector = load(artefact, device="cpu")
    for call in (lambda: detector(wrong), lambda: detector.detect_batch([np.zeros((9, 9, 3), np.uint8), wrong])):
        with pytest.raises(UserError) as caught:
            call()
        said = str(caught.value)
        assert said.startswith("a detector takes pictures as uint8 [height, width, 3] in BGR order, not ")
        assert text in said and "\n" not in said


def test_what_is_no_path_is_refused():
    for wrong in (None, 3, ["artefact"]):
        with pytest.raises(UserError, match="not a path; give an artefact folder, a run folder or a checkpoint"):
            directdet.Detector(wrong)


def test_importing_it_loads_no_torch_and_importing_the_package_nothing():
    code = (
        "import sys, directdet\n"
        "assert not {'numpy', 'cv2', 'torch'} & set(sys.modules)\n"
        "from directdet import Detector\n"
        "assert 'cv2' in sys.modules and 'torch' not in sys.modules and 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
