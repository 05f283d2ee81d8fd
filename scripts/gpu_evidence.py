"""The papers' comparisons on a GPU, in slices that resume, on data that gpu_pack.py packed; the results are JSON.

On a machine without network, from the repository's root (it needs torch, torchvision and the project's dependencies, no
installation):

    python scripts/gpu_evidence.py --data voc --unpack parts/part0.tar     # once for each part
    python scripts/gpu_evidence.py --data voc --out evidence --slice 540 --copy-to "$OUT"

The second command runs for `--slice` seconds at most; call it again until it says that everything is finished. It runs
training from scratch and direct pre-training for equal time, Table 2's three modes of batch normalisation and Table 7's
times, or what --comparisons names (ScratchDet's tables), and copies each results.json to --copy-to.
"""

import argparse
import shutil
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "src"))  # the package need not be installed
# Comparison: seconds of its budget.
DIRECT = {"direct/scratch": 600.0, "direct/table2": 420.0, "direct/table7": 60.0}
COMPARISONS = {**DIRECT, "scratchdet/table1": 2400.0, "scratchdet/table2": 2000.0}
SPARE = 20.0  # seconds of a slice for what comes before and after training


def unpack(part: Path, data: Path) -> None:
    """Add one part to the dataset."""
    data.mkdir(parents=True, exist_ok=True)
    with tarfile.open(part) as archive:
        archive.extractall(data, filter="data")
    print(f"{part}: unpacked into {data}")


def run(arguments: argparse.Namespace) -> bool:
    """Run one slice and return whether everything is finished."""
    from directdet.reproduce.run import ReproduceOptions, reproduce
    from directdet.reproduce.timing import time_table7

    end = time.monotonic() + arguments.slice
    for name in arguments.comparisons:
        out = arguments.out / name.replace("/", "_")
        left = end - time.monotonic() - SPARE
        if left < SPARE:
            return False
        finished = True
        if name == "direct/table7":
            if not (out / "results.json").is_file():
                time_table7(arguments.data, out, arguments.scale, arguments.device)
        else:
            options = ReproduceOptions(
                COMPARISONS[name] * arguments.shorten,
                arguments.scale,
                arguments.device,
                rows=arguments.rows,
                steps=arguments.steps,
                ssd_batch=arguments.ssd_batch,
            )
            finished = reproduce(name, arguments.data, out, options, time_limit=left).finished
        if arguments.copy_to:  # unfinished ones as well: there may be no time for another slice
            arguments.copy_to.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / "results.json", arguments.copy_to / f"{name.replace('/', '_')}.json")
        if not finished:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--unpack", type=Path, metavar="PART")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--comparisons", nargs="+", choices=COMPARISONS, default=list(DIRECT), metavar="NAME")
    parser.add_argument("--slice", type=float, default=540.0, help="seconds")
    parser.add_argument("--rows", nargs="+", default=[], metavar="KEY", help="only these, of a single comparison")
    parser.add_argument("--steps", type=int, help="of each phase of each row, instead of a budget")
    parser.add_argument("--ssd-batch", type=int, help="images per step of ScratchDet's comparisons")
    parser.add_argument("--shorten", type=float, default=1.0, help="of every budget")
    parser.add_argument("--scale", default="medium")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--copy-to", type=Path)
    arguments = parser.parse_args()
    if arguments.unpack:
        unpack(arguments.unpack, arguments.data)
    elif arguments.out is None:
        parser.error("--out or --unpack")
    else:
        print("everything is finished" if run(arguments) else "not finished: the same command continues")


if __name__ == "__main__":
    main()
