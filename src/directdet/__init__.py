"""Object detectors trained from scratch, deployed in real time.

`from directdet import Detector` is all a notebook or a server needs: `Detector("ARTEFACT")(image_bgr)`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from directdet.infer.detections import Detections
    from directdet.infer.detector import Detector

__all__ = ["Detections", "Detector", "__version__"]
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Public names, imported when they are used: the command line's help loads nothing heavy."""
    if name in ("Detector", "Detections"):
        from directdet.infer import detections, detector

        return detector.Detector if name == "Detector" else detections.Detections
    raise AttributeError(f"module 'directdet' has no attribute {name!r}")
