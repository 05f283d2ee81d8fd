"""Pictures of other sensors: their format, reading, measuring, refusing and augmenting them."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest

from directdet.common.errors import UserError
from directdet.data.check import check_data
from directdet.data.dataset import load_dataset
from directdet.data.formats.write.convert import convert
from directdet.data.image import read_image, read_size, resize
from directdet.data.pixels.format import MEAN, RGB, STD, PixelFormat, pixel_format
from directdet.data.pixels.made import tiff
from directdet.data.pixels.reading import decode_pixels, measure, read_pixels, turn
from directdet.data.records import read_record_image
from directdet.data.synthetic import make_synthetic
from directdet.export.contract import contract
from directdet.infer.preprocess import Preprocess
from directdet.recipes.recipe import Phase
from directdet.train.data import load_splits, make_phase_loader, phase_preprocess, transform_of, without_colour

GREY16 = PixelFormat(1, "uint16", (20000.0,), (400.0,))
BANDS = PixelFormat(6, "uint8", (10.0, 20.0, 30.0, 40.0, 50.0, 60.0), (5.0,) * 6, (4, 5, 0))
METRES = PixelFormat(1, "float32", (3.5,), (0.5,))


def random(shape, dtype, seed=0):
    values = np.random.default_rng(seed).random(shape)
    return values.astype(dtype) if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


def test_rgb_is_what_it_was():
    assert (RGB.mean, RGB.std) == (MEAN, STD) and RGB.is_rgb and RGB.padding == (124, 116, 104)
    image = random((5, 6, 3), "uint8")
    assert RGB.drawable(image) is image and np.array_equal(RGB.for_detector(image), image[..., ::-1])


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"dtype": "uint8"}, "channels is missing"),
        ({"channels": 1, "dtype": "uint8", "upright": 1}, "upright: 1 is not true or false"),
        ({"channels": 17, "dtype": "uint8"}, "expected 1 to 16"),
        ({"channels": 1.5, "dtype": "uint8"}, "not a whole number"),
        ({"channels": 1, "dtype": "int16"}, "expected uint8, uint16, float32"),
        ({"channels": 2, "dtype": "uint8", "mean": [1.0], "std": [1.0]}, "mean: 1 numbers"),
        ({"channels": 1, "dtype": "uint8", "mean": [1.0]}, "std: 0 numbers"),
        ({"channels": 1, "dtype": "uint8", "mean": [1.0], "std": [0.0]}, "above 0"),
        ({"channels": 1, "dtype": "uint8", "mean": [float("nan")], "std": [1.0]}, "finite"),
        ({"channels": 1, "dtype": "uint8", "mean": "x"}, "not a list of numbers"),
        ({"channels": 2, "dtype": "uint8", "show": [0, 1]}, "one channel or three"),
        ({"channels": 2, "dtype": "uint8", "show": [2]}, "0 to 1"),
    ],
)
def test_a_wrong_format_is_one_line(table, told):
    with pytest.raises(UserError, match=told) as error:
        pixel_format(table, "dataset.toml: [pixels]")
    assert str(error.value).startswith("dataset.toml: [pixels]: ")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_is_read_in_the_order_of_the_file(channels, dtype, tmp_path):
    if (channels, dtype) == (3, "uint8"):
        return  # RGB, which test_data_image.py reads
    image = random((7, 9, channels), dtype)
    turned = image[:, :, [2, 1, 0, *range(3, channels)]] if channels > 1 else image
    cv2.imwrite(str(tmp_path / "a.png"), turned)
    assert np.array_equal(read_pixels(tmp_path / "a.png", PixelFormat(channels, dtype)), image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 16])
def test_tiff_is_read_as_it_is(channels, dtype, tmp_path):
    """OpenCV reads several channels of grey as one, and more than four not at all."""
    pytest.importorskip("tifffile")
    if (channels, dtype) == (3, "uint8"):
        return
    image = random((7, 9, channels), dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(image[..., 0] if channels == 1 else image))
    found = read_pixels(path, PixelFormat(channels, dtype))
    assert found.dtype == dtype and np.array_equal(found, image)
    assert read_size(path) == (9, 7)
    if channels > 1 or dtype == "float32":  # what OpenCV would make of it is no picture of it
        with pytest.raises(UserError, match=rf"a\.tif: holds {channels} channels? of {dtype}, not a picture"):
            read_image(path)


def test_planar_big_and_turned_tiffs(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image, path = random((7, 9, 5), "uint16"), tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(image, -1, 0), photometric="minisblack", planarconfig="separate")
    assert np.array_equal(read_pixels(path, PixelFormat(5, "uint16")), image)
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig", bigtiff=True)
    assert np.array_equal(read_pixels(path, PixelFormat(5, "uint16")), image)
    turned = [(274, "H", 1, 6, True)]
    tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig", extratags=turned)
    assert np.array_equal(read_pixels(path, PixelFormat(5, "uint16")), np.rot90(image, -1))
    assert read_size(path) == (7, 9)


def test_another_kind_is_refused(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), random((7, 9), "uint8"))
    with pytest.raises(UserError, match=r"a\.png: holds 1 channel of uint8, not the 1 channel of uint16 that are"):
        read_pixels(path, GREY16)
    for ending in (".bmp", ".webp", ".jpg"):  # two of them have no header that says it
        content = cv2.imencode(ending, random((7, 9, 3), "uint8"))[1].tobytes()
        with pytest.raises(UserError, match="holds 3 channels of uint8"):
            decode_pixels(content, "a", BANDS)


def test_damaged_files_and_values_that_are_not_finite(tmp_path):
    pytest.importorskip("tifffile")
    image = random((7, 9, 1), "float32")
    image[2, 3] = np.nan
    with pytest.raises(UserError, match=r"a\.tif: 1 values are not finite"):
        decode_pixels(tiff(image[..., 0]), "a.tif", METRES)
    content = tiff(random((40, 50, 6), "uint8"))
    for end in range(0, len(content), 97):
        with pytest.raises(UserError, match=r"a\.tif: "):
            decode_pixels(content[:end], "a.tif", BANDS)
    noise = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in noise.integers(0, 300, 4):
            damaged[place] = noise.integers(256)
        try:
            decode_pixels(bytes(damaged), "a.tif", BANDS)
        except UserError as error:
            assert "\n" not in str(error)


def test_measure(tmp_path):
    images = [random((8, 9), "uint16", seed) for seed in range(3)]
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    found = measure(PixelFormat(1, "uint16"), paths)
    values = np.stack(images).astype(np.float64)
    assert found.pixels.mean == pytest.approx((values.mean(),), rel=1e-6)
    assert found.pixels.std == pytest.approx((values.std(),), rel=1e-6)
    assert (found.low, found.high) == ((values.min(),), (values.max(),))
    cv2.imwrite(str(paths[0]), np.full((8, 9), 7, np.uint16))
    assert measure(PixelFormat(1, "uint16"), paths[:1]).pixels.std == (1.0,)


def test_drawable_stretches_the_channels_that_are_shown():
    image = np.tile(np.linspace(20000, 20400, 101)[:, None, None], (1, 20, 1)).astype(np.uint16)
    drawn = GREY16.drawable(image)
    assert drawn.shape == (101, 20, 3) and drawn.dtype == np.uint8
    assert drawn[0, 0].tolist() == [0] * 3 and drawn[-1, 0].tolist() == [255] * 3
    assert abs(int(drawn[50, 0, 0]) - 127) <= 1
    bands = np.zeros((10, 10, 6), np.uint8)
    bands[:5, :, 4], bands[:, :5, 5], bands[5:, 5:, 0] = 9, 9, 9
    drawn = BANDS.drawable(bands)  # 4 is red, 5 green, 0 blue
    assert drawn[0, 0].tolist() == [0, 255, 255] and drawn[9, 9].tolist() == [255, 0, 0]


def planes(image, size):
    return np.stack([cv2.resize(np.ascontiguousarray(one), size) for one in np.moveaxis(image, -1, 0)], -1)


@pytest.mark.parametrize("pixels", [GREY16, BANDS, METRES, PixelFormat(2, "uint8", (1.0, 2.0), (1.0, 1.0))])
def test_resize_is_that_of_each_channel(pixels):
    image = random((20, 30, pixels.channels), pixels.dtype)
    assert np.array_equal(resize(image, 13, 17), planes(image, (17, 13)))


@pytest.fixture
def bands(tmp_path):
    """Two splits of six bands, and what a dataset.toml says about them."""
    pytest.importorskip("tifffile")
    root = make_synthetic(tmp_path / "bands", 6, 2, (96, 120), sensor="six-bands")
    write_toml(root, BANDS)
    return root


def write_toml(root, pixels):
    lines = ['format = "coco"', "[pixels]", f"channels = {pixels.channels}", f'dtype = "{pixels.dtype}"']
    for key in ("mean", "std", "show"):
        if getattr(pixels, key):
            lines.append(f"{key} = {list(getattr(pixels, key))}")
    (root / "dataset.toml").write_text("\n".join(lines))


def phase_of(resize, **changes):
    size = (96, 128) if resize == "edges" else (96, 96)
    return Phase(name="scratch", resize=resize, size=size, batch_size=2, workers=0, **changes)


@pytest.mark.parametrize(
    "phase",
    [
        phase_of("direct", quarter_turns=1.0, flip=1.0, colour="hsv"),
        phase_of("direct", ssd_crop=True, mosaic=0.5, mixup=0.7, copy_paste=0.7, colour="photometric"),
        phase_of("edges", short_edges=(96, 128)),
        phase_of("warp", mosaic=0.5, quarter_turns=0.5),
    ],
)
def test_geometry_is_that_of_three_of_the_channels(phase, bands):
    """Six channels are cut, turned, resized and mixed as three of them are that were saved as RGB, but for rounding."""
    dataset = load_dataset(bands, "train")
    three = replace(BANDS, channels=4, mean=BANDS.mean[:4], std=BANDS.std[:4], show=())
    for record in dataset.records:
        image = read_record_image(record)
        record.path.with_suffix(".png").write_bytes(cv2.imencode(".png", image[..., [2, 1, 0, 3]])[1].tobytes())
    own = tuple(replace(r, path=r.path.with_suffix(".png"), pixels=three) for r in dataset.records)
    pairs = [make_phase_loader(phase, one, False, 0, False) for one in (dataset, replace(dataset, records=own))]
    assert not any(type(step).__name__ == "Colour" for step in getattr(transform_of(phase, BANDS), "steps", ()))
    assert "left out" in without_colour(phase, BANDS) or (phase.resize != "warp" and phase.colour == "none")
    for (six, about), (four, others) in zip(*pairs, strict=True):
        assert six.shape[1] == 6 and all(np.array_equal(about[key], others[key]) for key in about)
        # OpenCV's warpAffine places pixels in steps of 1/32 where it works channel by channel.
        difference = (six[:, :4].int() - four.int()).abs()
        assert difference.float().mean() < 1.5 and difference.float().quantile(0.99) <= 16


def test_batches_of_more_than_8_bits_are_float32_and_padded_with_the_mean(tmp_path):
    root = make_synthetic(tmp_path / "grey", 4, 1, (96, 120), sensor="deep-grey")
    write_toml(root, GREY16)
    images, targets = next(iter(make_phase_loader(phase_of("direct"), load_dataset(root, "train"), False, 0, False)))
    assert images.dtype.is_floating_point and images.shape == (2, 1, 96, 96)
    for image, (height, width) in zip(images, targets["sizes"].int().tolist(), strict=True):
        assert (image[:, height:] == 20000).all() and (image[:, :, width:] == 20000).all()
        assert image[:, :height, :width].min() >= 0x5000


@pytest.mark.parametrize(("sensor", "pixels"), [("deep-grey", GREY16), ("six-bands", BANDS), ("metres", METRES)])
def test_check_data_measures_what_dataset_toml_is_to_say(sensor, pixels, tmp_path):
    if sensor != "deep-grey":
        pytest.importorskip("tifffile")
    root = make_synthetic(tmp_path / "set", 5, 2, (64, 80), sensor=sensor)
    report = check_data(root, progress=False)
    assert f"hold {pixels.kind}" in report.pixels[0] and report.pixels[1] == 'format = "coco"'
    assert report.fatal == (sensor != "deep-grey")  # 16 bits of grey are read as 8, as ever
    (root / "dataset.toml").write_text("\n".join(report.pixels[1:]))
    found = load_dataset(root, "train").pixels
    assert found.same_kind(pixels) and found.mean and found.std
    again = check_data(root, progress=False)
    assert not again.fatal and len(again.pixels) == 1 and "mean" in again.pixels[0]
    write_toml(root, replace(pixels, mean=(), std=(), show=()))
    unmeasured = check_data(root, progress=False)
    assert unmeasured.fatal and "mean and std are missing" in unmeasured.errors[0]
    assert pixel_format(dict(_toml(unmeasured.pixels[2:])), "").mean == found.mean
    with pytest.raises(UserError, match="mean and std are missing; check-data measures"):
        load_splits(root)


def _toml(lines):
    import tomllib

    return tomllib.loads("\n".join(lines))


def test_ordinary_sets_say_nothing_about_pixels(synthetic):
    assert check_data(synthetic, progress=False).pixels == ()
    assert load_dataset(synthetic, "train").pixels is RGB


def test_toml_keys_are_checked(bands):
    file = bands / "dataset.toml"
    file.write_text(file.read_text().replace("dtype", "dtpye"))
    with pytest.raises(UserError, match=r"\[pixels\]: unknown key 'dtpye'; did you mean 'dtype'"):
        load_dataset(bands, "train")


def test_a_converted_set_says_what_its_pictures_hold(bands, tmp_path):
    for to in ("coco", "voc", "yolo"):
        convert(bands, to, tmp_path / to)
        assert load_dataset(tmp_path / to, "train").pixels == BANDS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_pictures_are_turned_for_training_and_everything_after(orientation, tmp_path):
    """Annotated as a viewer shows them; the model remembers it, and eval reads them so, too."""
    shown = np.zeros((32, 48, 3), np.uint8)
    shown[:8, :16] = 255
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = turn(shown, inverse)
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    note = b"II*\0" + struct.pack("<IHHHIHxxI", 8, 1, 0x0112, 3, 1, orientation, 0)
    chunk = struct.pack(">I4s", len(note), b"eXIf") + note + struct.pack(">I", zlib.crc32(b"eXIf" + note))
    content = cv2.imencode(".png", stored)[1].tobytes()
    (root / "images" / "a.png").write_bytes(content[:33] + chunk + content[33:])
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 16, 8], "area": 128, "iscrowd": 0}
    about = {"images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 32}], "annotations": [annotation]}
    (root / "all.json").write_text(json.dumps({**about, "categories": [{"id": 1, "name": "a"}]}))
    (root / "dataset.toml").write_text(
        '[train]\nimages = "images"\nannotations = "all.json"\n[pixels]\nupright = true\n'
    )
    dataset = load_dataset(root, "train")
    assert dataset.pixels == replace(RGB, upright=True)
    assert np.array_equal(read_record_image(dataset.records[0]), shown)
    assert not check_data(root, progress=False).splits[0].turned_files
    phase = phase_of("direct", std=(1.0, 1.0, 1.0))
    preprocess = phase_preprocess(phase, dataset.pixels)
    assert preprocess.upright and preprocess.std == phase.std
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert "turned and mirrored as the file's EXIF" in contract(preprocess, "uint8", {}, masks=False)["picture"]
    assert not dataset.pixels.same_kind(RGB)
