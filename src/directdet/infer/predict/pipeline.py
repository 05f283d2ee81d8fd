"""Overlapping stages: each runs in its own thread, connected by short queues."""

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

END = object()  # returned by a channel when there are no more items
_KEPT = 1 << 14
_POLL_SECONDS = 0.2  # waits are split into pieces of this length, so that Ctrl-C works on every system
_JOIN_SECONDS = 2.0  # how long to wait for a thread, e.g. one that hangs in reading a camera; it ends with the process
# Exceptions that only programming errors raise; they keep their traceback.
_BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError, NotImplementedError)


class Channel:
    """A bounded queue between two threads. The consumer may stop it, the producer may close it.

    Args:
        depth: maximum number of items.
        newest: when full, drop the oldest item and count it in `dropped`, instead of letting `put` wait.
    """

    def __init__(self, depth: int, newest: bool = False) -> None:
        self.dropped = 0
        self._depth, self._newest = depth, newest
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closed = self._stopped = False

    def put(self, item: Any) -> bool:
        """Add an item as soon as there is room; False if the consumer has stopped."""
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
        """Wait until `put` would not block; False if the consumer has stopped."""
        with self._changed:
            while len(self._items) >= self._depth and not self._stopped:
                self._changed.wait()
            return not self._stopped

    def get(self, timeout: float | None = None) -> Any:
        """The next item, or END after the last one; None if there is none within `timeout` seconds."""
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
        """Discard all items, and accept no more."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()


class Latencies:
    """Durations of one stage, in constant memory: percentiles are of the last 16384."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._ring = np.zeros(_KEPT, np.float32)

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self._ring[self.count % _KEPT] = seconds
        self.count += 1
        self.total += seconds

    def summary(self) -> dict[str, float]:
        """mean_ms, p50_ms, p95_ms and p99_ms; empty without durations."""
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
        dropped: how many of a live source were replaced by newer ones before they could be processed.
        seconds: wall time from reading the first item to the end of the last one.
        stages: durations of each stage by its name, in order: "read", the stages, "write".
        end_to_end: from the start of reading an item (live: from the end of reading it) to its end, including waits.
        interrupted: Ctrl-C or SIGTERM ended the run.
        failure: the error that ended the run, if any; the caller raises it after closing the outputs.
    """

    items: int = 0
    dropped: int = 0
    seconds: float = 0.0
    stages: dict[str, Latencies] = field(default_factory=dict)
    end_to_end: Latencies = field(default_factory=Latencies)
    interrupted: bool = False
    failure: BaseException | None = None

    def raise_failure(self) -> None:
        """Raise the error or interrupt that ended the run early, if there was one."""
        if self.failure is not None:
            raise self.failure
        if self.interrupted:
            raise KeyboardInterrupt


@dataclass
class _Timed:
    """An item with the time at which it entered the pipeline."""

    value: Any
    start: float


def run_pipeline(
    source: Iterable[Any],
    stages: Sequence[tuple[str, Callable[[Any], Any]]],
    sink: Callable[[Any], bool | None],
    live: bool = False,
    depth: int = 2,
) -> PipelineResult:
    """Send every item of `source` through the stages, each in its own thread, and into `sink`.

    The order is kept. An error in the source or in a stage ends the run: items that have passed that stage still reach
    the sink. Nothing is raised, see `PipelineResult.raise_failure`: the caller closes its files first. On Ctrl-C and
    SIGTERM the sink finishes its current item.

    Args:
        source: read in the first thread, and closed there if it is a generator.
        stages: (name, function that takes an item and returns the one for the next stage).
        sink: called in the calling thread, which may draw windows; returning True ends the run.
        live: the source does not wait, so an item that is not taken in time is replaced by the next.
        depth: maximum number of items waiting before each stage.
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
    with _catch_stop_signals() as stopped:
        for thread in threads:
            thread.start()
        try:
            _drain(channels[-1], sink, result, stopped, begin)
        finally:
            for channel in channels:
                channel.stop()
            deadline = time.perf_counter() + _JOIN_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.perf_counter()))
        result.interrupted = stopped.is_set()
    result.dropped = channels[0].dropped
    return result


def _read(source: Iterable[Any], outlet: Channel, result: PipelineResult, live: bool) -> None:
    items = iter(source)
    number = 0
    try:
        while live or outlet.wait_for_room():
            begin = time.perf_counter()
            try:
                value = next(items)
            except StopIteration:
                break
            done = time.perf_counter()
            result.stages["read"].add(done - begin)
            number += 1
            if not outlet.put(_Timed(value, done if live else begin)):
                break
    except BaseException as error:
        _note_failure(result, "read", number, error)
    finally:
        close = getattr(items, "close", None)  # generators have one
        if close is not None:
            close()
        outlet.close()


def _work(name: str, function: Callable[[Any], Any], inlet: Channel, outlet: Channel, result: PipelineResult) -> None:
    times, number = result.stages[name], 0
    try:
        # An item is only taken once there is room for the result, so that a live one is as new as possible.
        while outlet.wait_for_room() and (item := inlet.get()) is not END:
            begin = time.perf_counter()
            item.value = function(item.value)
            times.add(time.perf_counter() - begin)
            number += 1
            if not outlet.put(item):
                break
    except BaseException as error:
        _note_failure(result, name, number, error)
    finally:
        inlet.stop()
        outlet.close()


def _drain(
    inlet: Channel, sink: Callable[[Any], bool | None], result: PipelineResult, stopped: threading.Event, start: float
) -> None:
    """Pass items to the sink until there are no more, or the run is stopped."""
    while not stopped.is_set():
        item = inlet.get(_POLL_SECONDS)
        if item is END:
            return
        if item is None:
            continue
        begin = time.perf_counter()
        try:
            enough = sink(item.value)
        except Exception as error:
            _note_failure(result, "write", result.items, error)
            return
        end = time.perf_counter()
        result.stages["write"].add(end - begin)
        result.end_to_end.add(end - item.start)
        result.items += 1
        result.seconds = end - start
        if enough:
            return


def _note_failure(result: PipelineResult, stage: str, number: int, error: BaseException) -> None:
    """Keep the first error. An error of a library becomes one line; a programming error keeps its traceback."""
    if not isinstance(error, (UserError, *_BUGS)) and isinstance(error, Exception):
        text = " ".join(str(error).split())[:300]
        failure: BaseException = UserError(f"{stage}: failed at item {number + 1}: {type(error).__name__}: {text}")
        failure.__cause__ = error
    else:
        failure = error
    if result.failure is None:
        result.failure = failure


@contextlib.contextmanager
def _catch_stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set instead of interrupting the code; a second Ctrl-C does interrupt it."""
    stopped = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # e.g. a background job of a shell
                before[number] = signal.signal(number, handle)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
