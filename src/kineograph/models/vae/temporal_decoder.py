"""VidRD's temporal decoder: convolutions along time after the resnets of a VAE's decoder, which stays the user's own.

The walk through the decoder is here, the rooms are borrowed (docs/decisions/0003). Where each frame is normed alone a
video goes through in parts: a convolution holds a part back until the next one is there, so that all parts together are
what the video at once would be, nothing is computed twice, and as much is held for a long video as for a short one.
Source: VidRD (Gu et al. 2023), and its released code, whose norms span the frames of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise, tee
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.functional import conv2d

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.temporal.layers import TemporalConv, ensure_gradient
from kineograph.models.unet.windows import overlapping_windows
from kineograph.models.vae import chunks

Video = Float[Tensor, "b f c h w"]
Along = Callable[[TemporalConv, Iterator[Video]], Iterator[Video]]
BLOCK = "UpDecoderBlock2D"
DROPOUT = 0.1


class TemporalDecoderConfig(BaseModel):
    """A temporal decoder.

    blocks       channels and number of resnets of each block of the decoder that it is for, from the latents on
    in_a_row     how many convolutions follow a resnet
    groups       of their norms
    num_frames   how many frames it was trained on
    joint_norms  whether norms span the frames: then so many are decoded together, in windows that overlap
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: tuple[tuple[int, int], ...]
    in_a_row: int = 3
    groups: int = 32
    num_frames: int = 8
    joint_norms: bool = False


class TemporalDecoder(nn.Module):
    """The layers along time of a decoder. Untrained, and for one frame in any case, they change nothing."""

    def __init__(self, config: TemporalDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.up_blocks = nn.ModuleList(
            nn.ModuleList(TemporalConv(channels, config.groups, config.in_a_row, DROPOUT) for _ in range(resnets))
            for channels, resnets in config.blocks
        )

    def forward(self, vae: AutoencoderKL, z: Latents, size: int) -> Iterator[Video]:
        """Unscaled latents, where and as the VAE is, as frames with values from -1 to 1, some at a time.

        size: how many frames go through each layer at once; the result does not change, unless norms span frames.
        """
        if z.shape[1] == 1:
            return decode_frames(vae, z, size)
        if self.config.joint_norms:
            return self._in_windows(vae, z)
        return self._walk(vae, (part for _, part in chunks.split_frames(z, size)), apply_streaming)

    def _in_windows(self, vae: AutoencoderKL, z: Latents) -> Iterator[Video]:
        """Each frame from the window in which it is nearest to the middle."""
        spans = overlapping_windows(z.shape[1], self.config.num_frames, self.config.num_frames // 4)
        meet = [(after.start + before.stop) // 2 for before, after in pairwise(spans)]
        for span, (first, end) in zip(spans, pairwise([0, *meet, z.shape[1]]), strict=True):
            (window,) = self._walk(vae, iter([z[:, span.start : span.stop]]), apply_to_window)
            yield window[:, first - span.start : end - span.start]

    def _walk(self, vae: AutoencoderKL, parts: Iterator[Latents], along: Along) -> Iterator[Video]:
        x, mine = _each(partial(_entered, vae), parts), cast(Any, self.up_blocks)
        for block, layers in zip(vae.decoder.up_blocks, mine, strict=True):
            for resnet, layer in zip(block.resnets, layers, strict=True):
                x = along(layer, _each(partial(resnet, temb=None), x))
            for upsample in block.upsamplers or ():
                x = _each(upsample, x)
        return _each(partial(_left, vae.decoder), x)


def decode_frames(vae: AutoencoderKL, z: Latents, size: int) -> Iterator[Video]:
    """What `TemporalDecoder` does, without layers along time."""
    for _, part in chunks.split_frames(z, size):
        yield vae.decode(part.flatten(0, 1)).sample.unflatten(0, part.shape[:2])


def apply_to_window(layer: TemporalConv, parts: Iterator[Video]) -> Iterator[Video]:
    """The layer on each part as if it were all, its norms over the part's frames."""
    return (layer(part.flatten(0, 1), part.shape[1]).unflatten(0, part.shape[:2]) for part in parts)


def apply_streaming(layer: TemporalConv, parts: Iterator[Video]) -> Iterator[Video]:
    """The layer on a video that comes in parts, each frame normed alone."""
    beside, inside = tee(parts)
    for norm, conv in layer.rooms():
        inside = _convolved(conv, add_neighbours(_each(partial(_ready, layer, norm), inside)))
    return (x + more for x, more in zip(beside, inside, strict=True))


def add_neighbours(parts: Iterator[Video]) -> Iterator[Video]:
    """Each part with the frame before it and the one behind it; zeros at the ends, as a convolution pads."""
    here = next(parts)
    before = torch.zeros_like(here[:, :1])
    for after in parts:
        yield _joined([before, here, after[:, :1]])
        before, here = here[:, -1:], after
    yield _joined([before, here, torch.zeros_like(here[:, :1])])


def _joined(parts: list[Tensor]) -> Tensor:
    """Frames one after another, `channels_last` where they are."""
    return torch.cat([part.movedim(2, -1) for part in parts], dim=1).movedim(-1, 2)


def _convolved(conv: Any, parts: Iterator[Video]) -> Iterator[Video]:
    """A filter over three frames, on parts that have their neighbours."""
    for part in parts:
        rows = part.movedim(2, -1).flatten(2, 3).movedim(-1, 1)  # b c f (h w), a view where it can be one
        yield conv2d(rows, conv.weight, conv.bias).unflatten(3, part.shape[3:]).transpose(1, 2)


def _ready(layer: TemporalConv, norm: nn.Module, x: Tensor) -> Tensor:
    return layer.ready(norm(ensure_gradient(x)))


def _each(layer: Callable[[Tensor], Tensor], parts: Iterable[Video]) -> Iterator[Video]:
    """A layer that knows of pictures on the frames of each part."""
    for part in parts:
        yield layer(part.flatten(0, 1)).unflatten(0, part.shape[:2])


def _entered(vae: AutoencoderKL, z: Tensor) -> Tensor:
    decoder = vae.decoder
    z = z if vae.post_quant_conv is None else vae.post_quant_conv(z)
    return decoder.mid_block(decoder.conv_in(z), None)


def _left(decoder: Any, x: Tensor) -> Tensor:
    return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))


def reconstruction_errors(
    decoder: TemporalDecoder, vae: AutoencoderKL, z: Latents, frames: Float[Tensor, "b f 3 H W"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """How far what is decoded is from the frames, values from -1 to 1: of each video the mean absolute error of its
    pixels, and of their changes from frame to frame, which is flicker."""
    off = torch.cat(list(decoder(vae, z, z.shape[1])), dim=1).float() - frames
    return off.abs().flatten(1).mean(1), off.diff(dim=1).abs().flatten(1).mean(1)


def decoder_blocks(vae: AutoencoderKL) -> tuple[tuple[int, int], ...]:
    """Channels and number of resnets of each block of a VAE's decoder, from the latents on.

    Raises InputError for blocks in which the walk does not know its way.
    """
    blocks = vae.decoder.up_blocks
    if strange := {type(block).__name__ for block in blocks} - {BLOCK}:
        raise InputError(
            f"the VAE's decoder has {', '.join(sorted(strange))}: a temporal decoder goes around blocks of {BLOCK}, as "
            "in the VAEs of SD 1.x, 2.x and SDXL"
        )
    return tuple((block.resnets[0].out_channels, len(block.resnets)) for block in blocks)


def check_decoder_fits(decoder: TemporalDecoder, vae: AutoencoderKL, name: str) -> None:
    """Raises InputError unless the layers fit around this VAE's decoder. name: what they come from."""
    wanted, there = decoder.config.blocks, decoder_blocks(vae)
    if wanted != there:
        raise InputError(
            f"the temporal decoder of {name} is for a VAE whose decoder has {_written(wanted)}, and this one has "
            f"{_written(there)}: take a temporal decoder made for it, or the VAE that this one was trained with"
        )


def _written(blocks: tuple[tuple[int, int], ...]) -> str:
    widths, resnets = (", ".join(map(str, each)) for each in zip(*blocks, strict=True))
    return f"blocks {widths} wide of {resnets} resnets"
