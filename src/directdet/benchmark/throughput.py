"""Images per second with several batches in flight, which is what a server or a folder of pictures wants.

One batch at a time leaves cores idle: preparing a picture and pasting its masks are serial, and so are parts of every
network. Several threads, each with a batch of its own and a core for it, use them all; each batch then takes longer.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        in_flight: batches at a time, each run by a thread of its own.
        fps: images per second, end to end.
    """

    in_flight: int
    fps: float


def time_throughput(
    step: Callable[[int], object], warmup: int, iterations: int, batch: int, in_flight: int
) -> Throughput:
    """Images per second of `iterations` calls of step(number), by `in_flight` threads, after `warmup` calls.

    Warm-up calls have negative numbers. The clock runs from the first timed call to the end of the last one.

    Raises:
        Exception: what a call raised; the others then end early.
    """
    numbers = itertools.count()
    lock = threading.Lock()
    failed = threading.Event()

    def work(_: int) -> None:
        while not failed.is_set():
            with lock:
                number = next(numbers)
            if number >= iterations:
                return
            try:
                step(number)
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(in_flight) as pool:
        list(pool.map(step, range(-max(warmup, in_flight), 0)))
        start = time.perf_counter()
        list(pool.map(work, range(in_flight)))
        seconds = time.perf_counter() - start
    return Throughput(in_flight, iterations * batch / seconds)
