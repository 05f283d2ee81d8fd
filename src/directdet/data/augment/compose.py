"""The augmentation of a phase: steps in a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from directdet.data.augment.mixing import CopyPaste, MixUp, Mosaic
from directdet.data.augment.sample import Sample
from directdet.data.augment.steps import Another, Step


@dataclass(frozen=True)
class Compose:
    """Runs ``each`` on every picture that is read, and then ``steps`` on the one that is trained on.

    The result depends on the sample, the generator and what ``another`` reads with it, on nothing else.
    """

    each: tuple[Step, ...]
    steps: tuple[Step, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        """``sample`` must not be padded; ``another(rng)`` reads another one."""

        def prepared(rng: np.random.Generator) -> Sample:
            return self._prepare(another(rng), rng, another)

        sample = self._prepare(sample, rng, another)
        for step in self.steps:
            sample = step(sample, rng, prepared)
        return sample

    def _prepare(self, sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
        for step in self.each:
            sample = step(sample, rng, another)
        return sample

    @property
    def needs_masks(self) -> bool:
        """Whether a step works with masks even where training does not."""
        return any(isinstance(step, CopyPaste) for step in self.steps)

    @property
    def pictures(self) -> int:
        """The most pictures whose objects end up in one."""
        more = {Mosaic: 3, MixUp: 1, CopyPaste: 1}
        return 1 + sum(more.get(type(step), 0) for step in self.steps)
