"""Pictures per second and core that training reads at 448x448: this loader against torchvision's detection preset.

Both decode a JPEG, resize it by a factor from 0.8 to 1.2 of the canvas, crop and pad to 448x448, mirror half of the
pictures, drop boxes that were lost, and make batches of 8. torchvision's is its references' `lsj` preset with this
canvas and range, on PIL pictures (its default) and on tensors; batches are its lists of float tensors, ours one uint8
array. All take turns in one process on one thread; seconds are of the processor. Further rows: the same pictures out of
shards; another checkout's loader; decoding alone; and, of pictures twice as large, what decoding at half the scale
would save. --decoders compares decoders alone, and writes results/loader_decoders.json.

    taskset -c 0 python scripts/loader_rate.py --data DATA      # writes results/loader_rate.json
    taskset -c 0 python scripts/loader_rate.py --data DATA --decoders  # needs simplejpeg, too
    taskset -c 0 python scripts/loader_rate.py                  # noise with the spectrum of photographs, made for this
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision.io
from measure import parser, write_results
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from directdet.data.dataset import load_dataset
from directdet.data.formats.write.convert import convert
from directdet.data.image import check_content, decode_image, read_bytes, resize
from directdet.data.records import Dataset
from directdet.recipes.recipe import Phase
from directdet.train.data import make_phase_loader

SIDE, BATCH, SCALE = 448, 8, (0.8, 1.2)
PHASE = Phase("pretrain", "direct", (SIDE, SIDE), scale=SCALE, batch_size=BATCH, workers=0)
MADE = (64, 640, 480)  # pictures, width, height


def make_pictures(root: Path) -> None:
    """JPEGs of noise whose amplitude falls with the frequency, as that of photographs does, and a box for each."""
    count, width, height = MADE
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).clip(1 / width)
    (root / "train2017").mkdir(parents=True)
    for number in range(1, count + 1):
        waves = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
        noise = np.fft.irfft2(waves / frequency, (height, width)).transpose(1, 2, 0)
        picture = np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / "train2017" / f"{number:06}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    ids = range(1, count + 1)
    content = {
        "images": [{"id": n, "file_name": f"{n:06}.jpg", "width": width, "height": height} for n in ids],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [50, 60, 300, 200]} for n in ids],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


class Reference(TorchDataset):
    """A detection data set as torchvision's references have it, with boxes alone."""

    def __init__(self, data: Dataset, tensors: bool) -> None:
        self.records, self.tensors = data.records, tensors
        self.transforms = v2.Compose(
            [
                *([v2.PILToTensor()] if tensors else []),
                v2.ScaleJitter(target_size=(SIDE, SIDE), scale_range=SCALE, antialias=True),
                v2.RandomCrop((SIDE, SIDE), pad_if_needed=True),
                v2.RandomHorizontalFlip(0.5),
                *([] if tensors else [v2.PILToTensor()]),
                v2.ToDtype(torch.float32, scale=True),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        record = self.records[index]
        picture = Image.open(record.path).convert("RGB")
        corners: Any = torch.from_numpy(record.boxes)
        size = (record.height, record.width)
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)  # pyright: ignore
        return self.transforms(picture, {"boxes": boxes, "labels": torch.from_numpy(record.labels)})


def reference_loader(data: Dataset, tensors: bool) -> Callable[[], Iterator[Any]]:
    """Its batches of an epoch."""
    loader = DataLoader(
        Reference(data, tensors),
        BATCH,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda batch: tuple(zip(*batch, strict=True)),
    )
    return lambda: iter(loader)


def own_loader(data: Dataset) -> Callable[[], Iterator[Any]]:
    """This loader's batches of an epoch."""
    loader = make_phase_loader(PHASE, data, False, 0, False)
    return lambda: iter(loader)


def decoding(data: Dataset, reduced: bool) -> Callable[[], Iterator[Any]]:
    """Pictures of twice the size decoded whole or at half the scale, and resized to the canvas; in batches."""
    kept = []
    for record in data.records:
        picture = decode_image(read_bytes(record.path), record.path)
        large = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        kept.append(np.frombuffer(cv2.imencode(".jpg", large[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1], np.uint8))
    flag = cv2.IMREAD_REDUCED_COLOR_2 if reduced else cv2.IMREAD_COLOR

    def batches() -> Iterator[list[np.ndarray]]:
        for start in range(0, len(kept) - BATCH + 1, BATCH):
            pictures = (np.asarray(cv2.imdecode(one, flag)) for one in kept[start : start + BATCH])
            yield [resize(picture, SIDE, SIDE) for picture in pictures]

    return batches


def decode_alone(data: Dataset) -> Callable[[], Iterator[Any]]:
    """Pictures as they are read, and nothing done to them: what no loader with this decoder can be faster than."""

    def batches() -> Iterator[list[np.ndarray]]:
        for record in data.records:
            yield [decode_image(read_bytes(record.path), record.path)]

    return batches


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Each decodes a JPEG to uint8 [H, W, 3] RGB: OpenCV as the loader has it, in RGB at once, and other libraries."""
    simplejpeg = importlib.import_module("simplejpeg")
    colour = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    rgb = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    mode = torchvision.io.ImageReadMode.RGB

    def by_opencv(content: bytes, flags: int) -> np.ndarray:
        return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), flags))

    def by_torchvision(content: bytes) -> np.ndarray:
        planes = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode)
        assert isinstance(planes, torch.Tensor)
        return planes.permute(1, 2, 0).numpy()

    return {
        "opencv": lambda content: cv2.cvtColor(by_opencv(content, colour), cv2.COLOR_BGR2RGB),
        "opencv_rgb": lambda content: by_opencv(content, rgb),
        "simplejpeg": lambda content: simplejpeg.decode_jpeg(content, "RGB"),
        "torchvision_io": by_torchvision,
    }


def measure_decoders(data: Dataset, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds a picture of each decoder, of the loader, and of parts of it; ratios to OpenCV."""
    contents = [read_bytes(record.path) for record in data.records]
    ways = decoders()
    pictures = [decode_image(content) for content in contents]
    equal = {
        name: sum(np.array_equal(one, decode(content)) for one, content in zip(pictures, contents, strict=True))
        for name, decode in ways.items()
    }

    def turn(name: str) -> float:
        started = time.process_time()
        if name == "loader":
            count = sum(len(batch[0]) for batch in own_loader(data)())
        elif name == "check":
            count = len([check_content(content, "") for content in contents])
        elif name == "resize":
            count = len([resize(picture, SIDE, SIDE) for picture in pictures])
        else:
            count = len([ways[name](content) for content in contents])
        return 1e3 * (time.process_time() - started) / count

    times: dict[str, list[float]] = {name: [] for name in (*ways, "check", "resize", "loader")}
    for number in range(rounds + 1):  # the first one warms up
        for name, found in times.items():
            took = turn(name)
            if number:
                found.append(took)
    rows: dict[str, dict[str, float]] = {}
    for name, found in times.items():
        pairs = zip(times["opencv"], found, strict=True)
        rows[name] = {"milliseconds": statistics.median(found), "least": min(found), "most": max(found)}
        rows[name]["ratio"] = statistics.median(one / other for one, other in pairs)
        if name in equal:
            rows[name]["equal"] = equal[name]
    return rows


def rate_of(checkout: Path, root: Path) -> float:
    """The rate of another checkout's loader, in a process of its own, after an epoch to warm up."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, __file__, "--data", str(root), "--cell", str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def rate(batches: Callable[[], Iterator[Any]]) -> float:
    """Pictures per second of the processor, over an epoch."""
    started, count = time.process_time(), 0
    for batch in batches():
        count += len(batch) if isinstance(batch, list) else len(batch[0])
    return count / (time.process_time() - started)


def measure(
    data: Dataset, shards: Dataset, root: Path, before: Path | None, rounds: int
) -> dict[str, dict[str, float]]:
    """Median rates, and their ratios to the rows that they are compared with, of turns that each row has once."""
    ways = {
        "torchvision_pil": reference_loader(data, False),
        "torchvision_tensor": reference_loader(data, True),
        "directdet": own_loader(data),
        "directdet_shards": own_loader(shards),
        "decode": decode_alone(data),
        "large_whole": decoding(data, False),
        "large_reduced": decoding(data, True),
    }
    against = {name: "torchvision_pil" for name in ("torchvision_tensor", "before", "directdet", "decode")}
    against |= {"directdet_shards": "directdet", "large_reduced": "large_whole"}
    rates: dict[str, list[float]] = {name: [] for name in (*ways, *(["before"] if before else []))}
    for turn in range(rounds + 1):  # the first one warms up
        for name, batches in ways.items():
            found = rate(batches)
            if turn:
                rates[name].append(found)
        if turn and before is not None:
            rates["before"].append(rate_of(before, root))
    rows: dict[str, dict[str, float]] = {}
    for name, found in rates.items():
        rows[name] = {"pictures_per_second": statistics.median(found), "least": min(found), "most": max(found)}
        if name in against:
            pairs = zip(found, rates[against[name]], strict=True)
            rows[name]["ratio"] = statistics.median(one / other for one, other in pairs)
    whole, reduced = (
        np.stack([one for batch in ways[name]() for one in batch]) for name in ("large_whole", "large_reduced")
    )
    rows["large_reduced"]["mean_difference"] = float(np.abs(whole.astype(np.int16) - reduced).mean())
    return rows


def main() -> None:
    """Measure, print and write results/loader_rate.json."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="a dataset of JPEGs  [default: 64 of 640x480 that are made]")
    arguments.add_argument("--before", type=Path, metavar="CHECKOUT", help="measure that checkout's loader, too")
    arguments.add_argument("--decoders", action="store_true", help="compare decoders alone")
    given = arguments.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if given.cell:
        batches = own_loader(load_dataset(given.data, "train"))
        rate(batches)
        print(rate(batches))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = given.data or Path(folder) / "made"
        if given.data is None:
            make_pictures(root)
        if given.decoders:
            data = load_dataset(root, "train")
            rows = measure_decoders(data, given.rounds)
            for name, row in rows.items():
                print(name, {key: round(value, 3) for key, value in row.items()})
            settings = {"pictures": len(data), "made": given.data is None, "rounds": given.rounds}
            settings["simplejpeg"] = importlib.metadata.version("simplejpeg")
            write_results("loader_decoders", settings, rows, given.results)
            return
        convert(root, "shards", Path(folder) / "shards")
        data, shards = (load_dataset(place, "train") for place in (root, Path(folder) / "shards"))
        rows = measure(data, shards, root, given.before, given.rounds)
        pixels = sum(record.width * record.height for record in data.records)
        settings = {
            "pictures": len(data),
            "made": given.data is None,
            "megapixels": pixels / len(data) / 1e6,
            "bits_per_pixel": 8 * sum(len(read_bytes(record.path)) for record in data.records) / pixels,
            "side": SIDE,
            "rounds": given.rounds,
        }
    for name, row in rows.items():
        print(name, {key: round(value, 2) for key, value in row.items()})
    write_results("loader_rate", settings, rows, given.results)


if __name__ == "__main__":
    main()
