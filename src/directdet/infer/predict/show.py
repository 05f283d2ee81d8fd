"""A window that shows the annotated images, if there is a display."""

from __future__ import annotations

import os
import subprocess
import sys

import cv2
import numpy as np

from directdet.common.errors import UserError

_QUIT = (ord("q"), 27)  # q, Escape


class Window:
    """A window; `show` displays an image and returns whether the user wants to stop.

    Raises:
        UserError: there is no display, or this OpenCV was built without windows.
    """

    def __init__(self, title: str) -> None:
        require_display()
        self._title = title
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, image: np.ndarray) -> bool:
        """Show a BGR image; True if q or Escape was pressed or the window was closed."""
        cv2.imshow(self._title, image)
        if cv2.waitKey(1) & 0xFF in _QUIT:
            return True
        return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


def require_display() -> None:
    """UserError if no window can be opened. Tried in a separate process, since Qt aborts one that has no display."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(
            "--show: there is no display here (neither DISPLAY nor WAYLAND_DISPLAY is set); run without --show"
        )
    code = "import cv2; cv2.namedWindow('directdet'); cv2.destroyAllWindows()"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        raise UserError("--show: the display does not respond; run without --show") from None
    if done.returncode:
        raise UserError(
            "--show: the display cannot be opened, or this OpenCV was built without windows; run without --show"
        )
