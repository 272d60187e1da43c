"""Temporal decoder of VidRD: temporal convolutions after the ResNet blocks of a VAE's decoder.

The VAE stays the user's own: the forward pass is computed here, with its layers (docs/decisions/0003). If the norms do
not span frames, a video is decoded in chunks: a convolution holds a chunk back until the next one is there, so that
the result is that of the whole video, nothing is computed twice, and memory does not grow with the video's length.
Source: VidRD (Gu et al. 2023), and its released code, whose norms span the frames of a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise, tee
from typing import Annotated, Any, cast

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import conv2d

from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.hooks import onload
from kineograph.models.temporal.config import Count, Size
from kineograph.models.temporal.layers import TemporalConv, ensure_gradient
from kineograph.models.unet.windows import overlapping_windows
from kineograph.models.vae.autoencoder import VAE, decode_per_frame, split_frames

FrameFeatures = Float[Tensor, "b f c h w"]
ApplyConv = Callable[[TemporalConv, Iterator[FrameFeatures]], Iterator[FrameFeatures]]
BLOCK_TYPE = "UpDecoderBlock2D"
DROPOUT = 0.1


class TemporalDecoderConfig(BaseModel):
    """Configuration of a temporal decoder.

    blocks        channels and number of ResNet blocks of each block of the VAE's decoder, from the latents on
    convolutions  number of temporal convolutions after each ResNet block
    groups        number of groups of their norms
    num_frames    number of frames that it was trained on
    joint_norms   norms span the frames: then `num_frames` are decoded together, in overlapping windows
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: Annotated[tuple[tuple[Size, Count], ...], Field(max_length=100)]
    convolutions: Count = 3
    groups: Size = 32
    num_frames: Size = 8
    joint_norms: bool = False

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, given: Any) -> Any:
        """Rename `in_a_row`, the first version's name of `convolutions`."""
        if isinstance(given, Mapping) and "in_a_row" in given:
            return {"convolutions" if name == "in_a_row" else name: value for name, value in given.items()}
        return given


class TemporalDecoder(nn.Module):
    """The temporal convolutions of a decoder. Untrained, and for a single frame, they change nothing."""

    def __init__(self, config: TemporalDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.up_blocks = nn.ModuleList(
            nn.ModuleList(TemporalConv(channels, config.groups, config.convolutions, DROPOUT) for _ in range(resnets))
            for channels, resnets in config.blocks
        )

    def forward(self, vae: AutoencoderKL, z: Latents, size: int) -> Iterator[FrameFeatures]:
        """Yield the frames of unscaled latents, values from -1 to 1, some at a time.

        Args:
            vae: the VAE whose decoder this is for, on the device and in the dtype of z.
            size: number of frames that each layer processes at once, unless norms span frames; it does not change the
                result.
        """
        if z.shape[1] == 1:
            return decode_per_frame(vae, z, size)
        onload(vae)
        if self.config.joint_norms:
            return self._decode_windows(vae, z)
        return self._decode(vae, (part for _, part in split_frames(z, size)), apply_streaming)

    def _decode_windows(self, vae: AutoencoderKL, z: Latents) -> Iterator[FrameFeatures]:
        """Yield each frame from the window in whose middle it is nearest."""
        windows = overlapping_windows(z.shape[1], self.config.num_frames, self.config.num_frames // 4)
        borders = [(after.start + before.stop) // 2 for before, after in pairwise(windows)]
        for window, (first, end) in zip(windows, pairwise([0, *borders, z.shape[1]]), strict=True):
            (frames,) = self._decode(vae, iter([z[:, window.start : window.stop]]), apply_to_window)
            yield frames[:, first - window.start : end - window.start]

    def _decode(self, vae: AutoencoderKL, chunks: Iterator[Latents], apply_conv: ApplyConv) -> Iterator[FrameFeatures]:
        decoder: Any = vae.decoder
        if vae.post_quant_conv is not None:
            chunks = _per_frame(vae.post_quant_conv, chunks)
        x = _per_frame(lambda z: decoder.mid_block(decoder.conv_in(z), None), chunks)
        for block, convs in zip(decoder.up_blocks, cast(Any, self.up_blocks), strict=True):
            for resnet, conv in zip(block.resnets, convs, strict=True):
                x = apply_conv(conv, _per_frame(partial(resnet, temb=None), x))
            for upsample in block.upsamplers or ():
                x = _per_frame(upsample, x)
        return _per_frame(lambda x: decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x))), x)


def apply_to_window(layer: TemporalConv, chunks: Iterator[FrameFeatures]) -> Iterator[FrameFeatures]:
    """Apply the layer to each chunk as if it were the whole video, with norms over its frames."""
    return (layer(chunk.flatten(0, 1), chunk.shape[1]).unflatten(0, chunk.shape[:2]) for chunk in chunks)


def apply_streaming(layer: TemporalConv, chunks: Iterator[FrameFeatures]) -> Iterator[FrameFeatures]:
    """Apply the layer to a video that comes in chunks, with norms over single frames."""
    residual, inside = tee(chunks)
    for norm, conv in layer.norms_and_convs():
        inside = _convolve(conv, add_neighbours(_per_frame(partial(_norm_and_activate, layer, norm), inside)))
    return (x + more for x, more in zip(residual, inside, strict=True))


def add_neighbours(chunks: Iterator[FrameFeatures]) -> Iterator[FrameFeatures]:
    """Yield each chunk with the frame before it and the one after it; zeros at the ends, as a convolution pads."""
    here = next(chunks)
    before = torch.zeros_like(here[:, :1])
    for after in chunks:
        yield _concatenate([before, here, after[:, :1]])
        before, here = here[:, -1:], after
    yield _concatenate([before, here, torch.zeros_like(here[:, :1])])


def _concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate frames, `channels_last` where they are."""
    return torch.cat([part.movedim(2, -1) for part in parts], dim=1).movedim(-1, 2)


def _convolve(conv: Any, chunks: Iterator[FrameFeatures]) -> Iterator[FrameFeatures]:
    """Apply a convolution over three frames to chunks that have their neighbours."""
    for chunk in chunks:
        rows = chunk.movedim(2, -1).flatten(2, 3).movedim(-1, 1)  # b c f (h w), a view where it can be one
        yield conv2d(rows, conv.weight, conv.bias).unflatten(3, chunk.shape[3:]).transpose(1, 2)


def _norm_and_activate(layer: TemporalConv, norm: nn.Module, x: Tensor) -> Tensor:
    return layer.activate(norm(ensure_gradient(x)))


def _per_frame(layer: Callable[[Tensor], Tensor], chunks: Iterable[FrameFeatures]) -> Iterator[FrameFeatures]:
    """Apply a layer of the image VAE to the frames of each chunk."""
    for chunk in chunks:
        yield layer(chunk.flatten(0, 1)).unflatten(0, chunk.shape[:2])


def reconstruction_errors(
    decoder: TemporalDecoder, vae: AutoencoderKL, z: Latents, frames: Float[Tensor, "b f 3 H W"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return mean absolute errors of the decoded latents of each video: of pixels, and of their changes (flicker).

    frames: the expected ones, values from -1 to 1.
    """
    difference = torch.cat(list(decoder(vae, z, z.shape[1])), dim=1).float() - frames
    return difference.abs().flatten(1).mean(1), difference.diff(dim=1).abs().flatten(1).mean(1)


def decoder_blocks(vae: VAE) -> tuple[tuple[int, int], ...]:
    """Return channels and number of ResNet blocks of each block of a VAE's decoder, from the latents on.

    Raises InputError for blocks of other types than those of SD's VAEs.
    """
    blocks = getattr(vae.decoder, "up_blocks", [vae.decoder])
    if unknown := {type(block).__name__ for block in blocks} - {BLOCK_TYPE}:
        raise InputError(
            f"the VAE's decoder has {', '.join(sorted(unknown))}: a temporal decoder goes around blocks of "
            f"{BLOCK_TYPE}, as in the VAEs of SD 1.x, 2.x and SDXL"
        )
    return tuple((block.resnets[0].out_channels, len(block.resnets)) for block in blocks)


def check_decoder_fits(decoder: TemporalDecoder, vae: VAE, name: str) -> None:
    """Raise InputError unless the temporal decoder is for a VAE of this architecture.

    name: source of the temporal decoder, for the message.
    """
    wanted, there = decoder.config.blocks, decoder_blocks(vae)
    if wanted != there:
        raise InputError(
            f"the temporal decoder of {name} is for a VAE whose decoder has {_describe(wanted)}, and this one has "
            f"{_describe(there)}: take a temporal decoder made for it, or the VAE that this one was trained with"
        )


def _describe(blocks: tuple[tuple[int, int], ...]) -> str:
    channels, resnets = (", ".join(map(str, each)) for each in zip(*blocks, strict=True))
    return f"blocks of {channels} channels with {resnets} ResNet blocks"
