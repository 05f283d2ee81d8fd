"""Multi-scale testing, with a network that finds the bright rectangle that it can see, and with real ones."""

import json

import numpy as np
import pytest
import torch
from test_deploy_cases import write_annotations
from tiny_artefact import CATEGORY_IDS, CLASSES

from directdet.common.errors import UsageProblem, UserError
from directdet.front.cli import main
from directdet.infer.network_input import NetworkInput
from directdet.infer.predictor import Predictor
from directdet.infer.preprocess import Preprocess
from directdet.infer.runtimes.load import load
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.infer.scaled import ScaledDetector, hflip
from directdet.models.build import build_model, describe_model
from directdet.models.checkpoint import save_checkpoint
from directdet.models.ssd.config import SSDConfig

SIDE, LEAST = 64, 6  # of the canvas; pixels of it below which an object is not seen
HEIGHT, WIDTH = 96, 128  # of the pictures: half as large on the canvas


class Eyes:
    """Returns the box of what is bright, with a mask of its left half; surer the larger it is on the canvas."""

    runtime, info = "eyes", {"device": "cpu"}

    def __init__(self, size=(SIDE, SIDE)) -> None:
        self.input = NetworkInput("uint8", canvas=size, batch=1)

    def at_size(self, size):
        return Eyes(size)

    def run(self, images):
        num, boxes, scores = np.zeros((1, 1), np.int32), np.zeros((1, 4, 4), np.float32), np.zeros((1, 4), np.float32)
        rows, columns = np.nonzero((images[0] > 200).all(-1))
        if len(rows) and np.ptp(columns) + 1 >= LEAST:
            num[0], scores[0, 0] = 1, len(rows) / 1e5
            boxes[0, 0] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        masks = np.zeros((1, 4, 28, 28), np.float32)
        masks[..., :14] = 1
        return num, boxes, scores, np.zeros((1, 4), np.int32), masks


def eyes() -> Predictor:
    return Predictor(Eyes(), Preprocess((SIDE, SIDE)), ("a",), (1,))


def picture(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    return image


@pytest.mark.parametrize("scales", [(1.0,), (2.0, 0.5), (0.5, 1, 2)])
@pytest.mark.parametrize("flip", [False, True])
def test_the_best_look_is_kept(scales, flip):
    found = ScaledDetector(eyes(), scales, flip)(picture(20, 8, 60, 72))
    assert found.boxes.tolist() == [[20, 8, 60, 72]]
    assert found.scores[0] == pytest.approx(20 * 32 * max(scales) ** 2 / 1e5)


def test_what_one_size_cannot_see_another_does():
    image = picture(100, 40, 110, 60)  # 5 pixels on the canvas
    assert len(eyes()(image)) == 0
    assert ScaledDetector(eyes(), (0.5, 1, 2))(image).boxes.tolist() == [[100, 40, 110, 60]]
    empty = ScaledDetector(eyes(), (1, 2), flip=True)(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert len(empty) == 0 and empty.image_size == (HEIGHT, WIDTH) and empty.masks is not None


def test_a_mirrored_picture_gives_mirrored_boxes_and_masks():
    plain, turned = eyes()(picture(20, 8, 60, 72)), hflip(eyes()(picture(WIDTH - 60, 8, WIDTH - 20, 72)))
    assert np.array_equal(plain.boxes, turned.boxes) and np.array_equal(plain.mask_boxes, turned.mask_boxes)
    left, right = plain[0].full_mask(), turned[0].full_mask()
    assert left[:, 20:40].any() and not left[:, 41:].any()  # its left half; and, mirrored, its right one
    assert np.array_equal(left[:, 20:60], right[:, 20:60][:, ::-1]) and right.sum() == left.sum()


@pytest.mark.parametrize(
    ("preprocess", "scale", "size"),
    [
        (Preprocess((448, 448)), 0.8, (352, 352)),  # of 358.4: a multiple of 32
        (Preprocess((64, 64)), 0.25, (32, 32)),
        (Preprocess((800, 1333), fixed=False), 0.75, (600, 1000)),
        (Preprocess((300, 300), warp=True), 1.25, (375, 375)),
    ],
)
def test_sizes_follow_the_scale(preprocess, scale, size):
    assert preprocess.at_scale(scale).size == size
    assert preprocess.at_scale(1) == preprocess


@pytest.mark.parametrize("scales", [(), (1, 1), (0.1,), (5,), (float("nan"),)])
def test_scales_that_cannot_be(scales):
    with pytest.raises(UsageProblem, match="scales: "):
        ScaledDetector(eyes(), scales)


def test_a_free_network_at_a_size_is_itself_there():
    """Faster R-CNN at scale 1.5 is the same network with the other preprocessing; all looks merged are of both."""
    torch.manual_seed(0)
    config = {"backbone": "resnet18", "width": 8, "fpn_channels": 16, "box_features": 16, "box_convs": 1}
    few = {"masks": False, "test_pre_nms": 50, "test_proposals": 20, "score_threshold": 0.0, "candidates": 60}
    model = build_model({"detector": "rcnn", "num_classes": 3, **config, **few, "detections": 10}).eval()
    classes, ids = ("a", "b", "c"), (1, 2, 3)
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    one = TorchPredictor.from_model(model, Preprocess((64, 96)), classes, ids)
    other = TorchPredictor.from_model(model, Preprocess((96, 160)), classes, ids)  # 96 x 144, to multiples of 32
    scaled = one.at_scale(1.5)
    assert np.array_equal(scaled(image).boxes, other(image).boxes) and len(other(image))
    both = {tuple(box) for detector in (one, other) for box in detector(image).boxes.tolist()}
    assert {tuple(box) for box in ScaledDetector(one, (1, 1.5))(image).boxes.tolist()} <= both


@pytest.fixture
def ssd(tmp_path):
    """A checkpoint of an SSD."""
    torch.manual_seed(0)
    config = SSDConfig(len(CLASSES), width=8, size=193, score_threshold=0.0)
    content = {
        "model_config": describe_model(config),
        "model": build_model(describe_model(config)).state_dict(),
        "classes": list(CLASSES),
        "category_ids": list(CATEGORY_IDS),
        "preprocess": Preprocess((193, 193), warp=True).to_dict(),
        "recipe": "test",
        "phase": "scratch",
    }
    save_checkpoint(tmp_path / "ssd.pt", content)
    return tmp_path / "ssd.pt"


def test_an_ssd_takes_other_sizes(ssd):
    detector = load(ssd, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    found = ScaledDetector(detector, (1, 1.3), flip=True)(image)
    assert len(found) and found.boxes.min() >= 0 and (found.boxes.max(0)[2:] <= (150, 100)).all()
    with pytest.raises(UserError, match=r"ssd.pt: scale 0.25: an SSD takes squares, .* not 48x48"):
        detector.at_scale(0.25)


@pytest.fixture
def data(tmp_path, tiny_dataset):
    write_annotations(tmp_path / "data", tiny_dataset)
    return tmp_path / "data"


def ap_of(command, tmp_path):
    assert main([*map(str, command), "--json", str(tmp_path / "eval.json"), "--device", "cpu"]) == 0
    return json.loads((tmp_path / "eval.json").read_text())


def test_from_the_command_line(ssd, artefact, data, tmp_path, capsys):
    command = ["eval", ssd, "--data", data, "--results", tmp_path / "results.json"]
    plain = ap_of(command, tmp_path)
    same = ap_of([*command, "--scales", "1"], tmp_path)
    assert same["bbox"] == plain["bbox"] and same["model"]["scales"] == [1] and same["model"]["flip"] is False
    looked = ap_of([*command, "--scales", "1,1.2", "--flip"], tmp_path)
    assert looked["model"]["scales"] == [1, 1.2] and looked["model"]["flip"] is True
    found = ScaledDetector(load(ssd, device="cpu"), (1, 1.2), flip=True)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == sum(len(found(image)) for image in (data / "val2017").iterdir())
    assert ap_of(["eval", artefact, "--data", data, "--flip"], tmp_path)["model"]["flip"] is True
    for options, code, words in (
        (["--scales", "0.5,1"], 1, "this model takes one size; give the run or a checkpoint"),
        (["--scales", "1,9"], 2, "scales: 1, 9; give different ones from 0.25 to 4"),
        (["--scales", "1,a"], 2, "'1,a' is not a list of numbers such as 0.8,1,1.2"),
        (["--flip", "--tiles", "64"], 2, "tiles: are of one scale"),
    ):
        assert main(["eval", str(artefact), "--data", str(data), "--device", "cpu", *options]) == code
        assert words in " ".join(capsys.readouterr().err.split())


def test_a_submission_of_several_scales(ssd, data, tmp_path):
    command = ["submit", ssd, "--data", data, "--split", "val", "--to", "coco", "--out", tmp_path / "out"]
    command += ["--scales", "1,1.2", "--flip", "--device", "cpu"]
    assert main(list(map(str, command))) == 0
    rows = json.loads((tmp_path / "out" / "detections_val2017_ssd.pt_results.json").read_text())
    found = ScaledDetector(load(ssd, device="cpu"), (1, 1.2), flip=True)
    best = max(found(image).scores.max() for image in (data / "val2017").iterdir())
    assert max(row["score"] for row in rows) == pytest.approx(best, abs=1e-5)
