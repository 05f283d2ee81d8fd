"""A dataset of tiles: pixels, boxes and masks beside what is counted on the whole pictures."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pycocotools import mask as coco_mask

from directdet.data.dataset import load_dataset, read_record_image
from directdet.data.formats.polygons import cut_polygon, polygon_area
from directdet.data.masks import decode_mask
from directdet.data.pixels.tiles import tiles
from directdet.front.cli import main

WIDTH, HEIGHT, SIDE, OVERLAP, VISIBLE = 230, 170, 80, 0.25, 0.5
KINDS = ("rle", "polygon", "box", "crowd")


def blobs(kind: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Masks, bool [H, W]; ellipses, or rectangles of whole pixels where a polygon or a box has to be exact."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = []
    for _ in range(25):
        centre, axes = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.uniform(3, 40, 2)
        if kind in ("rle", "crowd"):
            mask = ((x + 0.5 - centre[0]) / axes[0]) ** 2 + ((y + 0.5 - centre[1]) / axes[1]) ** 2 <= 1
        else:
            low, high = np.rint(centre - axes), np.rint(centre + axes)
            mask = (x >= low[0]) & (x < high[0]) & (y >= low[1]) & (y < high[1])
        if mask.any():
            found.append(mask)
    return found


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] + 1), int(rows[-1] + 1)]


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """(kind, the dataset's folder, masks of each picture, folder of tiles): two large pictures and a small one."""
    kind, rng = request.param, np.random.default_rng(7)
    root = tmp_path_factory.mktemp(kind)
    (root / "pictures").mkdir()
    images, annotations, masks = [], [], []
    for number in (1, 2, 3):
        size = (HEIGHT, WIDTH) if number < 3 else (40, 50)
        cv2.imwrite(str(root / "pictures" / f"{number}.png"), rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
        own = blobs(kind, rng) if number < 3 else []
        for mask in own:
            x1, y1, x2, y2 = box_of(mask)
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + len(annotations) % 2}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(mask.sum()), "iscrowd": int(kind == "crowd")}
            if kind in ("rle", "crowd"):
                encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                entry["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            elif kind == "polygon":
                entry["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            annotations.append(entry)
        masks.append(own)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (root / "all.json").write_text(json.dumps(content))
    (root / "dataset.toml").write_text('images = "pictures"\nannotations = "all.json"\nval_list = "val.txt"\n')
    (root / "val.txt").write_text("2.png\n")
    out = tmp_path_factory.mktemp("out") / "tiles"
    arguments = ["--to", "coco", "--tiles", str(SIDE), "--overlap", str(OVERLAP), "--visible", str(VISIBLE)]
    assert main(["convert", str(root), "--out", str(out), *arguments]) == 0
    return kind, root, masks, out


def pieces_of(root, out, split):
    """(record of a tile, its source, its window) of a split."""
    wholes = load_dataset(root, split).records
    places = [(whole, tile) for whole in wholes for tile in tiles(whole.height, whole.width, SIDE, OVERLAP)]
    return [(record, *place) for record, place in zip(load_dataset(out, split).records, places, strict=True)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_tiles_hold_the_pixels_of_their_window(made, split):
    _, root, _, out = made
    for record, whole, tile in pieces_of(root, out, split):
        window = read_record_image(whole)[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
        assert np.array_equal(read_record_image(record), window)


def test_all_tiles_of_a_picture_are_in_its_split(made):
    _, root, _, out = made
    own = {split: {record.path.stem for record in load_dataset(root, split).records} for split in ("train", "val")}
    found = {split: {record.path.stem.split("_")[0] for record in load_dataset(out, split).records} for split in own}
    assert found == own and not own["train"] & own["val"] and len(own["train"]) == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects_of_tiles_are_those_that_are_seen_there(made, split):
    kind, root, masks, out = made
    whole_objects = cut_objects = aside = 0
    for record, whole, tile in pieces_of(root, out, split):
        number, expected = int(whole.path.stem) - 1, []
        labels = whole.labels.tolist()
        for mask, label in zip(masks[number], labels, strict=True):
            part = mask[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
            if part.any():
                share = part.sum() / mask.sum()
                weight = 1.0 if share >= VISIBLE or kind == "crowd" else 0.0
                expected.append((label, box_of(part), weight, int(part.sum()), part))
                whole_objects, cut_objects = whole_objects + (share == 1), cut_objects + (VISIBLE <= share < 1)
                aside += weight == 0
        assert record.labels.tolist() == [one[0] for one in expected]
        assert record.boxes.tolist() == [one[1] for one in expected]
        assert record.weights.tolist() == [one[2] for one in expected]
        assert record.difficult.tolist() == [one[2] == 0 for one in expected]
        assert record.crowd.tolist() == [kind == "crowd"] * len(expected)
        assert np.allclose(record.areas, [one[3] for one in expected], rtol=1e-5)
        for segmentation, one in zip(record.segmentations, expected, strict=True):
            if kind == "box":
                assert segmentation is None
            else:
                assert np.array_equal(decode_mask(segmentation, record.height, record.width), one[4])
    assert whole_objects and cut_objects and (aside or kind == "crowd")


def test_a_small_picture_stays_as_it_is(made):
    _, root, _, out = made
    (copy,) = out.glob("*2017/3.png")
    assert copy.read_bytes() == (root / "pictures" / "3.png").read_bytes()


def test_a_mask_without_a_pixel_stays_one(tmp_path):
    """Else not every object would have a mask, and none would be learnt."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((90, 100, 3), np.uint8))
    nothing = {"size": [90, 100], "counts": [9000]}
    flat = [[12, 12, 20, 12, 16, 12]]
    about = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 12, 12], "area": 144, "iscrowd": 0}
    entries = [{**about, "id": number, "segmentation": one} for number, one in enumerate((nothing, flat), 1)]
    images = [{"id": 1, "file_name": "a.png", "height": 90, "width": 100}]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    (tmp_path / "dataset.toml").write_text('[train]\nimages = "."\nannotations = "all.json"\n')
    assert load_dataset(tmp_path, "train").has_masks
    assert main(["convert", str(tmp_path), "--to", "coco", "--tiles", "64", "--out", str(tmp_path / "tiles")]) == 0
    found = load_dataset(tmp_path / "tiles", "train")
    assert found.has_masks and found.records[0].boxes.tolist() == [[10, 10, 22, 22]] * 2
    assert not any(decode_mask(one, 64, 64).any() for one in found.records[0].segmentations)


def test_polygons_are_cut_as_their_inside_says():
    rng = np.random.default_rng(1)
    places = np.stack(np.meshgrid(np.arange(0.05, 40, 0.7), np.arange(0.03, 30, 0.7)), -1).reshape(-1, 2)
    hits = 0
    for _ in range(40):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        star = rng.uniform(0, 50, 2) + rng.uniform(4, 30, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        x, y = rng.uniform(-10, 20, 2)
        inside = Outline(star).contains_points(places + np.array([x, y]))
        cut = cut_polygon(star.reshape(-1), x, y, 40.0, 30.0)
        found = np.zeros(len(places), bool) if cut is None else Outline(cut.reshape(-1, 2)).contains_points(places)
        assert np.array_equal(found, inside)
        hits += int(inside.any())
        if cut is not None:
            assert cut[::2].min() >= 0 and cut[::2].max() <= 40 and cut[1::2].min() >= 0 and cut[1::2].max() <= 30
    assert hits > 10
    assert polygon_area(np.array([0.0, 0, 4, 0, 4, 3])) == 6


def test_a_jpeg_stays_one_and_six_channels_are_written(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(0).integers(0, 60000, (90, 100, 6), dtype=np.uint16)
    for name, table in (("a.jpg", ""), ("b.tif", '[pixels]\nchannels = 6\ndtype = "uint16"\n')):
        root = tmp_path / name[0]
        root.mkdir()
        if name == "a.jpg":
            cv2.imwrite(str(root / name), np.full((90, 100, 3), (200, 100, 50), np.uint8))
        else:
            tifffile.imwrite(root / name, image, photometric="minisblack", planarconfig="contig")
        about = {"id": 1, "file_name": name, "height": 90, "width": 100}
        content = {"images": [about], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (root / "all.json").write_text(json.dumps(content))
        (root / "dataset.toml").write_text(f'[train]\nimages = "."\nannotations = "all.json"\n{table}')
        assert main(["convert", str(root), "--to", "coco", "--tiles", "64", "--out", str(tmp_path / "out" / name)]) == 0
        found = load_dataset(tmp_path / "out" / name, "train")
        assert len(found) == 4 and {record.path.suffix for record in found.records} == {name[1:]}
        for record, tile in zip(found.records, tiles(90, 100, 64, 0.25), strict=True):
            part = read_record_image(record)
            if name == "b.tif":
                assert np.array_equal(part, image[tile.y : tile.y + 64, tile.x : tile.x + 64])
            else:
                assert np.abs(part.astype(int) - (50, 100, 200)).max() <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "yolo", "--tiles", "64"], "tiles: are written for coco alone"),
        (["--to", "coco", "--tiles", "64", "--link"], "tiles: are new pictures; leave out link"),
        (["--to", "coco", "--visible", "0.3"], "give --tiles, too"),
        (["--to", "coco", "--tiles", "64", "--visible", "0"], "visible"),
    ],
)
def test_what_cannot_be_is_refused(write_coco, tmp_path, capsys, arguments, message):
    root = write_coco([{"bbox": [1, 2, 5, 6]}])
    assert main(["convert", str(root), "--out", str(tmp_path / "tiles"), *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "tiles").exists()
