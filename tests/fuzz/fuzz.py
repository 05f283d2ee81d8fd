"""Damaged files by the thousand: `python tests/fuzz/fuzz.py --n 50000` reads so many, each in a time and memory limit.

Exit code 1, and the seeds that show it, if anything but a value or a UserError came out; `--only NAME --seed S --n 1`
repeats one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

for folder in ("fuzz", "infer"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

SECONDS = 30
MOST_MEMORY = 2 * 2**30  # more than the process had before
BATCH = 50  # inputs of one process


@contextlib.contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """TimeoutError in what takes longer."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """MemoryError, or the like, in what takes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def attempt(target: object, seed: int) -> str:
    """What came of one damaged file: "value", "error", or a traceback's last lines."""
    from targets import Target

    from directdet.common.errors import UserError

    assert isinstance(target, Target)
    target.damage(random.Random(seed))
    try:
        silent = io.StringIO()
        with limited(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), _no_warnings():
            target.read()
        return "value"
    except UserError as error:
        text = str(error)
        if "\n" in text:
            return f"an error of several lines: {text!r}"
        return "error"
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "directdet" in frame.filename]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:160]}"


def batch(targets: list, name: str, seeds: list[int], result: Path) -> None:
    """In a process of its own: each seed's outcome as a line, before the next begins."""
    target = next(target for target in targets if target.name == name)
    limit_memory()
    with result.open("w") as stream:
        for seed in seeds:
            print(json.dumps([seed, None]), file=stream, flush=True)
            print(json.dumps([seed, attempt(target, seed)]), file=stream, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--only", action="append", help="a target by its name")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    given = parser.parse_args()
    import cv2
    import torch
    from targets import make_targets

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    begin, count, found = time.perf_counter(), collections.Counter(), collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        targets = [t for t in make_targets(Path(folder) / "files") if not given.only or t.name in given.only]
        done, seed = 0, given.seed
        result = Path(folder) / "result"
        while done < given.n and time.perf_counter() - begin < given.seconds:
            for target in targets:
                seeds = list(range(seed, seed + min(BATCH, -(-given.n // len(targets)))))
                while seeds and time.perf_counter() - begin < given.seconds:
                    process = os.fork()
                    if not process:
                        code = 70
                        try:
                            batch(targets, target.name, seeds, result)
                            code = 0
                        finally:
                            os._exit(code)
                    status = os.waitpid(process, 0)[1]
                    lines = [json.loads(line) for line in result.read_text().splitlines()]
                    for number, outcome in lines:
                        if outcome is not None:
                            count[outcome if outcome in ("value", "error") else "WRONG"] += 1
                            if outcome not in ("value", "error"):
                                found[f"{target.name}: {outcome}"].append(number)
                                print(f"{target.name}, seed {number}: {outcome}", flush=True)
                    last = lines[-1] if lines else [seeds[0], None]
                    if last[1] is None:  # the process died of it
                        count["WRONG"] += 1
                        found[f"{target.name}: the process ended with status {status}"].append(last[0])
                    done += sum(outcome is not None for _, outcome in lines) + (last[1] is None)
                    seeds = seeds[seeds.index(last[0]) + 1 :]
            seed += BATCH
    print(f"{done} damaged files of {len(targets)} kinds in {time.perf_counter() - begin:.0f} s: {dict(count)}")
    for text, seeds in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds)} x {text} (seed {seeds[0]})")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
