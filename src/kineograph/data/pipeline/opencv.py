"""OpenCV, or a clear word that it is not there."""

from __future__ import annotations

from typing import Any

from kineograph.errors import InputError


def opencv() -> Any:
    """The module `cv2`, on one thread: files are worked on side by side, and threads within one would only wait.

    Raises InputError when it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "clips are sifted by OpenCV, which is not installed: pip install 'kineograph[data]'"
        ) from error
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    return cv2
