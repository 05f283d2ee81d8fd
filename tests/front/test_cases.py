"""Small datasets that once failed, each in a folder of its own: what its README expects.

The folders lie beside the real test images; where they are absent, the tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from directdet.data.dataset import load_dataset
from directdet.front.cli import main
from directdet.recipes.by_name import get_recipe
from directdet.train.data import make_phase_loader
from directdet.train.log import read_log

SETTINGS = (
    "model.width=16",
    "model.fpn_channels=16",
    "pretrain.size=64,64",
    "pretrain.eval_size=64,64",
    "pretrain.batch_size=4",
    "pretrain.base_batch=4",
    "pretrain.max_steps=4",
    "pretrain.eval_every=1",
    "pretrain.warmup_iterations=2",
    "pretrain.workers=0",
)


@dataclass(frozen=True)
class Case:
    """A copy of a case's folder, and the command line in it."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code of a command, and what it printed, with spaces for line breaks within a table."""
        code = main(arguments)
        printed = self.capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return code, printed.out + printed.err

    def check(self, name: str = "data") -> tuple[int, str]:
        return self.run("check-data", name)

    def report(self, name: str = "data") -> dict:
        """The report of check-data, whatever its exit code."""
        self.run("check-data", name, "--report", "report.json")
        return json.loads(Path("report.json").read_text("utf-8"))

    def train(self, *more: str, recipe: str = "retinanet_r18_slim", data: str = "data") -> tuple[int, str]:
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        return self.run("train", recipe, "--data", data, "--out", "run", "--phase", "pretrain", *settings, *more)

    def python(self, *arguments: str, **options: object) -> str:
        """What a script prints that runs by itself, with `directdet` on its path."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return result.stdout + result.stderr


def bom_in_lists(case: Case) -> None:
    for name in ("voc", "toml"):
        code, text = case.check(name)
        assert code == 0 and "usable" in text


def box_only_empty_polygon(case: Case) -> None:
    report = case.report()
    assert [(split["objects"], split["objects_with_mask"]) for split in report["splits"]] == [(8, 0), (4, 0)]
    assert not report["fatal"] and case.train()[0] == 0


def boxes_as_corners(case: Case) -> None:
    code, text = case.check()
    assert code == 0 and "usable" not in text and "train: 14 of 16 boxes leave their image" in text
    assert "x1, y1, x2, y2" in text and "doubtful: look at the doubts first" in text


def boxes_from_0_to_1(case: Case) -> None:
    code, text = case.check()
    assert code == 1 and "train: all 8 boxes are smaller than a pixel; are they shares (0 to 1)" in text
    code, text = case.train()
    assert code == 1 and "none of the 8 objects is a pixel wide and high at the size of pretrain" in text


def class_names_in_brackets(case: Case) -> None:
    for data in ("data", "closing"):
        names = load_dataset(data, "train").classes
        shutil.rmtree("run", ignore_errors=True)
        assert case.train(data=data)[0] == 0
        code, text = case.run("eval", "run", "--data", data, "--per-class")
        assert code == 0 and all(f" {name} " in text for name in names) and any("[" in name for name in names)


def ctrl_c_while_saving(case: Case) -> None:
    for _ in range(5):  # the signal comes by time
        text = case.python("interrupt.py")
        if "try again" not in text:
            break
    assert "KeyboardInterrupt: as it should be" in text


def dark_16_bit(case: Case) -> None:
    code, text = case.check()
    assert code == 0 and "train: 2 of 2 images are black or nearly black" in text and "doubtful" in text
    assert "val: 2 of 2 images are black or nearly black" in text


def exif_half_turn(case: Case) -> None:
    code, text = case.check()
    assert code == 0 and "doubtful" in text and "ignored" in text
    assert all(f"{split}: 4 of 4 images have an EXIF note of rotation" in text for split in ("train", "val"))


def iscrowd_is_a_string(case: Case) -> None:
    report = case.report()
    assert [(split["objects"], split["crowd"]) for split in report["splits"]] == [(8, 0), (4, 0)]
    assert not report["fatal"]


def killed_worker(case: Case) -> None:
    text = case.python("kill.py")
    assert "Traceback" not in text and "exit code 1" in text and "--resume" in text
    assert "a data worker was killed, probably because memory ran out; read with fewer workers" in text


def long_file_names(case: Case) -> None:
    report = case.report()
    assert report["fatal"] and [len(split["missing_files"]) for split in report["splits"]] == [4, 2]


def many_errors_one_told(case: Case) -> None:
    report = case.report()
    told = [line.partition(".json: ")[2] for line in report["errors"]]
    assert [line[:32] for line in told] == [
        "annotation 2: bbox [1, 2, None, ",
        "annotation 4: category_id 7 is n",
        "annotation 6: image_id 99 is not",
        "annotation 1: bbox '1 2 3 4' is ",
    ]
    assert any("1 images (the first: 1) have no width or height" in line for line in report["warnings"])
    assert [split["images"] for split in report["splits"]] == [8, 4] and report["fatal"]
    code, text = case.train()
    assert code == 1 and text.count("\n") == 1 and "annotation 2: bbox" in text
    assert "(and 2 more: check-data lists them)" in text


def name_forms(case: Case) -> None:
    subprocess.run(["tar", "xf", "data.tar"], check=True)
    for name in ("decomposed", "url_encoded", "ending"):
        report = case.report(name)
        missing = [item for split in report["splits"] for item in split["missing_files"]]
        assert len(missing) == 6
        for item in missing:
            beside = (
                item["message"].partition("image file not found; there is ")[2].partition(", whose name differs")[0]
            )
            assert (Path(item["file"]).parent / beside).is_file()


def narrow_network_crash(case: Case) -> None:
    words = "train retinanet_r18_slim --data data --out run --phase pretrain --set model.width=8"
    words += " --set pretrain.max_steps=2 --set pretrain.eval_every=0 --set pretrain.workers=0"
    text = case.python("-m", "directdet", *words.split())
    assert "Traceback" not in text and read_log(Path("run") / "pretrain" / "log.jsonl"), text


def negative_area(case: Case) -> None:
    report = case.report()
    assert all(len(split["problems"]) == split["objects"] for split in report["splits"])
    assert case.train()[0] == 0
    assert [row["bbox"]["AP"] >= 0 for row in read_log(Path("run/pretrain/log.jsonl")) if "bbox" in row][-1]
    code, text = case.check("ones")
    assert code == 0 and "the area of 4 of 4 objects does not fit their box" in text and "doubtful" in text


def one_crowded_picture(case: Case) -> None:
    """The batch with the crowded image is as large as that image needs, the others as without it."""
    phase = replace(get_recipe("retinanet_r18_slim").phases[0], batch_size=2, workers=0, size=(64, 64))
    rows: dict[str, list[int]] = {}
    for name in ("without", "data"):
        loader = make_phase_loader(phase, load_dataset(name, "train"), masks=False, seed=0, pin_memory=False)
        rows[name] = sorted(targets["boxes"].shape[1] for _, targets in loader)
    assert rows == {"without": [8, 8, 8, 8], "data": [8, 8, 8, 2048]}
    code, _ = case.run(
        *("plan", "retinanet_r18_slim", "--memory", "11GB", "--lengths", "64", "--batches", "2", "--data", "data"),
        *("--json", "plan.json", "--set", "model.width=16", "--set", "model.fpn_channels=16"),
    )
    assert code == 0 and json.loads(Path("plan.json").read_text("utf-8"))["objects"] == 2048


def one_mask_missing(case: Case) -> None:
    code, text = case.check()
    assert code == 0 and "the first without: annotation 12, data/train2017/train_05.png" in text
    code, text = case.train(recipe="mask_rcnn_r18_slim")
    assert code == 1 and "the first without: annotation 12, data/train2017/train_05.png" in text


def one_picture_fewer_than_a_batch(case: Case) -> None:
    code, text = case.run("train", "retinanet_r18_slim", "--data", "data", "--out", "run")
    assert code == 1 and "give --set finetune.batch_size=3" in text
    code, text = case.train()
    assert code == 1 and "give --set pretrain.batch_size=3" in text


def other_formats(case: Case) -> None:
    pictures = {
        "yolo": [4, 4],
        "rfvoc": [4, 4],
        "hf": [4, 4],
        "instances_train": [4, 4],
        "cvatxml": [4],
        "labelme": [4],
    }
    pictures |= {"vocflat": [4], "cvatcoco": [4], "labelstudio": [8], "labelstudio/result.json": [8], "fiftyone": [8]}
    for name, counts in pictures.items():
        report = case.report(name)
        assert not report["fatal"] and [split["images"] for split in report["splits"]] == counts
        assert [split["objects"] for split in report["splits"]] == [2 * count for count in counts]
        assert [item[2] for item in report["label_map"]] == (["0", "1"] if name == "hf" else ["bolt", "nut"])


def picture_listed_twice(case: Case) -> None:
    code, text = case.check()
    assert code == 0 and "doubtful" in text
    assert "train: 4 images are listed more than once" in text and "val: 2 images are listed more than once" in text


def polygon_far_outside(case: Case) -> None:
    code, text = case.check()
    assert code == 0 and "a corner at 3e+09, far outside its picture: mask cut off there" in text
    assert case.train(recipe="mask_rcnn_r18_slim")[0] == 0


def resume_on_other_data(case: Case) -> None:
    assert case.train("--set", "pretrain.max_steps=2", data="first")[0] == 0
    code, text = case.train("--set", "pretrain.max_steps=2", "--resume", data="second")
    assert code == 1 and "was started on other data: train differs in the" in text
    assert case.train("--set", "pretrain.max_steps=2", "--resume", data="first")[0] == 0


def single_picture_toml(case: Case) -> None:
    code, text = case.check()
    assert code == 1 and "val_fraction" in text and "val_count" not in text and "[train], without [val]" in text


def size_missing_or_zero(case: Case) -> None:
    for name in ("zero", "missing"):
        report = case.report(name)
        assert not report["fatal"] and report["splits"][0]["width_range"] == [96, 96]
        assert any(
            "have no width or height; theirs are those of the image files" in line for line in report["warnings"]
        )


def small_shared_memory(case: Case) -> None:
    words = "train retinanet_r18_slim --data data --out run --phase pretrain --set model.width=16"
    words += " --set pretrain.max_steps=3 --set pretrain.batch_size=8 --set pretrain.eval_every=0"
    shell = (
        f"mount -t tmpfs -o size=600k tmpfs /dev/shm && timeout 100 {sys.executable} -m directdet {words}; echo rc=$?"
    )
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs unshare, to give a process a shared memory of its own")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if "mount:" in text:
        pytest.skip("a shared memory of its own cannot be mounted here")
    assert "rc=1" in text and "/dev/shm" in text and "--set pretrain.workers=0" in text and "Traceback" not in text


def voc_list_called_default(case: Case) -> None:
    for name, lists in (("cvat", "default.txt"), ("vott", "bolt_train.txt, bolt_val.txt")):
        code, text = case.check(name)
        assert code == 1 and f"but {lists}" in text and "dataset.toml" in text and "rename" in text
    code, text = case.check("cvat")
    (Path("cvat") / "dataset.toml").write_text('[train]\nvoc = ["VOCdevkit/VOC2007/default"]\n')
    assert case.report("cvat")["splits"][0]["images"] == 3


def voc_test_list_without_xml(case: Case) -> None:
    report = case.report()
    assert not report["fatal"] and [split["split"] for split in report["splits"]] == ["train", "val"]
    assert any("test.txt is left out: none of its" in line for line in report["warnings"])
    main_lists = Path("data/VOCdevkit/VOC2007/ImageSets/Main")
    assert report["splits"][1]["images"] == len((main_lists / "val.txt").read_text().split())


def voc_train_val_test(case: Case) -> None:
    lists = Path("data/VOCdevkit/VOC2007/ImageSets/Main")
    for split in ("train", "val", "test"):
        names = [record.path.stem for record in load_dataset("data", split).records]
        assert names == (lists / f"{split}.txt").read_text().split()
    assert [split["split"] for split in case.report()["splits"]] == ["train", "val", "test"]


def voc_upper_case_jpg(case: Case) -> None:
    for name in ("upper", "bmp"):
        code, text = case.check(name)
        assert code == 0 and "usable" in text


def whole_numbers_as_floats(case: Case) -> None:
    for name in ("ids", "sizes", "names"):
        report = case.report(name)
        content = json.loads((Path(name) / "annotations" / "instances_train2017.json").read_text())
        assert not report["fatal"] and report["splits"][0]["objects"] == len(content["annotations"])
        assert [item[2] for item in report["label_map"]] == (["0", "1"] if name == "names" else ["bolt", "nut"])


def xml_in_gb2312(case: Case) -> None:
    report = case.report("gb2312")
    assert not report["fatal"] and [split["objects"] for split in report["splits"]] == [6, 4]
    assert "螺母" in [item[2] for item in report["label_map"]]  # nut


CASES: dict[str, Callable[[Case], None]] = {
    function.__name__: function
    for function in (
        bom_in_lists,
        box_only_empty_polygon,
        boxes_as_corners,
        boxes_from_0_to_1,
        class_names_in_brackets,
        ctrl_c_while_saving,
        dark_16_bit,
        exif_half_turn,
        iscrowd_is_a_string,
        killed_worker,
        long_file_names,
        many_errors_one_told,
        name_forms,
        narrow_network_crash,
        negative_area,
        one_crowded_picture,
        one_mask_missing,
        one_picture_fewer_than_a_batch,
        other_formats,
        picture_listed_twice,
        polygon_far_outside,
        resume_on_other_data,
        single_picture_toml,
        size_missing_or_zero,
        small_shared_memory,
        voc_list_called_default,
        voc_test_list_without_xml,
        voc_train_val_test,
        voc_upper_case_jpg,
        whole_numbers_as_floats,
        xml_in_gb2312,
    )
}


@pytest.mark.parametrize("name", CASES)
def test_case(name, data_cases, tmp_path, monkeypatch, capsys):
    if not (data_cases / name).is_dir():
        pytest.skip(f"no folder {data_cases / name}")
    shutil.copytree(data_cases / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    CASES[name](Case(tmp_path / name, capsys))


def test_every_case_folder_is_run(data_cases):
    assert {folder.name for folder in data_cases.iterdir() if folder.is_dir()} == set(CASES)
