"""`check-data --augmented`: the sheet shows what training sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from directdet.data.dataset import load_dataset
from directdet.data.image import resize
from directdet.front.cli import main
from directdet.pages.augmented import CELL, COLUMNS, GAP, drawn_batches, make_sheet
from directdet.recipes.by_name import get_recipe
from directdet.train.data import make_phase_loader


def test_a_sheet_for_every_phase(shapes, tmp_path, capsys):
    sheet = tmp_path / "sheet.jpg"
    arguments = ["check-data", str(shapes), "--augmented", "demo", "--set", "pretrain.mosaic=1", "--sheet", str(sheet)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"augmented pictures: {sheet}"
    found = cv2.imread(str(sheet))
    assert found.shape[1] == COLUMNS * (CELL + GAP) and found.shape[0] > 2 * 32 + 4 * 200
    # The first picture is the first that training reads.
    phase = replace(get_recipe("demo").phase("pretrain"), mosaic=1.0, workers=0)
    dataset = load_dataset(shapes, "train")
    images, targets = next(iter(make_phase_loader(phase, dataset, True, 0, False)))
    plain = resize(images[0].permute(1, 2, 0).numpy()[:, :, ::-1], CELL, CELL)
    corner = found[32 : 32 + CELL, :CELL]
    assert np.median(np.abs(corner.astype(int) - plain)) < 6  # but for boxes, masks and the JPEG
    (drawn,) = drawn_batches([(images, targets)], dataset.classes, 1)
    changed = (drawn != images[0].permute(1, 2, 0).numpy()[:, :, ::-1]).any(-1)
    for box in targets["boxes"][0][targets["valid"][0]].round().int().tolist():
        left, top, right, _ = box
        assert changed[min(top, 127), left : min(right, 128)].mean() > 0.5  # its upper edge is drawn


def test_pictures_of_any_size_share_a_sheet():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (height, 40, 3), dtype=np.uint8) for height in (20, 80, 3)]
    content = make_sheet([("one", pictures), ("two", pictures[:1] * (COLUMNS + 1))])
    sheet = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape == (2 * 32 + (CELL + GAP) + 2 * (CELL // 2 + GAP), COLUMNS * (CELL + GAP), 3)


def test_wrong_uses(shapes, tmp_path, capsys):
    assert main(["check-data", str(shapes), "--set", "mosaic=1"]) == 2
    assert "--augmented" in capsys.readouterr().err
    folder = Path(tmp_path)
    assert main(["check-data", str(shapes), "--augmented", "demo", "--sheet", str(folder)]) == 1
    assert "is a folder" in capsys.readouterr().err
    assert main(["check-data", str(shapes), "--augmented", "dmo", "--sheet", str(folder / "a.jpg")]) == 2
    assert "did you mean 'demo'" in capsys.readouterr().err
