"""Pictures of other sensors in preprocessing and inference: what goes in, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from directdet.common.errors import UserError
from directdet.data.pixels.format import PixelFormat
from directdet.export.contract import contract
from directdet.infer.predict.images import predict
from directdet.infer.predict.video import Video
from directdet.infer.predict.videos import predict_video
from directdet.infer.preprocess import Preprocess, made_picture
from directdet.infer.runtimes.torch_runtime import TorchPredictor
from directdet.models.build import build_model
from directdet.train.step import normalise

GREY16 = Preprocess((64, 96), mean=(20000.0,), std=(400.0,), dtype="uint16")
BANDS = Preprocess((64, 96), mean=(10.4, 20.0, 30.6, 40.0, 50.0, 60.0), std=(5.0,) * 6, show=(4, 5, 0))
METRES = Preprocess((64, 96), mean=(3.5, 2.0), std=(0.5, 0.25), dtype="float32")
KINDS = pytest.mark.parametrize("preprocess", [GREY16, BANDS, METRES])


def detector_of(preprocess):
    model = build_model(
        {"detector": "rtmdet", "num_classes": 2, "width": 8, "fpn_channels": 16, "in_channels": len(preprocess.mean)}
    )
    return TorchPredictor.from_model(model.eval(), preprocess, ("a", "b"), (1, 2))


@KINDS
def test_prepared_is_each_channel_resized_and_normalised(preprocess):
    image = made_picture(50, 40, preprocess.pixels)
    found, placement = preprocess(image)
    assert found.shape == (len(preprocess.mean), 64, 96) and found.dtype == np.float32
    size = (placement.width, placement.height)
    for channel, (mean, std) in enumerate(zip(preprocess.mean, preprocess.std, strict=True)):
        plane = cv2.resize(np.ascontiguousarray(image[:, :, channel]), size).astype(np.float64)
        np.testing.assert_allclose(found[channel, : size[1], : size[0]], (plane - mean) / std, atol=1e-4)
    assert not found[:, :, placement.width :].any()


@KINDS
def test_training_normalises_alike(preprocess):
    image = made_picture(64, 96, preprocess.pixels)
    planes = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    found = normalise(planes, torch.tensor([[64.0, 96.0]]), mean, std)[0]
    np.testing.assert_allclose(found.numpy(), preprocess(image)[0], atol=1e-5)


def test_the_canvas_of_more_than_three_channels():
    image = made_picture(50, 40, BANDS.pixels)
    canvas, placement = BANDS.letterbox(image)
    assert canvas.shape == (64, 96, 6) and canvas[0, -1].tolist() == [10, 20, 31, 40, 50, 60]
    normalised, prepared = BANDS.normalise(canvas[None])[0], BANDS(image)[0]
    inside = slice(placement.height), slice(placement.width)
    np.testing.assert_allclose(normalised[:, *inside], prepared[:, *inside], atol=1e-4)
    assert not normalised[:, :, placement.width :].any()
    with pytest.raises(ValueError, match="uint16 pictures have no canvas"):
        GREY16.letterbox(made_picture(50, 40, GREY16.pixels))


@KINDS
def test_stored_and_read_back(preprocess):
    stored = preprocess.to_dict()
    assert Preprocess.from_dict(stored) == preprocess
    assert "dtype" not in Preprocess((64, 96)).to_dict()
    for wrong in ({"dtype": "int16"}, {"mean": []}, {"mean": [1.0] * 17, "std": [1.0] * 17}, {"show": [99]}):
        with pytest.raises(UserError, match=r"meta\.json: preprocess: "):
            Preprocess.from_dict({**stored, **wrong}, "meta.json")
    sums = {
        one.checksum("float32") for one in (preprocess, replace(preprocess, std=tuple(2 * s for s in preprocess.std)))
    }
    assert len(sums) == 2 and preprocess.checksum("float32") in sums


@KINDS
def test_a_detector_takes_its_own_pictures_alone(preprocess):
    detector = detector_of(preprocess)
    detector(made_picture(50, 40, preprocess.pixels))
    for other in (Preprocess((64, 96)), GREY16, BANDS, METRES):
        if other != preprocess:
            with pytest.raises(UserError, match=f"takes pictures as {preprocess.dtype}"):
                detector(made_picture(50, 40, other.pixels))


def test_a_grey_picture_without_its_axis_is_told_how():
    with pytest.raises(UserError, match=r"image\[:, :, None\]"):
        detector_of(GREY16)(made_picture(50, 40, GREY16.pixels)[:, :, 0])


def test_a_network_of_other_channels_than_its_preprocessing(tmp_path):
    from directdet.infer.runtimes.torch_runtime import load_torch
    from directdet.models.build import describe_model
    from directdet.models.checkpoint import save_checkpoint

    model = detector_of(GREY16).backend.model
    content = {"model_config": describe_model(model.config), "model": model.state_dict(), "classes": ["a", "b"]}
    content |= {"category_ids": [1, 2], "preprocess": BANDS.to_dict()}
    save_checkpoint(tmp_path / "a.pt", content)
    with pytest.raises(UserError, match="the network takes 1 channels, its preprocessing gives 6"):
        load_torch(tmp_path / "a.pt", "cpu")


def test_infer_draws_and_leaves_out_other_files(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    image = made_picture(50, 70, GREY16.pixels)
    cv2.imwrite(str(folder / "a.png"), image)
    cv2.imwrite(str(folder / "b.png"), (image >> 8).astype(np.uint8))
    summary = predict(detector_of(GREY16), folder, out, progress=False)
    assert (summary.n_images, summary.n_skipped) == (1, 1)
    assert "b.png: holds 1 channel of uint8, not the 1 channel of uint16" in summary.failures[0]
    drawn = cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED)
    assert drawn.dtype == np.uint8 and drawn.shape == (50, 70, 3) and drawn.std() > 40


def test_a_video_is_refused(tmp_path):
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    with pytest.raises(UserError, match=r"read as 8-bit RGB, but model takes 1 channel of uint16; give pictures"):
        predict_video(detector_of(GREY16), Video(str(path)), tmp_path / "out", progress=False)


def test_the_contract_says_what_the_pictures_are():
    words = contract(GREY16, "float32", {}, masks=False)
    assert words["picture"].startswith("1 channel of uint16, 0 to 65535") and words["padding_value"] == [0.0]
    assert "mean 20000 and std 400" in words["values"] and "16-bit pixels" in words["interpolation"]
    words = contract(BANDS, "uint8", {}, masks=False)
    assert words["padding_value"] == [10, 20, 31, 40, 50, 60] and "first channel first" in words["channel_order"]
    assert "not rounded" in contract(METRES, "float32", {}, masks=False)["interpolation"]


def test_the_networks_first_layer_takes_any_number_of_channels():
    for detector, backbone in (
        ("rcnn", "resnet18"), ("rcnn", "vgg16"), ("retinanet", "swin_t"), ("rtmdet", "cspnext_s"),
        ("ssd", "vgg16"), ("ssd", "dsod"), ("ssd", "resnet18"),
    ):  # fmt: skip
        about = {"detector": detector, "num_classes": 2, "backbone": backbone, "in_channels": 6}
        about |= {"pyramid": False} if (detector, backbone) == ("rcnn", "vgg16") else {}
        with torch.device("meta"):
            model = build_model(about)
            assert model.in_channels == 6
            model.backbone(torch.empty(1, 6, 320, 320))


def test_a_widened_stem_keeps_the_scale():
    torch.manual_seed(0)
    own, wide = (build_model({"detector": "rcnn", "num_classes": 2, "in_channels": n}) for n in (3, 12))
    first, second = (model.backbone.conv1.weight for model in (own, wide))
    assert second.shape == (64, 12, 7, 7)
    assert float(second.detach().std() * 2 / first.detach().std()) == pytest.approx(1, abs=0.02)


def test_drawable_of_the_model():
    assert BANDS.pixels == PixelFormat(6, "uint8", BANDS.mean, BANDS.std, (4, 5, 0))
