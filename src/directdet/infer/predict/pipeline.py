"""Stages that overlap: each works in a thread of its own, and short queues join them."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from directdet.common.errors import UserError

END = object()  # what a channel gives when nothing more will come
_KEPT = 1 << 14
_TICK = 0.2  # seconds; waits are cut into such pieces, so that Ctrl-C is heard on every system
_PATIENCE = 2.0  # seconds a thread gets to leave, e.g. a camera that hangs in a read; it dies with the process
# Exceptions that only a mistake in the code raises; they keep their traceback.
_BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError, NotImplementedError)


class Channel:
    """A bounded queue between two threads. Whoever takes may stop it, whoever puts may close it.

    Args:
        depth: items it holds at most.
        newest: a full one drops its oldest item, and counts it in `dropped`, rather than let `put` wait.
    """

    def __init__(self, depth: int, newest: bool = False) -> None:
        self.dropped = 0
        self._depth, self._newest = depth, newest
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closed = self._stopped = False

    def put(self, item: Any) -> bool:
        """Add an item, once there is room; False if nobody takes any more."""
        with self._changed:
            while len(self._items) >= self._depth and not self._stopped:
                if self._newest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._stopped:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def wait_for_room(self) -> bool:
        """Wait until `put` would not have to; False if nobody takes any more."""
        with self._changed:
            while len(self._items) >= self._depth and not self._stopped:
                self._changed.wait()
            return not self._stopped

    def get(self, timeout: float | None = None) -> Any:
        """The next item, or END when the last one was taken; None if there is none after `timeout` seconds."""
        with self._changed:
            while not self._items and not self._closed and not self._stopped:
                if not self._changed.wait(timeout) and timeout is not None:
                    return None
            if self._stopped or not self._items:
                return END
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Nothing more will be put; what is in it can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Nothing more will be taken; what is in it is thrown away."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()


class Latencies:
    """Durations of one stage, in constant memory: percentiles are of the latest 16384."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._ring = np.zeros(_KEPT, np.float32)

    def add(self, seconds: float) -> None:
        """Note one duration."""
        self._ring[self.count % _KEPT] = seconds
        self.count += 1
        self.total += seconds

    def summary(self) -> dict[str, float]:
        """mean_ms, p50_ms, p95_ms and p99_ms; empty where nothing was noted."""
        if not self.count:
            return {}
        values = 1000 * self._ring[: min(self.count, _KEPT)].astype(np.float64)
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        mean = 1000 * self.total / self.count
        return {"mean_ms": mean, "p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


@dataclass
class PipelineResult:
    """What `run_pipeline` did.

    Attributes:
        items: how many reached the end.
        dropped: how many of a live source were replaced by newer ones before their turn.
        seconds: wall time from the first item's reading to the last one's end.
        stages: durations of each stage by its name, in order: "read", the stages, "write".
        end_to_end: from an item's reading (a live one's: from when it had been read) to its end, waits included.
        interrupted: Ctrl-C or SIGTERM ended it.
        failure: the error that ended it, if one did; the caller raises it once the outputs are closed.
    """

    items: int = 0
    dropped: int = 0
    seconds: float = 0.0
    stages: dict[str, Latencies] = field(default_factory=dict)
    end_to_end: Latencies = field(default_factory=Latencies)
    interrupted: bool = False
    failure: BaseException | None = None

    def raise_failure(self) -> None:
        """Raise what ended the run early, if anything did."""
        if self.failure is not None:
            raise self.failure
        if self.interrupted:
            raise KeyboardInterrupt


@dataclass
class _Parcel:
    value: Any
    start: float


def run_pipeline(
    source: Iterable[Any],
    stages: Sequence[tuple[str, Callable[[Any], Any]]],
    sink: Callable[[Any], bool | None],
    live: bool = False,
    depth: int = 2,
) -> PipelineResult:
    """Send every item of `source` through the stages, each in a thread of its own, and into `sink`.

    Order is kept. An error in the source or in a stage ends the run there: what had passed that stage still reaches
    the sink. Nothing is raised, see `PipelineResult.raise_failure`: the caller closes its files first. Ctrl-C and
    SIGTERM let the sink finish the item it is at.

    Args:
        source: read in the first thread, and closed there if it is a generator.
        stages: (name, function of an item that gives the item for the next stage).
        sink: called in the calling thread, where a window may be drawn; True ends the run.
        live: the source does not wait, so an item that is not taken in time makes way for the next.
        depth: items that may wait before each stage.
    """
    result = PipelineResult(stages={name: Latencies() for name in ("read", *(name for name, _ in stages), "write")})
    if live:
        depth = 1
    channels = [Channel(depth, newest=live and number == 0) for number in range(len(stages) + 1)]
    threads = [threading.Thread(target=_read, args=(source, channels[0], result, live), daemon=True)]
    for number, (name, function) in enumerate(stages):
        work = (name, function, channels[number], channels[number + 1], result)
        threads.append(threading.Thread(target=_work, args=work, daemon=True))
    begin = time.perf_counter()
    with _hear_stop_signals() as stopped:
        for thread in threads:
            thread.start()
        try:
            _drain(channels[-1], sink, result, stopped, begin)
        finally:
            for channel in channels:
                channel.stop()
            deadline = time.perf_counter() + _PATIENCE
            for thread in threads:
                thread.join(max(0.0, deadline - time.perf_counter()))
        result.interrupted = stopped.is_set()
    result.dropped = channels[0].dropped
    return result


def _read(source: Iterable[Any], outlet: Channel, result: PipelineResult, live: bool) -> None:
    items = iter(source)
    number = 0
    try:
        while True:
            begin = time.perf_counter()
            try:
                value = next(items)
            except StopIteration:
                break
            done = time.perf_counter()
            result.stages["read"].add(done - begin)
            number += 1
            if not outlet.put(_Parcel(value, done if live else begin)):
                break
    except BaseException as error:
        _note_failure(result, "read", number, error)
    finally:
        if hasattr(items, "close"):
            items.close()
        outlet.close()


def _work(name: str, function: Callable[[Any], Any], inlet: Channel, outlet: Channel, result: PipelineResult) -> None:
    times, number = result.stages[name], 0
    try:
        # An item is taken only once there is room for what comes of it: a live one is then as new as can be.
        while outlet.wait_for_room() and (parcel := inlet.get()) is not END:
            begin = time.perf_counter()
            parcel.value = function(parcel.value)
            times.add(time.perf_counter() - begin)
            number += 1
            if not outlet.put(parcel):
                break
    except BaseException as error:
        _note_failure(result, name, number, error)
    finally:
        inlet.stop()
        outlet.close()


def _drain(
    inlet: Channel, sink: Callable[[Any], bool | None], result: PipelineResult, stopped: threading.Event, start: float
) -> None:
    """Hand what arrives to the sink until there is no more, or somebody wants to stop."""
    while not stopped.is_set():
        parcel = inlet.get(_TICK)
        if parcel is END:
            return
        if parcel is None:
            continue
        begin = time.perf_counter()
        try:
            enough = sink(parcel.value)
        except Exception as error:
            _note_failure(result, "write", result.items, error)
            return
        end = time.perf_counter()
        result.stages["write"].add(end - begin)
        result.end_to_end.add(end - parcel.start)
        result.items += 1
        result.seconds = end - start
        if enough:
            return


def _note_failure(result: PipelineResult, stage: str, number: int, error: BaseException) -> None:
    """Keep the first error. One of a library becomes one line; a mistake in the code keeps its traceback."""
    if not isinstance(error, (UserError, *_BUGS)) and isinstance(error, Exception):
        text = " ".join(str(error).split())[:300]
        failure: BaseException = UserError(f"{stage}: failed at item {number + 1}: {type(error).__name__}: {text}")
        failure.__cause__ = error
    else:
        failure = error
    if result.failure is None:
        result.failure = failure


@contextlib.contextmanager
def _hear_stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, instead of breaking in anywhere; a second Ctrl-C does break in."""
    stopped = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # e.g. a job in the background of a shell
                before[number] = signal.signal(number, hear)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
