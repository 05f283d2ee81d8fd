"""What a server takes and how much of it, checked before the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from directdet.common.errors import UsageProblem
from directdet.common.settings import SettingError

MOST_BATCH = 1024


@dataclass(frozen=True)
class ServeOptions:
    """Limits of a server.

    Attributes:
        batch: the most pictures in one run of the network; None: what the network usually takes.
        wait_ms: how long the first picture of a batch waits for others, in milliseconds.
        queue: the most requests at once, from the first byte of a picture to the last of its answer; one more gets 503.
        max_bytes: of one upload; a larger one gets 413.
        max_pixels: height x width of one picture; a larger one gets 413 before it is decoded.
        upload_seconds: within which a picture has to arrive; a slower one gets 408.
        score: detections below it are left out, unless a request asks for another.

    Raises:
        UsageProblem: a number out of range.
    """

    batch: int | None = None
    wait_ms: float = 2.0
    queue: int = 128
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    upload_seconds: float = 30.0
    score: float = 0.3

    def __post_init__(self) -> None:
        for name in ("queue", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}: {getattr(self, name)}; give at least 1")
        if self.batch is not None and not 1 <= self.batch <= MOST_BATCH:
            raise SettingError(f"batch: {self.batch}; give 1 to {MOST_BATCH}")
        if not 0 <= self.wait_ms <= 10_000:
            raise SettingError(f"wait_ms: {self.wait_ms}; give 0 to 10000")
        if not 0 < self.upload_seconds <= 3600:
            raise SettingError(f"upload_seconds: {self.upload_seconds}; give a number above 0, at most 3600")
        if not 0 <= self.score <= 1:
            raise UsageProblem(f"score: {self.score}; give a number from 0 to 1")
