"""What a server takes and how much of it, checked before the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from directdet.common.settings import Between, Count, Share, check_fields

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
        score: detections below it are left out, unless a request asks for another; None: the model's own, see
            `Predictor.usual_scores`.

    Raises:
        SettingError: a number out of range.
    """

    batch: Annotated[int, Between(1, MOST_BATCH)] | None = None
    wait_ms: Annotated[float, Between(0, 10_000)] = 2.0
    queue: Count = 128
    max_bytes: Count = 20_000_000
    max_pixels: Count = 50_000_000
    upload_seconds: Annotated[float, Between(0, 3600, above=True)] = 30.0
    score: Share | None = None

    def __post_init__(self) -> None:
        check_fields(self, "")
