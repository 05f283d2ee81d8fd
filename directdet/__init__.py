"""Object detectors trained from scratch, deployed in real time.

`from directdet import Detector` is all a notebook or a server needs: `Detector("ARTEFACT")(image_bgr)`.
"""


def __getattr__(name: str) -> object:
    """Public names, imported when they are used: the command line's help loads nothing heavy."""
    if name in ("Detector", "Detections"):
        from .infer import detections, detector

        return detector.Detector if name == "Detector" else detections.Detections
    raise AttributeError(f"module 'directdet' has no attribute {name!r}")
