"""Frames of several videos in common batches: each is read in its own thread, into its own queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from directdet.infer.predict.stages import Batch, Item
from directdet.infer.predict.video import Frame, Video
from directdet.infer.predictor import Predictor

_JOIN_SECONDS = 2.0  # how long to wait for the threads, of which one may hang in reading a camera


class Together:
    """Batches of what there is: no video waits for another.

    A file waits when its queue is full. The queue of a live source holds its newest frame alone, and what that replaces
    is counted. A batch takes one frame of each video in turn, then a second one of each, and so on, as far as they are
    there and get the same canvas; which comes first changes from batch to batch.

    Args:
        videos: files, cameras and streams.
        size: most frames of a batch.
        limit: stop reading a file after so many frames.

    Attributes:
        dropped: of each video, the frames that newer ones replaced.
        failures: what ended the reading of a video early, by its place in `videos`.
    """

    def __init__(self, videos: Sequence[Video], detector: Predictor, size: int, limit: int | None) -> None:
        self.dropped = [0] * len(videos)
        self.failures: dict[int, BaseException] = {}
        self._videos, self._detector, self._size, self._limit = videos, detector, size, limit
        self._queues: list[deque[Item[Frame]]] = [deque() for _ in videos]
        self._depth = max(2, -(-2 * size // len(videos)))
        self._reading = set(range(len(videos)))
        self._changed = threading.Condition()

    def batches(self) -> Iterator[Batch[Frame]]:
        """Read all videos to their ends."""
        threads = [threading.Thread(target=self._fill, args=(number,), daemon=True) for number in self._reading]
        for thread in threads:
            thread.start()
        first = 0
        try:
            while True:
                with self._changed:
                    while not any(self._queues) and self._reading:
                        self._changed.wait()
                    items = self._take(first)
                    self._changed.notify_all()
                if not items:
                    return
                first = (items[0].stream + 1) % len(self._videos)
                yield Batch(items)
        finally:
            for number in range(len(self._videos)):
                self.stop(number)
            deadline = time.perf_counter() + _JOIN_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.perf_counter()))

    def stop(self, number: int) -> None:
        """Read no more of a video."""
        with self._changed:
            self._reading.discard(number)
            self._changed.notify_all()

    def _take(self, first: int) -> list[Item[Frame]]:
        """The items of the next batch; the videos' turns begin with this one."""
        items: list[Item[Frame]] = []
        turns = [*self._queues[first:], *self._queues[:first]]
        canvas = None
        while len(items) < self._size:
            before = len(items)
            for queue in turns:
                if len(items) < self._size and queue and canvas in (None, self._canvas(queue[0])):
                    canvas = self._canvas(queue[0])
                    items.append(queue.popleft())
            if len(items) == before:
                break
        return items

    def _canvas(self, item: Item[Frame]) -> tuple[int, int]:
        preprocess = self._detector.preprocess
        return preprocess.canvas(preprocess.place(*item.source.image.shape[:2]))

    def _fill(self, number: int) -> None:
        """Read one video into its queue."""
        video, queue = self._videos[number], self._queues[number]
        frames = video.frames()
        try:
            for count, frame in enumerate(frames, start=1):
                with self._changed:
                    if video.live and queue:
                        queue.popleft()
                        self.dropped[number] += 1
                    while len(queue) >= self._depth and number in self._reading:
                        self._changed.wait()
                    if number not in self._reading:
                        break
                    queue.append(Item(frame, frame.image, stream=number))
                    self._changed.notify_all()
                if not video.live and count == self._limit:
                    break
        except BaseException as error:
            self.failures[number] = error
        finally:
            frames.close()
            self.stop(number)
