"""Object detectors trained from scratch, deployed in real time.

`from directdet import Detector` is all a notebook or a server needs: `Detector("ARTEFACT")("photo.jpg")`. `train`,
`evaluate`, `export` and `benchmark` are the commands of the command line as functions of names and paths.
"""

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from directdet.common.errors import UserError
    from directdet.data.dataset import load_dataset
    from directdet.front.api import benchmark, evaluate, export, train
    from directdet.infer.detections import Detections
    from directdet.infer.detector import Detector
    from directdet.infer.scaled import ScaledDetector
    from directdet.infer.tiled import TiledDetector
else:
    # Sub-packages of one docstring each, which importing any of their modules would import anyway.
    from directdet import benchmark, export, train

__all__ = [
    "Detections",
    "Detector",
    "ScaledDetector",
    "TiledDetector",
    "UserError",
    "__version__",
    "benchmark",
    "evaluate",
    "export",
    "load_dataset",
    "train",
]
__version__ = "0.2.0"

# Public names and where they are defined. They are imported when they are used: `--help` loads nothing heavy.
_PLACES = {
    "Detections": "directdet.infer.detections",
    "Detector": "directdet.infer.detector",
    "ScaledDetector": "directdet.infer.scaled",
    "TiledDetector": "directdet.infer.tiled",
    "UserError": "directdet.common.errors",
    "benchmark": "directdet.front.api",
    "evaluate": "directdet.front.api",
    "export": "directdet.front.api",
    "load_dataset": "directdet.data.dataset",
    "train": "directdet.front.api",
}


def _public(name: str) -> Any:
    return getattr(importlib.import_module(_PLACES[name]), name)


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return _public(name)
    raise AttributeError(f"module 'directdet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Command(types.ModuleType):
    """A sub-package that is a function as well, since both have one name: `directdet.train("RECIPE", ...)` calls what
    `directdet.train.run` belongs to. `import directdet.train.run` puts the sub-package where a plain function of that
    name would be, whichever came first; so the two are one object."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return _public(self.__name__.rpartition(".")[2])(*arguments, **settings)

    @property
    def __signature__(self) -> Any:
        """For `inspect.signature`, and so for notebooks."""
        import inspect

        return inspect.signature(_public(self.__name__.rpartition(".")[2]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by name, as functions are: it may be the target of a process."""
        return importlib.import_module, (self.__name__,)


if not TYPE_CHECKING:
    for _command in (train, export, benchmark):
        _command.__class__ = _Command
