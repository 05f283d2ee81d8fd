"""Names that are not Unicode text, in the files that inference writes."""

import json

from directdet.infer.predict.writers import LinesWriter, read_lines, write_coco


def test_halves_of_surrogate_pairs_come_back(tmp_path):
    line = {"image_id": 1, "file_name": "\udcff.png", "width": 4, "height": 3, "detections": []}
    writer = LinesWriter(tmp_path / "lines.jsonl")
    writer.write(line)
    assert list(read_lines(tmp_path / "lines.jsonl")) == [line]
    write_coco(tmp_path / "coco.json", lambda: iter([line]), [{"id": 1, "name": "bolt \ud800"}])
    content = json.loads((tmp_path / "coco.json").read_text("utf-8"))
    assert content["images"][0]["file_name"] == "\udcff.png" and content["categories"][0]["name"] == "bolt \ud800"
