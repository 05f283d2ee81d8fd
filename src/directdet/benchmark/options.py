"""What a benchmark measures and how, checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from directdet.common.errors import UsageProblem
from directdet.common.settings import check_word
from directdet.infer.runtimes.names import PRECISIONS, TITLES

QUICK = {"iterations": 30, "warmup": 5, "ap_images": 50}
_PRECISION_NAMES = tuple(dict.fromkeys(name for names in PRECISIONS.values() for name in names if name is not None))


@dataclass(frozen=True)
class BenchmarkOptions:
    """What a benchmark measures and how.

    Attributes:
        runtimes: the runtimes to use; each model runs in those that can run its kind. None: all that are installed.
        iterations: timed batches. warmup: batches before them.
        batch: images per batch, one or several sizes. The AP is measured once, with the first size that runs.
        threads: CPU threads of the runtime and of OpenCV; None leaves the number to them.
        device: as `runtimes.load` takes it; a model that runs on another device than this one counts as failed.
        precision: as `runtimes.load` takes it, one or several; each runtime uses those it has.
        ap_images: measure the AP on this many images, the first ones; None: all, 0: no AP.
        quick: 30 iterations after 5, AP on 50 images, whatever the settings above say: to see that it works, not to be
            quoted.
        compiled: time checkpoints compiled (`torch.compile`) as well as eager.
        throughput: also measure images per second on a CPU with a batch in flight for each of `threads`, or of the
            cores that may be used; not of checkpoints, since PyTorch runs one call at a time.

    Raises:
        UsageProblem: a number out of range, or an unknown runtime or precision.
    """

    runtimes: Sequence[str] | None = None
    iterations: int = 300
    warmup: int = 50
    batch: int | Sequence[int] = 1
    threads: int | None = None
    device: str = "auto"
    precision: str | Sequence[str] | None = None
    ap_images: int | None = None
    quick: bool = False
    compiled: bool = False
    throughput: bool = False

    def __post_init__(self) -> None:
        if self.quick:
            for name, value in QUICK.items():
                object.__setattr__(self, name, value)
        if self.iterations < 1 or self.warmup < 0 or not self.batches or min(self.batches) < 1:
            raise UsageProblem("benchmark: iterations and batch must be at least 1, warmup at least 0")
        if self.threads is not None and self.threads < 1:
            raise UsageProblem(f"benchmark: threads: {self.threads}; give at least 1")
        if self.ap_images is not None and self.ap_images < 0:
            raise UsageProblem(f"benchmark: ap_images: {self.ap_images}; give 0 for no AP, or a number of images")
        for name in self.runtimes or ():
            check_word("runtime", name, TITLES)
        for name in self.precisions:
            if name is not None:
                check_word("precision", name, _PRECISION_NAMES)

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes, each once, in the order given."""
        return (self.batch,) if isinstance(self.batch, int) else tuple(dict.fromkeys(self.batch))

    @property
    def precisions(self) -> tuple[str | None, ...]:
        """The precisions, each once, in the order given; (None,) leaves the choice to each runtime."""
        if self.precision is None or isinstance(self.precision, str):
            return (self.precision,)
        return tuple(dict.fromkeys(self.precision)) or (None,)
