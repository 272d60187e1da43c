"""Operations on video latents that need no network.

A noisy video is `x = x0 + sigma * noise`; an image is a video with one frame.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kineograph.errors import InputError

Latents = Float[Tensor, "b f c h w"]
SampleSigmas = Float[Tensor, "#b #f 1 1 1"]  # in training every sample has its own sigma
Mask = Float[Tensor, "#b #f #c #h #w"]


def add_noise(x0: Latents, noise: Latents, sigma: float | SampleSigmas) -> Latents:
    """Return clean latents with noise of this sigma: `x0 + sigma * noise`."""
    return x0 + sigma * noise


def renoise(x: Latents, noise: Latents, sigma: float, to: float) -> Latents:
    """Add fresh noise to latents at `sigma`, so that they are at the higher sigma `to`.

    DDPM's forward process (Ho et al. 2020, eq. 2) over many steps at once, in our units: variances add.
    Raises InputError when `to` is below `sigma`, since adding noise never lowers it.
    """
    if to < sigma:
        raise InputError(
            f"renoise raises the noise level: expected to >= sigma={sigma:g}, got to={to:g}. To lower it, sample."
        )
    return x + math.sqrt(to**2 - sigma**2) * noise


def low_pass(x: Latents, *, spatial: float, temporal: float) -> Latents:
    """Filter a video by a Gaussian low-pass over frames, rows and columns.

    `spatial` and `temporal` are the filter's widths in units of the Nyquist frequency; `math.inf` leaves that
    direction unfiltered. The mean is kept exactly, also for an odd number of frames.
    Source: the Gaussian filter of FreeInit (Wu et al. 2023), which VideoElevator applies to clean estimates.
    """
    if min(spatial, temporal) <= 0:
        raise InputError(f"low_pass needs widths above 0, got spatial={spatial:g} and temporal={temporal:g}.")
    frames, _, rows, columns = x.shape[1:]
    gain = (
        _gain(torch.fft.fftfreq(frames, device=x.device), temporal)[:, None, None, None]
        * _gain(torch.fft.fftfreq(rows, device=x.device), spatial)[:, None]
        * _gain(torch.fft.rfftfreq(columns, device=x.device), spatial)
    )
    spectrum = torch.fft.rfftn(x, dim=(1, 3, 4))
    return torch.fft.irfftn(gain * spectrum, s=(frames, rows, columns), dim=(1, 3, 4))


def _gain(frequency: Float[Tensor, " n"], width: float) -> Float[Tensor, " n"]:
    """Return the Gaussian at these frequencies, in cycles per cell (Nyquist is 0.5)."""
    return torch.exp(-0.5 * (2 * frequency / width) ** 2)


def blend(a: Latents, b: Latents, mask: Mask) -> Latents:
    """Interpolate linearly: `a` where the mask is 1, `b` where it is 0."""
    return torch.lerp(b, a, mask)
