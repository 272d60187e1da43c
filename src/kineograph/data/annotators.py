"""Control pictures from the frames of a video: edges, depth, poses. Frames and maps are uint8 [h w 3]."""

from __future__ import annotations

import numpy as np

from kineograph.errors import InputError

LOW, HIGH = 100, 200  # thresholds of the gradient that ControlNets for edges were trained with


def canny(frame: np.ndarray, low: int = LOW, high: int = HIGH) -> np.ndarray:
    """White edges on black (Canny 1986), by OpenCV."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "edges are found by OpenCV, which is not installed: pip install 'kineograph[control]'"
        ) from error
    found = cv2.Canny(np.ascontiguousarray(frame), low, high)
    return np.repeat(found[..., None], 3, axis=2)
