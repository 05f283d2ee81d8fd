"""The memory and time that `infer --tiles` takes on files of 20,000 x 20,000 pixels.

    python scripts/large_files.py --work FOLDER                      # writes results/large_files.json
    python scripts/large_files.py --work FOLDER --before CHECKOUT    # and what another checkout takes, first

Made-up pictures, as JPEG and as tiled TIFF, and an untrained RTMDet-nano, exported to ONNX: every figure is the highest
resident memory of a process of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from choices import prepare
from measure import ROOT, write_results

RECIPE, TILES = "rtmdet_nano", 4000
KINDS = ("one JPEG", "one tiled TIFF", "three JPEGs")
# The highest resident memory of the process itself: what the system tells of a child begins with its parent's.
CALL = """
import re, sys
from directdet.front.cli import main
code = main(sys.argv[2:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
open(sys.argv[1], "w").write(peak)
sys.exit(code)
"""


def make_files(folder: Path, side: int) -> dict[str, Path]:
    """Folders of pictures by what they hold: one JPEG, three of them, one tiled TIFF."""
    import tifffile

    found = {name: folder / f"{side}" / name for name in KINDS}
    if all(place.is_dir() for place in found.values()):
        return found
    for place in found.values():
        place.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(0).integers(0, 256, (side // 40, side // 40, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(found["one JPEG"] / "a.jpg"), picture)
    for name in "abc":
        shutil.copyfile(found["one JPEG"] / "a.jpg", found["three JPEGs"] / f"{name}.jpg")
    options = {"tile": (512, 512), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(found["one tiled TIFF"] / "a.tif", picture[:, :, ::-1], **options)
    return found


def measured(model: Path, pictures: Path, out: Path, side: int, source: Path) -> dict[str, float]:
    """GB at the most and seconds of `infer --tiles`, by the code in `source`."""
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["infer", str(model), str(pictures), "--tiles", str(TILES), "--no-pictures", "--out", str(out)]
    arguments += ["--device", "cpu", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(source), "DIRECTDET_MAX_PIXELS": str(side * side)}
    start = time.perf_counter()
    peak = out.with_suffix(".peak")
    if subprocess.run([sys.executable, "-c", CALL, str(peak), *arguments], env=environment, check=False).returncode:
        raise SystemExit(f"{pictures}: infer failed")
    return {"gb": int(peak.read_text()) * 1024 / 1e9, "seconds": time.perf_counter() - start}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True, help="folder for 300 MB of files")
    options.add_argument("--side", type=int, default=20_000, help="of the pictures, pixels")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these files")
    options.add_argument("--before", type=Path, metavar="CHECKOUT", help="measure this one, too")
    options.add_argument("--results", type=Path, metavar="DIR", help="folder for the figures  [default: results]")
    given = options.parse_args()
    model = given.work / RECIPE
    if not (model / "meta.json").is_file():
        given.work.mkdir(parents=True, exist_ok=True)
        prepare(RECIPE, given.work)
    rows: dict[str, dict] = {}
    files = make_files(given.work, given.side)
    for name in given.kinds:
        pictures = files[name]
        row: dict = {"label": name, "file_mb": sum(file.stat().st_size for file in pictures.iterdir()) / 1e6}
        for when, source in (("before", given.before and given.before / "src"), ("now", ROOT / "src")):
            if source is not None:
                row[when] = measured(model, pictures, given.work / "out", given.side, source)
        rows[name] = row
        print(row, flush=True)
        settings = {"side": given.side, "tiles": TILES, "model": RECIPE, "decoded_gb": 3 * given.side**2 / 1e9}
        write_results("large_files", settings, rows, given.results)


if __name__ == "__main__":
    main()
