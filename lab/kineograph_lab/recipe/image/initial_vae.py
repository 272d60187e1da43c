"""Where the autoencoder starts from: the picture shrunk by averaging and enlarged again, its colours right.

From a random start it learns shapes first and leaves them grey for tens of thousands of pictures, because flat colour
has to find its way through every normalisation. Here each colour and its negative have a channel of their own from end
to end (SiLU(x) - SiLU(-x) = x), residual branches start at zero, and training adds the detail.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

RGB = 3


@torch.no_grad()
def start_from_shrinking(vae: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder, its weights set so; expects equal group norms and at least 3 latent channels."""
    for name, layer in vae.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif name.endswith("conv_shortcut") or ("upsamplers" in name and isinstance(layer, nn.Conv2d)):
            _pass(layer.weight, range(2 * RGB), _tap(layer.weight))
        elif "downsamplers" in name and isinstance(layer, nn.Conv2d):
            _pass(layer.weight, range(2 * RGB), _own_quarter())
    for entry in (vae.encoder.conv_in, vae.decoder.conv_in):
        _split(entry)
    for exit_ in (vae.encoder.conv_out, vae.decoder.conv_out):
        _join(exit_)
    for pointwise in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(pointwise.weight)
        nn.init.zeros_(pointwise.bias)
    return vae


def _tap(weight: Tensor) -> Tensor:
    """A filter that takes the cell itself."""
    tap = torch.zeros(weight.shape[2:])
    tap[weight.shape[2] // 2, weight.shape[3] // 2] = 1
    return tap


def _own_quarter() -> Tensor:
    """The mean of the four cells that become one: diffusers pads a downsampling on the right and below only."""
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 0.25
    return kernel


def _pass(weight: Tensor, channels: range, kernel: Tensor) -> None:
    """These channels go through the filter, each to itself and mixed with no other."""
    for channel in channels:
        weight[channel] = 0
        weight[channel, channel] = kernel


def _split(entry: nn.Conv2d) -> None:
    """Colours to channels 0, 1, 2 and their negatives to 3, 4, 5."""
    for colour in range(RGB):
        for channel, sign in ((colour, 1), (colour + RGB, -1)):
            entry.weight[channel] = 0
            entry.weight[channel, colour] = sign * _tap(entry.weight)


def _join(exit_: nn.Conv2d) -> None:
    """Behind a SiLU, a channel less its negative is the colour."""
    for colour in range(RGB):
        exit_.weight[colour] = 0
        exit_.weight[colour, colour] = _tap(exit_.weight)
        exit_.weight[colour, colour + RGB] = -_tap(exit_.weight)
