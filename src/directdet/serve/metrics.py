"""What a server has done, in the text format that Prometheus reads."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Mapping

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds; Prometheus's usual ones
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters; any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets, self._seconds = [0] * (len(_BOUNDS) + 1), 0.0
        self._batches = self._pictures = self._detections = 0
        self._network_seconds = 0.0

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        with self._lock:
            self._requests[path, status] += 1
            self._buckets[bisect.bisect_left(_BOUNDS, seconds)] += 1
            self._seconds += seconds

    def batch(self, pictures: int, seconds: float) -> None:
        """The network ran on so many pictures."""
        with self._lock:
            self._batches += 1
            self._pictures += pictures
            self._network_seconds += seconds

    def found(self, detections: int) -> None:
        """So many detections were returned."""
        with self._lock:
            self._detections += detections

    def text(self, now: Mapping[str, float]) -> str:
        """All of it. `now`: further values that go up and down, by name."""
        with self._lock:
            lines = ["# TYPE directdet_requests_total counter"]
            lines += [
                f'directdet_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            lines.append("# TYPE directdet_request_seconds histogram")
            total = 0
            for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._buckets, strict=True):
                total += count
                lines.append(f'directdet_request_seconds_bucket{{le="{bound}"}} {total}')
            lines += [f"directdet_request_seconds_sum {self._seconds:.6f}", f"directdet_request_seconds_count {total}"]
            counters = {
                "batches_total": self._batches,
                "pictures_total": self._pictures,
                "detections_total": self._detections,
                "network_seconds_total": round(self._network_seconds, 6),
            }
        for name, value in counters.items():
            lines += [f"# TYPE directdet_{name} counter", f"directdet_{name} {value}"]
        for name, value in now.items():
            lines += [f"# TYPE directdet_{name} gauge", f"directdet_{name} {value:g}"]
        return "\n".join(lines) + "\n"
