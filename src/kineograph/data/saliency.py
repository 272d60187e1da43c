"""Where a picture's salient object is, by a network made for it: BiRefNet, through `rembg` if that is installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from kineograph.errors import InputError

NETWORK = "birefnet-general-lite"


def salient() -> Callable[[np.ndarray], np.ndarray]:
    """What gives the mask of a frame: uint8 [h w 3] -> uint8 [h w], 255 on the object. Fetches its weights once.

    Raises InputError when rembg is not installed.
    """
    try:
        from rembg import new_session, remove  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError(
            "masks of salient objects are made by rembg, which is not installed: pip install 'kineograph[saliency]', "
            "or take the model's own attention (--masks attention)"
        ) from error
    session = new_session(NETWORK)
    return lambda frame: np.asarray(remove(Image.fromarray(frame), session=session, only_mask=True))
