"""Detect on any number of images: annotated images, and a COCO file or JSON lines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from directdet.common.errors import UserError
from directdet.common.files import require_writable, write_bytes_atomic, write_text_atomic
from directdet.common.terminal import terminal
from directdet.common.text import toml_string
from directdet.data.pixels.format import PixelFormat
from directdet.data.records import check_size
from directdet.infer.detections import Detections
from directdet.infer.draw import draw
from directdet.infer.predict.journal import PART_FILE, Journal, PredictSummary
from directdet.infer.predict.labelled import Labelled, find_labelled, labelled_split, without_labelled
from directdet.infer.predict.options import PredictOptions, Selection
from directdet.infer.predict.own_files import OwnFiles
from directdet.infer.predict.pipeline import run_pipeline
from directdet.infer.predict.progress import progress_bar
from directdet.infer.predict.reading import read_picture
from directdet.infer.predict.same import Origin, file_digest, model_digest, origin_of
from directdet.infer.predict.sources import Images, find_images
from directdet.infer.predict.stages import (
    Batch,
    Item,
    coco_categories,
    detection_stages,
    make_batches,
    one_opencv_thread,
)
from directdet.infer.predictor import Predictor
from directdet.infer.tiled import TiledDetector

RESULTS_FILES = {"coco": "detections.json", "jsonl": "detections.jsonl", "dataset": "pseudo_labels.json"}
DESCRIPTION = "dataset.toml"  # beside pseudo-labels: where their pictures are


@dataclass(frozen=True)
class Numbered:
    """An image: the id that it has in the results, and its path."""

    image_id: int
    path: Path


def predict(
    detector: Predictor,
    source: str | Path,
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    split: str | None = None,
    without: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> PredictSummary:
    """Detect on every image of `source` and write the results into the folder `out`.

    `out` receives the annotated images under their own names (keeping subfolders) and the results. `detections.json`
    is a COCO file with "images" (id, file_name, width, height, and the EXIF orientation if it was applied),
    "categories", and "annotations" (image_id, category_id, bbox, score, segmentation), best first within each image.
    `detections.jsonl` has a line for each image: image_id, file_name, width, height, orientation, and these annotations
    as "detections"; for an image that could not be read, "error" instead. Memory use does not grow with the number of
    images. Bytes of a name that are not UTF-8 are written as JSON's escapes, from \\udc80 on.

    Images of a dataset are taken as stored, unless its dataset.toml says otherwise, and their results have its ids:
    `detections.json` is then the list of results that pycocotools' `loadRes` takes beside the annotations.

    With results="dataset", `pseudo_labels.json` is a COCO file of the images in which something was found, and
    `dataset.toml` beside it says where they are: a train split that `load_dataset` reads, the score of each object
    being the weight of its losses. Images are then turned only if the model's own training set was.

    During the run, results are in `detections.part.jsonl`; after an interruption, `resume` continues from there.

    Args:
        source: see `sources.find_images`; with `split`, the folder of a dataset.
        options: what to detect and what to write; None: the defaults.
        split: detect on this split of the dataset. None: a folder whose images are all in one split of a dataset around
            it is taken for that.
        without: leave out the images of this dataset, whatever their split.
        resume: continue what an interrupted run with the same settings, model and images left in `out`; the same is
            what has the same content, wherever it lies.
        progress: show a progress bar.

    Raises:
        UserError: no images or none that can be read; `out` cannot be written, contains an interrupted run, or contains
            files that would be overwritten: the source images, or what no earlier run made from this source. A broken
            image among others is only reported and skipped.
    """
    start = time.perf_counter()
    options = options or PredictOptions()
    console = terminal(stderr=True)

    def note(line: str) -> None:
        console.print(f"note: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    results, pixels, upright = options.results or "coco", detector.preprocess.pixels, options.upright
    labelled = None
    if split is not None:
        images, labelled = labelled_split(detector, source, split)
    else:
        images = find_images(source)
    if without is not None:
        images = without_labelled(images, without)
    if results == "dataset":  # a set of its own, read as training reads it
        labelled, upright = None, pixels.upright
        toml_string(str(images.root))  # refused before pictures are read
    elif split is None:
        labelled = find_labelled(detector, images, note)
    category_ids = detector.category_ids if labelled is None else labelled.category_ids
    out = Path(out)
    selection, size = options.selection(detector), options.batch_size(detector)
    require_writable(out, folder=True)
    if options.pictures:
        _refuse_overwriting(images, out)
    own = OwnFiles(out)
    pictures = ((images.name(path), partial(origin_of, path)) for path in images) if options.pictures else ()
    whole = origin_of(source, lambda: ((images.name(path).as_posix(), path) for path in images))
    files = [RESULTS_FILES[results], *[DESCRIPTION] * (results == "dataset")]
    own.claim(chain([(name, lambda: whole) for name in files], pictures))
    is_new = not out.exists()
    if images.left_out:
        note(f"{source}: left out: {images.left_out}")
    score = np.asarray(options.score).tolist()  # as JSON gives it back: a number or a list
    settings = {"model": model_digest(detector), "score": score, "pictures": options.pictures}
    settings |= {"classes": None if options.classes is None else sorted(options.classes), "upright": upright}
    settings |= {"ids": None if labelled is None else labelled.digest}
    if isinstance(detector, TiledDetector):
        settings |= {"tiles": detector.side, "overlap": detector.overlap}
    summary = PredictSummary(0, 0, 0.0, out, out / RESULTS_FILES[results])
    journal = Journal(out / PART_FILE, settings, images, resume, summary)
    turned = 0
    with journal, one_opencv_thread(detector), progress_bar("detecting", len(images), console, progress) as advance:
        advance(summary.n_resumed)

        def write(batch: Batch[Numbered]) -> None:
            nonlocal turned
            for item in batch.items:
                if item.encoded is not None:
                    path = item.source.path
                    name, digest = images.name(path), str(item.line["digest"])
                    own.written(name, Origin(os.path.realpath(path), lambda digest=digest: digest), item.encoded)
                    write_bytes_atomic(out / name, item.encoded)
                journal.add(item.line)
                turned += "orientation" in item.line
                # A broken image among others is reported here; a single one is reported as the error below.
                if "error" in item.line and len(images) > 1:
                    console.print(f"skipped: {item.line['error']}", style="yellow", markup=False, soft_wrap=True)
            advance(len(batch.items))

        def describe(item: Item[Numbered], image: np.ndarray, found: Detections) -> None:
            height, width = image.shape[:2]
            entries = found.to_coco(item.source.image_id, category_ids, item.crops)
            item.line |= {"width": width, "height": height, "detections": entries}

        def finish(item: Item[Numbered], image: np.ndarray, found: Detections) -> None:
            if options.pictures:
                drawn = draw(pixels.drawable(image), found, detector.classes, crops=item.crops)
                item.encoded = _encode(drawn, images.name(item.source.path))
            item.image = item.crops = None

        items = _read(images, summary.n_resumed, labelled, upright, pixels)
        stages = detection_stages(detector, selection, describe, finish)
        depth = 1 if isinstance(detector, TiledDetector) else 2  # few large pictures at a time
        summary.pipeline = run_pipeline(make_batches(items, detector, size), stages, write, depth=depth)
    if turned:
        note(
            f"{turned} images were turned as their EXIF orientation says, as viewers show them; --as-stored leaves them"
        )
    done = summary.n_images + summary.n_skipped
    if summary.pipeline.failure is None and not summary.pipeline.interrupted:
        if not summary.n_images:
            journal.remove(folder_too=is_new)
            only = f"{source}: none of its {len(images)} images can be read"
            raise UserError(summary.failures[0] if len(images) == 1 else only)
        made_from = Origin(whole.place, journal.digest)
        for name in files:
            own.started(name, made_from)
        journal.publish(summary.results_file, results, coco_categories(detector) if labelled is None else None)
        if results == "dataset":
            write_text_atomic(out / DESCRIPTION, _description(detector, images.root, selection))
            if summary.n_empty:
                note(f"{summary.n_empty} images are not in it: nothing was found in them, which does not say much")
        for name in files:
            own.written(name, made_from)
        if labelled is not None:
            note(f"the results have the image and category ids of {labelled.name}")
            if np.max(options.score) > 0:
                note(f"scores below {selection.words(detector.classes)} are left out: for AP, detect with --score 0")
    elif not done:
        journal.remove(folder_too=is_new)
    else:
        text = f"{done} of {len(images)} images are done; --resume continues with the rest"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    summary.pipeline.raise_failure()
    summary.seconds = time.perf_counter() - start
    return summary


def _read(
    images: Images, done: int, labelled: Labelled | None, upright: bool, pixels: PixelFormat
) -> Iterator[Item[Numbered]]:
    """Every image after the first `done`; for an unreadable one, `line` has the error."""
    for number, path in enumerate(images, start=1):
        if number <= done:
            continue
        record = None if labelled is None else labelled.record(path)
        source = Numbered(number if record is None else record.image_id, path)
        about = {"image_id": source.image_id, "file_name": path.as_posix(), "name": images.name(path).as_posix()}
        try:
            # Annotations say where things are in the picture as its set has it.
            picture = read_picture(path, upright if record is None else record.pixels.upright, pixels)
            if record is not None:
                check_size(record, *picture.image.shape[:2])
        except UserError as error:
            yield Item(source, None, line={**about, "digest": file_digest(path), "error": str(error)})
            continue
        about["digest"] = picture.digest
        if picture.orientation != 1:
            about["orientation"] = picture.orientation
        yield Item(source, picture.image, line=about)


def _description(detector: Predictor, root: Path, selection: Selection) -> str:
    """The dataset.toml of pseudo-labels whose pictures are in `root`."""
    pixels = detector.preprocess.pixels
    about = json.dumps(str(detector.source))[1:-1]  # a comment holds no control characters
    lines = [f"# objects that {about} found, with scores of at least {selection.words(detector.classes)}", "[train]"]
    lines += [f"images = {toml_string(str(root))}", f'annotations = "{RESULTS_FILES["dataset"]}"']
    return "\n".join([*lines, *(pixels.toml_lines() if not pixels.is_rgb or pixels.upright else ()), ""])


def _refuse_overwriting(images: Images, out: Path) -> None:
    """UserError if an annotated image would replace one of the source images."""
    folder = Path(os.path.realpath(out))
    if not folder.exists():
        return
    for path in images:
        target = out / images.name(path)
        # A picture in a tar is no file of its own.
        clash = target if target.exists() and path.exists() and target.samefile(path) else None
        real = Path(os.path.realpath(path))
        if clash is None and real.is_relative_to(folder) and (images.root / real.relative_to(folder)).is_file():
            clash = real
        if clash is not None:
            raise UserError(f"{out}: would overwrite the source image {clash.name}; choose another output folder")


def _encode(image: np.ndarray, name: Path) -> bytes:
    """The image in the file format of its name."""
    done, content = cv2.imencode(name.suffix.lower(), image)
    if not done:
        raise UserError(f"{name}: this OpenCV cannot write {name.suffix}; convert the image first")
    return content.tobytes()
