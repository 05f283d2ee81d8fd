"""Which detections `infer` keeps where no score is asked for."""

import json

import cv2
import numpy as np
import pytest

from directdet import Detector
from directdet.front.cli import main


@pytest.mark.parametrize(
    ("suggested", "words", "least", "told"),
    [
        (None, (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ({"score": 0.65}, (), 0.65, "scores of at least 0.65 are kept (of the best F1 when it was exported)"),
        ({"score": 0.65}, ("--score", "0"), 0.0, ""),
        ({"score": "high"}, (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ({"score": True}, (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ("high", (), 0.3, "scores of at least 0.3 are kept (the default)"),
        ({"score": 2}, (), 0.3, "scores of at least 0.3 are kept (the default)"),
    ],
)
def test_the_score_that_is_kept(artefact, tmp_path, capsys, suggested, words, least, told):
    picture = np.zeros((192, 256, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    meta = json.loads((artefact / "meta.json").read_text())
    if suggested is not None:
        meta["suggested_score"] = suggested
    (artefact / "meta.json").write_text(json.dumps(meta))
    every = Detector(artefact, device="cpu")(picture).scores
    assert every.min() < 0.65 < every.max()  # so that the suggestion leaves something out
    assert main(["infer", str(artefact), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert told in said if told else "are kept" not in said
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["annotations"]
    assert [one["score"] for one in found] == pytest.approx([score for score in every if score >= least], abs=1e-4)
