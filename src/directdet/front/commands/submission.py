"""The verb that writes what the servers of COCO and VOC take: submit."""

from __future__ import annotations

from pathlib import Path

import click

from directdet.front.options import (
    PATH,
    code_option,
    data_option,
    device_option,
    flip_option,
    overlap_option,
    precision_option,
    runtime_option,
    scales_option,
    threads_option,
    tiles_option,
)
from directdet.front.say import say


@click.command("submit")
@click.argument("model", type=PATH)
@data_option
@click.option("--split", help="Whose pictures.  [default: test-dev for coco, test for voc]")
@click.option("--to", type=click.Choice(["coco", "voc"]), required=True, help="Whose server.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder to write into.")
@click.option("--name", help="coco: of the method, in the file's name.  [default: the model's folder]")
@click.option(
    "--competition",
    type=click.Choice(["comp3", "comp4"]),
    default="comp3",
    show_default=True,
    help="voc: comp4, if it was trained on other data than VOC's.",
)
@tiles_option
@overlap_option
@scales_option
@flip_option
@runtime_option
@device_option
@threads_option
@precision_option
@code_option
def submit(
    model: Path,
    data: Path,
    split: str | None,
    to: str,
    out: Path,
    name: str | None,
    competition: str,
    tiles: int | None,
    overlap: float | None,
    scales: tuple[float, ...] | None,
    flip: bool,
    runtime: str,
    device: str,
    threads: int | None,
    precision: str | None,
) -> None:
    """Write what MODEL detects as COCO's or VOC's server takes it.

    The split needs no annotations: COCO's is annotations/image_info_SPLIT2017.json with the pictures of test2017, VOC's
    a list in ImageSets/Main. Ids and names are the dataset's own.
    """
    from directdet.common.errors import UserError
    from directdet.common.files import require_writable
    from directdet.data.dataset import load_dataset
    from directdet.data.formats.unlabelled import read_coco_test, read_voc_list
    from directdet.infer.accuracy.evaluate import detections_of
    from directdet.infer.accuracy.submission import coco_file, write_coco, write_voc
    from directdet.infer.runtimes.load import load
    from directdet.infer.scaled import with_looks

    require_writable(out, folder=True)
    split = split or {"coco": "test-dev", "voc": "test"}[to]
    detector = with_looks(load(model, runtime, device, threads, precision), tiles, overlap, scales, flip)
    if to == "coco":
        file = coco_file(out, split, name or model.resolve().name)
        dataset = read_coco_test(data, split)
        if dataset is None and split == "test-dev":
            raise UserError(f"{data / 'annotations'}: image_info_test-dev2017.json is not here; put COCO's file there")
        dataset = dataset or load_dataset(data, split)
        found = detections_of(detector, dataset, dataset.records, progress=True)
        files, count = [file], write_coco(file, found, dataset.category_ids)
    else:
        listed = read_voc_list(data, split)
        dataset = listed.dataset
        found = detections_of(detector, dataset, dataset.records, progress=True)
        files, count = write_voc(out, listed.year, competition, split, found, listed.names, dataset.classes)
    say(f"{count} detections in {len(dataset)} pictures")
    say(f"written: {files[0] if len(files) == 1 else f'{files[0].parent}, {len(files)} files'}")
