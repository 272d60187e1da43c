"""Videos as latents, and what is done to them without a network.

A noisy video is `x = x0 + sigma * noise`; an image is a video with one frame.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b f c h w"]
SampleSigmas = Float[Tensor, "#b #f 1 1 1"]  # training gives every sample its own level
Mask = Float[Tensor, "#b #f #c #h #w"]


def add_noise(x0: Latents, noise: Latents, sigma: float | SampleSigmas) -> Latents:
    """Clean latents raised to the noise level `sigma`: `x0 + sigma * noise`."""
    return x0 + sigma * noise


def renoise(x: Latents, noise: Latents, sigma: float, to: float) -> Latents:
    """Latents at level `sigma` raised to the higher level `to` with fresh noise.

    DDPM's forward process (Ho et al. 2020, eq. 2) over many steps at once, in our units: variances add.
    Raises ValueError when `to` is below `sigma`, since noise cannot be added to go down.
    """
    if to < sigma:
        raise ValueError(
            f"renoise goes up: expected a level of at least sigma={sigma:g}, got to={to:g}. To go down, sample."
        )
    return x + math.sqrt(to**2 - sigma**2) * noise


def low_pass(x: Latents, *, spatial: float, temporal: float) -> Latents:
    """The slow part of a video: a Gaussian filter over frames, rows and columns.

    `spatial` and `temporal` are the filter's widths in units of the Nyquist frequency; `math.inf` leaves that
    direction as it is. The mean is kept exactly, also for an odd number of frames.
    Source: the Gaussian filter of FreeInit (Wu et al. 2023), which VideoElevator applies to clean estimates.
    """
    if min(spatial, temporal) <= 0:
        raise ValueError(f"low_pass needs widths above 0, got spatial={spatial:g} and temporal={temporal:g}.")
    frames, _, rows, columns = x.shape[1:]
    gain = (
        _gain(torch.fft.fftfreq(frames, device=x.device), temporal)[:, None, None, None]
        * _gain(torch.fft.fftfreq(rows, device=x.device), spatial)[:, None]
        * _gain(torch.fft.rfftfreq(columns, device=x.device), spatial)
    )
    spectrum = torch.fft.rfftn(x, dim=(1, 3, 4))
    return torch.fft.irfftn(gain * spectrum, s=(frames, rows, columns), dim=(1, 3, 4))


def _gain(frequency: Float[Tensor, " n"], width: float) -> Float[Tensor, " n"]:
    """The Gaussian at these frequencies, given in cycles a cell (Nyquist is 0.5)."""
    return torch.exp(-0.5 * (2 * frequency / width) ** 2)


def blend(a: Latents, b: Latents, mask: Mask) -> Latents:
    """`a` where the mask is 1, `b` where it is 0, a mixture between."""
    return torch.lerp(b, a, mask)
