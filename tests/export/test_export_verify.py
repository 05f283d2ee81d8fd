"""The verdict: what it is made of, and that it can fail."""

import io
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from directdet.common.errors import MissingLibraryError, UserError
from directdet.export.verification import side_by_side
from directdet.export.verification.matching import Comparison, compare
from directdet.export.verification.side_by_side import SideBySide, VerificationSet, compare_runtimes
from directdet.export.verification.verify import (
    TOLERANCES,
    SameCanvas,
    Verification,
    _in_several_batches,
    input_difference,
    network_of,
)
from directdet.infer.decode import to_detections
from directdet.infer.detections import Detections
from directdet.infer.network_input import NetworkInput
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Placement, Preprocess, fixture_image
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.torch_runtime import TorchPredictor, load_torch

GOOD = Comparison(
    "a", expected=10, found=10, counted=10, matched=10, undecided=0, box=0.01, score=1e-5, mask=1e-3, mean_score=0.5
)


def verification(*comparisons, precision="fp32", **settings):
    return Verification("onnxruntime", TOLERANCES[precision], comparisons or (GOOD,), **settings)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"box": 0.11}, "box px"),
        ({"score": 2e-3}, "score"),
        ({"mask": 0.03}, "mask"),
        ({"matched": 9}, "matched"),
        ({"mask_iou": 0.9}, "mask IoU"),
        ({"shift": (0.0, -0.06)}, "shift px"),
        ({"score_shift": -6e-4}, "score shift"),
        ({"found": 2}, "found"),
    ],
)
def test_one_difference_too_large_fails_and_is_named(change, name):
    assert verification().passed and not verification().reasons
    failed = verification(GOOD, replace(GOOD, **change))
    assert not failed.passed and [one.name for one in failed.failed] == [name]
    assert failed.reasons[0].startswith("FAIL in onnxruntime: ") and failed.reasons[-1].startswith("What to do: ")
    assert failed.to_dict()["failed"] == [name] and failed.to_dict()["reasons"] == list(failed.reasons)


@pytest.mark.parametrize(
    ("expected", "found", "passes"), [(400, 290, True), (400, 270, False), (6, 1, True), (0, 7, False)]
)
def test_the_number_of_detections_counts_low_scores_too(expected, found, passes):
    """Of scores within the tolerance of the threshold none has to match, but half of them must not be lost."""
    low = replace(GOOD, expected=expected, found=found)
    assert verification(low, precision="int8").passed == passes


def test_another_preprocessing_fails():
    assert verification(input=0.5).passed
    failed = verification(input=3.0)
    assert [one.name for one in failed.failed] == ["input"] and "3 grey levels" in failed.reasons[0]


@pytest.mark.parametrize(
    "change",
    [{"mean": (0.0, 0.0, 0.0)}, {"std": (64.0, 64.0, 64.0)}, {"warp": True}, {"size": (96, 160)}],
)
def test_a_different_preprocessing_is_measured(change):
    """Detections are compared on the candidate's own canvases, which hide a wrong one."""
    right = Preprocess((64, 96))
    image = fixture_image(80, 70)

    def predictor(preprocess, channels_last):
        batch = NetworkInput("uint8") if channels_last else NetworkInput()
        return Predictor(SimpleNamespace(input=batch), preprocess, ("a",), (1,))

    for channels_last in (True, False):
        wrong = predictor(replace(right, **change), channels_last)
        assert input_difference(predictor(right, False), predictor(right, channels_last), image) < 0.01
        assert input_difference(predictor(right, False), wrong, image) > 1


@pytest.mark.parametrize("sign", [-1, 1])
def test_ap_counts_either_way(sign):
    own = {"box": 0.5, "mask": 0.4}
    assert verification(ap={"box": 0.5009, "mask": 0.4}, reference_ap=own).passed
    wrong = {"box": 0.5, "mask": 0.4 + sign * 0.0021}
    failed = verification(ap=wrong, reference_ap=own)
    assert not failed.passed and [one.name for one in failed.failed] == ["mask AP"]
    assert not verification(ap={"box": 0.5}, reference_ap=own).passed  # masks were lost
    assert verification(precision="int8", ap=wrong, reference_ap=own).passed


def test_the_tolerance_of_ap_follows_what_the_pictures_leave_open():
    own, other = {"box": 0.5, "mask": 0.4}, {"box": 0.5, "mask": 0.4025}
    assert verification(ap=other, reference_ap=own, ap_spread={"mask": 0.0006}).passed
    assert not verification(ap=other, reference_ap=own, ap_spread={"mask": 0.0004}).passed


def test_lower_precisions_are_not_judged_by_a_single_pixel_or_picture():
    """A mask whose outline moves by a cell differs by 1 there."""
    edge = replace(GOOD, mask=1.0, mask_iou=0.96)
    assert verification(edge, precision="bf16").passed and not verification(edge).passed
    assert not verification(replace(edge, mask_iou=0.4), precision="int8").passed
    few, many = replace(GOOD, counted=2, matched=2, mask_iou=0.5), replace(GOOD, counted=98, matched=98, mask_iou=1.0)
    assert verification(few, many, precision="int8").mask_iou == pytest.approx(0.99)


def test_masks_that_are_no_numbers_fail():
    boxes, scores, labels = np.array([[1.0, 2, 30, 40]], np.float32), np.array([0.9], np.float32), np.zeros(1, np.int32)
    masks = np.full((1, 28, 28), 0.5, np.float32)
    place = Placement(1.0, 1.0, 64, 64, 64, 64)
    one = to_detections((np.array([[1]], np.int32), boxes[None], scores[None], labels[None], masks[None]), 0, place)
    broken = replace(one, masks=np.full_like(masks, np.nan))
    same, other = (compare("x", one, found, list, [0.0, 0.0], 1.0, TOLERANCES["fp32"]) for found in (one, broken))
    assert verification(same).passed and other.mask == 1.0 and not verification(same, other).passed


def test_precisions_grow_laxer():
    rows = [TOLERANCES[name] for name in ("fp32", "fp16", "bf16", "int8")]
    for tight, lax in itertools.pairwise(rows):
        assert tight.box < lax.box and tight.score < lax.score and tight.ap < lax.ap and tight.matched > lax.matched
        assert tight.shift < lax.shift and tight.mask_iou > lax.mask_iou


def test_the_table_and_the_record_name_every_runtime():
    failed = replace(verification(replace(GOOD, box=3.0)), runtime="openvino", latency_ms=2.0, ap={"box": 0.2})
    failed = replace(failed, reference_ap={"box": 0.5}, notes=("a note",))
    both = SideBySide((replace(verification(), latency_ms=1.0), failed), 5.0, {"box": 0.5}, 40, 2, ("another",))
    assert not both.passed
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(both.table())
    said = console.export_text()
    for text in (
        "PyTorch",
        "onnxruntime",
        "openvino",
        "FAIL",
        "50.00",
        "20.00",
        "3.0e+00",
        "FAIL in openvino: a box differs by 3 px, at most 0.1",
        "What to do:",
        "a note",
        "another",
        "40",
    ):
        assert text in said, text
    record = json.loads(json.dumps(both.to_dict()))
    assert record["passed"] is False and [one["passed"] for one in record["runtimes"]] == [True, False]
    assert record["runtimes"][1]["ap"] == {"box": 0.2} and record["pytorch"]["ap"] == {"box": 0.5}
    assert record["runtimes"][0]["tolerance"]["ap"] == 0.001
    assert record["failed"] == ["openvino: box px", "openvino: box AP"]


@pytest.mark.parametrize(
    ("wanted", "sizes"),
    [
        (NetworkInput(min_batch=1, max_batch=4), [4, 1, 3, 2]),
        (NetworkInput(min_batch=2, max_batch=3), [3, 2, 3, 2]),
        (NetworkInput(min_batch=1, max_batch=50), [10]),
        (NetworkInput(batch=4, min_batch=4, max_batch=4), [10]),  # detect_batch itself cuts them
    ],
)
def test_batches_of_several_sizes_are_tried(wanted, sizes):
    tried = []
    detector = SimpleNamespace(
        backend=SimpleNamespace(input=wanted), detect_batch=lambda images: tried.append(len(images)) or list(images)
    )
    images = [np.full((2, 2, 3), number) for number in range(10)]
    assert [int(image[0, 0, 0]) for image in _in_several_batches(detector, images)] == list(range(10))
    assert tried == sizes


def test_a_runtime_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(
        side_by_side, "load", lambda *_, **__: (_ for _ in ()).throw(MissingLibraryError("OpenVINO: no"))
    )
    with pytest.raises(UserError, match="cannot be verified: onnxruntime or openvino is not installed"):
        compare_runtimes(None, "folder", "onnx", VerificationSet(()))
    monkeypatch.setattr(side_by_side, "load", lambda *_, **__: (_ for _ in ()).throw(UserError("broken file")))
    with pytest.raises(UserError, match="broken file"):
        compare_runtimes(None, "folder", "onnx", VerificationSet(()))


def test_pytorch_gets_the_padding_that_the_artefact_gets(exported):
    """The rounded grey that pads a uint8 canvas is zero in the graph, as the padding of a normalised image is."""
    candidate = load(exported.artefact, runtime="onnxruntime", device="cpu")
    reference = load_torch(exported.artefact.parent / "model.pt", device="cpu")
    reference = TorchPredictor.from_model(
        network_of(reference), candidate.preprocess, reference.classes, reference.category_ids
    )
    same, tall = (
        SameCanvas(reference, candidate),
        np.random.default_rng(0).integers(0, 256, (90, 30, 3), dtype=np.uint8),
    )
    canvas, (placement,) = same.prepare([tall])
    own, _ = reference.prepare([tall])
    assert np.abs(canvas - own).max() < 1e-5
    assert not own[..., placement.width :].any() and not canvas[..., placement.width :].any()  # exactly zero in both
    theirs, _ = candidate.prepare([tall])
    assert np.array_equal(canvas, candidate.preprocess.normalise(theirs))
    found, expected = candidate.detect_batch([tall])[0], same.detect_batch([tall])[0]
    assert len(found) == len(expected) and np.abs(found.boxes - expected.boxes).max(initial=0) < 0.1


def found(boxes, scores, masks=None):
    return Detections(np.array(boxes, np.float32), np.array(scores), np.zeros(len(scores), np.int64), masks, (64, 64))


def test_of_two_equal_boxes_either_may_be_kept():
    """NMS keeps one of two boxes on an object whose scores differ by rounding, and PyTorch under noise keeps either."""
    one, other = found([[1, 2, 30, 40]], [0.9]), found([[1, 2, 30.4, 40]], [0.9])
    fp32 = TOLERANCES["fp32"]
    unsteady = compare("x", one, other, lambda: [one, other], [0.0, 0.0], 1.0, fp32)
    assert (unsteady.counted, unsteady.undecided, unsteady.box) == (0, 1, 0.0)
    steady = compare("x", one, other, lambda: [one, one], [0.0, 0.0], 1.0, fp32)
    assert (steady.counted, steady.matched) == (1, 1) and steady.box == pytest.approx(0.4)
    assert not verification(steady).passed


def test_masks_and_shifts_are_means_over_the_matched():
    masks = np.zeros((2, 4, 4), np.float32)
    masks[:, :, :2] = 1.0
    boxes = [[1, 2, 11, 12], [30, 30, 50, 60]]
    moved = masks.copy()
    moved[1, :, 2] = 1.0  # 8 cells of 12
    one, other = found(boxes, [0.9, 0.8], masks), found(np.add(boxes, [0.5, 0.25, 0.5, 0.25]), [0.86, 0.78], moved)
    result = compare("x", one, other, list, [0.0, 0.0], 2.0, TOLERANCES["int8"])
    assert result.matched == 2 and result.mask == 1.0 and result.mask_iou == pytest.approx((0.9 + 0.8 * 8 / 12) / 1.7)
    assert result.shift == pytest.approx((1.0, 0.5)) and result.box == pytest.approx(1.0)
    assert result.score_shift == pytest.approx(-0.03, abs=1e-6) and result.mean_score == pytest.approx(0.85)
    assert verification(result).score_shift == pytest.approx(0.03 / 0.85, abs=1e-6)
    assert result.score == pytest.approx(0.04, abs=1e-6)


def test_of_many_equal_boxes_another_choice_is_undecided():
    """On a blank picture NMS starts anywhere: eight runs do not show every choice, but that each run chose another."""
    one, other = found([[0, 0, 20, 20]], [0.5]), found([[6, 0, 26, 20]], [0.5])
    runs = [found([[x, 0, x + 20, 20]], [0.5]) for x in (2, 4, 8)]
    fp32 = TOLERANCES["fp32"]
    result = compare("blank", one, other, lambda: runs, [0.0, 0.0], 1.0, fp32)
    assert (result.counted, result.undecided) == (0, 2)
    assert compare("x", one, other, lambda: [one, one], [0.0, 0.0], 1.0, fp32).counted == 2  # PyTorch repeats it
    for wrong in (found([[40, 0, 60, 20]], [0.5]), found([[6, 0, 26, 20]], [0.7])):  # elsewhere, another score
        assert compare("x", one, wrong, lambda: runs, [0.0, 0.0], 1.0, fp32).counted == 1
