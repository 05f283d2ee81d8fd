"""What a verification is judged by: each criterion with what was measured, what is allowed, and what to do."""

from dataclasses import dataclass

CLOSER = "look at `pictures` under `verification` in meta.json: which picture, how many detections"
OTHER = "the artefact computes something else than the model: do not deploy it; try another --format, and report it"
LOWER = "this precision costs this model too much: export with --precision fp32 or fp16"
CALIBRATE = "calibrate on more pictures like those of the application, or export with --precision fp16"
WHAT_TO_DO = {"fp32": f"{OTHER}; {CLOSER}", "fp16": LOWER, "bf16": LOWER, "int8": CALIBRATE}


@dataclass(frozen=True)
class Criterion:
    """One condition of the verdict.

    Attributes:
        name: a key of the column it belongs to, such as "matched" or "box AP".
        measured, limit: in `unit`.
        at_least: whether the measured value must not be below the limit, instead of not above.
        about: the condition in words, with {measured} and {limit}.
    """

    name: str
    measured: float
    limit: float
    about: str
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """False for NaN as well."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        return self.about.format(measured=self.measured, limit=self.limit)

    def to_dict(self) -> dict[str, object]:
        """Plain values for meta.json."""
        named = {"name": self.name, "measured": self.measured, "limit": self.limit, "at_least": self.at_least}
        return {**named, "passed": self.passed, "about": str(self)}
