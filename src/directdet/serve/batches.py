"""Pictures of several requests in one run of the network."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from directdet.infer.detections import Detections
from directdet.infer.predictor import Predictor


class Full(Exception):
    """As many pictures wait as may."""


@dataclass
class _Waiting:
    image: np.ndarray
    answer: Future[Detections] = field(default_factory=Future)


class Batches:
    """A thread that runs a detector on what waits in a bounded queue.

    A batch begins with the first picture, and takes what comes within `wait` seconds up to `size` pictures. Where a
    batch fails, its pictures run one by one, so that one of them costs the others nothing.

    Args:
        detector: takes any number of pictures; `detect_batch` splits what its network does not take at once.
        size: the most pictures of a batch.
        wait: seconds; those that wait already are taken without waiting.
        most: pictures in the queue.
        ran: called with the size of each batch and its seconds.
    """

    def __init__(
        self, detector: Predictor, size: int, wait: float, most: int, ran: Callable[[int, float], None]
    ) -> None:
        self._detector, self._size, self._wait, self._ran = detector, size, wait, ran
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(most)
        self._closed, self._lock = False, threading.Lock()
        self._thread = threading.Thread(target=self._work, name="directdet-batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether pictures are taken."""
        return self._thread.is_alive() and not self._closed

    def waiting(self) -> int:
        """The number of pictures in the queue."""
        return self._queue.qsize()

    def submit(self, image: np.ndarray) -> Future[Detections]:
        """The detections of one picture, uint8 [h, w, 3] BGR, once its batch has run; Full if it cannot wait."""
        one = _Waiting(image)
        with self._lock:
            if self._closed:
                raise Full("the server is stopping")
            try:
                self._queue.put_nowait(one)
            except queue.Full:
                raise Full("as many pictures wait as may") from None
        return one.answer

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        ended = False
        while not ended:
            group, ended = self._take()
            if group:
                start = time.perf_counter()
                self._run(group)
                self._ran(len(group), time.perf_counter() - start)
            del group  # no picture is kept until the next one comes

    def _take(self) -> tuple[list[_Waiting], bool]:
        """The next batch, and whether it is the last."""
        one = self._queue.get()
        if one is None:
            return [], True
        group, until = [one], time.monotonic() + self._wait
        while len(group) < self._size:
            try:
                one = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if one is None:
                return group, True
            group.append(one)
        return group, False

    def _run(self, group: list[_Waiting]) -> None:
        group = [one for one in group if one.answer.set_running_or_notify_cancel()]  # those whose client has gone
        try:
            found = self._detector.detect_batch([one.image for one in group])
        except Exception as error:
            if len(group) == 1:
                group[0].answer.set_exception(error)
                return
            for one in group:
                self._run_one(one)
            return
        for one, detections in zip(group, found, strict=True):
            one.answer.set_result(detections)

    def _run_one(self, one: _Waiting) -> None:
        try:
            one.answer.set_result(self._detector.detect_batch([one.image])[0])
        except Exception as error:
            one.answer.set_exception(error)
