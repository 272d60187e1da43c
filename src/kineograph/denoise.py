"""A model, for sampling, is a function from (x, sigma) to its estimate of the clean video; and wrappers around it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kineograph.latents import Latents

Denoise = Callable[[Latents, float], Latents]


def guided(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance: away from the unconditional estimate, by `scale` times the difference.

    With `scale == 1` this is `conditional` itself, so that the unconditional model is never evaluated.
    Source: Ho & Salimans 2022, eq. 6, whose `w` is `scale - 1`; estimates of x0 mix exactly as those of noise do.
    """
    if scale == 1:
        return conditional

    def look(x: Latents, sigma: float) -> Latents:
        without = unconditional(x, sigma)
        return without + scale * (conditional(x, sigma) - without)

    return look


def finite(denoise: Denoise) -> Denoise:
    """The same model, that raises ValueError when an estimate holds NaN or infinity, naming the first such frame."""

    def look(x: Latents, sigma: float) -> Latents:
        x0 = denoise(x, sigma)
        broken = ~torch.isfinite(x0).flatten(2).all(2)
        if broken.any():
            sample, frame = broken.nonzero()[0].tolist()
            raise ValueError(
                f"The network's estimate of frame {frame} (video {sample} of the batch) at noise level {sigma:.4g} "
                f"holds NaN or infinity; {int(broken.sum())} of {broken.numel()} frames do. "
                "Half precision that overflows is the usual cause: load the model with dtype=float32 or bfloat16."
            )
        return x0

    return look
