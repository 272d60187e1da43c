"""A text-to-image model as the rest of the library sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from kineograph.condition import Condition
from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.conditioning import text_encoder
from kineograph.models.conditioning.image_encoder import ImageEncoder, Images
from kineograph.models.conditioning.text_encoder import PooledText, TextEncoder
from kineograph.models.loading.controlnets import ANY_CONTROL, OpenControlNet
from kineograph.models.schedule import Predict, Schedule
from kineograph.models.temporal.adapters import AdapterScale
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.unet import windows
from kineograph.models.unet.controlnet import VideoControlNet
from kineograph.models.unet.frame_attention import FrameAttention, KeyValueCache, own
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae import chunks
from kineograph.models.vae.chunks import PixelFrames
from kineograph.models.vae.temporal_decoder import TemporalDecoder, decode_frames

VIDEO_MODEL_FPS = 8.0


@dataclass(frozen=True, eq=False)
class Model:
    """Networks that belong together. It prompts, binds, encodes and decodes; it never samples or trains.

    dtype         of the network's weights; latents and everything between evaluations are float32
    force_zeros   an empty text is all zeros to this model (SDXL), instead of the encoding of no words
    settings      the arguments of `load` that make this model again; empty for one made from a live pipeline
    controls      what opens each ControlNet that the model was loaded with, by its name
    vocabulary    the words the model was trained on, where it comes with a list of them
    reader        reads the pictures that an image-to-video model or an IP-Adapter is shown
    decoder       layers along time that go with the VAE when latents become frames
    subject       the words by which it knows a subject or style that it was customised to
    """

    net: VideoUNet
    vae: AutoencoderKL
    text: tuple[TextEncoder, ...]
    schedule: Schedule
    name: str
    device: torch.device
    dtype: torch.dtype
    force_zeros: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: frozenset[str] | None = None
    reader: ImageEncoder | None = None
    controls: Mapping[str, OpenControlNet] = field(default_factory=dict)
    decoder: TemporalDecoder | None = None
    subject: str | None = None

    def control(self, kind: str) -> VideoControlNet:
        """The ControlNet of this name. Raises InputError when the model has none."""
        found = self.controls.get(kind) or self.controls.get(ANY_CONTROL)
        if found is None:
            others = ", ".join(self.controls)
            raise InputError(
                f"{self.name} has no ControlNet for {kind!r}{f', only for {others}' if others else ''}: load it with "
                f"one, controlnet={{{kind!r}: FOLDER}} or --controlnet {kind}=FOLDER"
            )
        return found()

    @property
    def temporal(self) -> TemporalConfig | None:
        """What the model has along time; None for an image model."""
        return None if self.net.temporal is None else self.net.temporal.config

    @property
    def factor(self) -> int:
        """How many pixels a latent cell is wide and high."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained on."""
        size = self.net.image_unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.factor, width * self.factor

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a picture this many pixels high and wide."""
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise InputError(
                f"expected height and width to be multiples of {self.factor} above 0, got {height} x {width}; "
                f"{chunks.nearest_multiple(height, self.factor)} x {chunks.nearest_multiple(width, self.factor)} is near"
            )
        return self.vae.config.latent_channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def prompt(
        self,
        texts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        clip_skip: int = 0,
        fps: float = VIDEO_MODEL_FPS,
    ) -> Condition:
        """What the network is told when it is told these texts, one for each video of the batch.

        size: height and width of the picture, which SDXL is told; the model's own unless given.
        clip_skip: how many of the text encoder's last layers to leave out.
        fps: frames a second, for a video model that is told them.
        Raises InputError when a text is longer than the model can read.
        """
        said = self._said(texts, size, clip_skip)
        if not self.net.has_frame_rate:
            return said
        rate = torch.full((len(texts), 1), float(fps), device=said.tokens.device)
        told = rate if said.embedding is None else torch.cat([said.embedding, rate.to(said.embedding)], dim=1)
        return replace(said, embedding=told)

    def _said(self, texts: Sequence[str], size: tuple[int, int] | None, clip_skip: int) -> Condition:
        if self.net.image_unet.config.addition_embed_type is None:
            return Condition(text_encoder.encode_text(self.text[0], texts, clip_skip))
        tokens, pooled = text_encoder.encode_text_sdxl(self.text, texts, clip_skip)
        if self.force_zeros:
            said = torch.tensor([bool(each) for each in texts], device=tokens.device)
            tokens, pooled = tokens * said[:, None, None], pooled * said[:, None]
        return Condition(tokens, embedding=self._with_size(pooled, size or self.default_size))

    def _with_size(self, pooled: PooledText, size: tuple[int, int]) -> Float[Tensor, "b told"]:
        """SDXL's micro-conditioning: original size, crop corner, target size (Podell et al. 2023, section 2.2)."""
        numbers = torch.tensor([*size, 0, 0, *size], device=pooled.device)
        told = self.net.image_unet.add_time_proj(numbers).flatten()
        return torch.cat([pooled, told.to(pooled.dtype).expand(len(pooled), -1)], dim=-1)

    def shown(self, pictures: Images | None, count: int = 1) -> Float[Tensor, "b m d"]:
        """Image tokens for a condition: of these pictures, with values from 0 to 1, or of none for `count` videos.

        Raises InputError when nothing in the model reads pictures.
        """
        if self.reader is None:
            raise InputError(
                f"{self.name} is shown no pictures: take an image-to-video model, such as pocket-animate, or load the "
                "model with an IP-Adapter and its image encoder"
            )
        unet = self.net.image_unet
        return self.reader.no_tokens(unet, count) if pictures is None else self.reader.tokens(unet, pictures)

    def bind(
        self,
        condition: Condition,
        *,
        see: FrameAttention = own,
        chunk_size: int = 8,
        window: int | None = None,
        overlap: int | None = None,
        motion_scale: AdapterScale = 0.0,
        spatial_scale: AdapterScale = 1.0,
    ) -> Denoise:
        """The model as a function `(x, sigma) -> x0`, told this and with frames that see each other so.

        chunk_size: how many frames an image model walks at once; memory grows with it, the result does not change.
        window: how many frames a video model sees together; as many as it was trained on unless given.
        overlap: how many of them at least the next window sees too; a quarter unless given.
        motion_scale, spatial_scale: of the network's adapters, see `VideoUNet.forward`.
        """
        self._check(condition)
        self.net.check_motion_scale(motion_scale, self.name)
        with torch.no_grad():
            told = self.net.prepare(condition)
        scales = {"motion_scale": motion_scale, "spatial_scale": spatial_scale}
        net = partial(self.net, condition=condition, see=see, text=told, **scales)

        if self.temporal is not None:
            return self.schedule.denoise(
                self._in_windows(net, partial(windows.window_ranges, self.temporal, window, overlap))
            )

        def network(z: Latents, t: Tensor) -> Latents:
            memory: KeyValueCache | None = {} if z.shape[1] > chunk_size else None
            walked = [
                net(part, t, frames=numbers, memory=memory)
                for numbers, part in chunks.split_frames(z.to(self.device), chunk_size)
            ]
            return torch.cat(walked, dim=1).to(z.device)

        return self.schedule.denoise(network)

    def _in_windows(self, net: Callable[..., Latents], spans: Callable[[int], list[range]]) -> Predict:
        """The network with layers along time: frames are walked together, however many that is."""

        def network(z: Latents, t: Tensor) -> Latents:
            def walk(part: Latents, numbers: Sequence[int]) -> Latents:
                return net(part, t, frames=numbers)

            return windows.average_windows(walk, z.to(self.device), spans(z.shape[1])).to(z.device)

        return network

    def _check(self, condition: Condition) -> None:
        wanted = self.net.image_unet.config.in_channels - self.vae.config.latent_channels
        given = 0 if condition.channels is None else condition.channels.shape[2]
        if given != wanted:
            raise InputError(
                f"{self.name} reads {wanted} channels beside the latents, and the condition has {given}: "
                "a text-to-image model reads none, one for inpainting or editing reads a picture there"
            )

    @torch.no_grad()
    def encode(self, frames: PixelFrames, chunk_size: int | None = None) -> Latents:
        """Frames, with values from 0 to 1, as clean latents: float32, on the frames' device.

        chunk_size: how many frames go through the VAE at once; as many as make one 512 x 512 picture unless given.
        """
        self.latent_shape(*frames.shape[-2:])
        shift, scale = self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor
        encoded = [
            self.vae.encode((2 * part.flatten(0, 1) - 1).to(self.device, self.vae.dtype)).latent_dist.mode().float()
            for _, part in chunks.split_frames(
                frames, chunk_size or chunks.frames_per_chunk(frames.shape[-2] * frames.shape[-1])
            )
        ]
        latents = [part.unflatten(0, (len(frames), -1)) for part in encoded]
        return (scale * (torch.cat(latents, dim=1) - shift)).to(frames.device)

    @torch.no_grad()
    def decode(self, latents: Latents, chunk_size: int | None = None) -> PixelFrames:
        """Clean latents as frames with values from 0 to 1: float32, on the CPU.

        chunk_size: how many frames go through the VAE at once; as many as make one 512 x 512 picture unless given.
        Raises ValueError when a frame holds NaN or infinity, naming it.
        """
        return torch.cat(list(self.decoded(latents, chunk_size)), dim=1)

    @torch.no_grad()
    def decoded(self, latents: Latents, chunk_size: int | None = None) -> Iterator[PixelFrames]:
        """What `decode` gives, a few frames at a time, for what would not fit as floats."""
        shift, scale = self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor
        size = chunk_size or chunks.frames_per_chunk(latents.shape[-2] * latents.shape[-1] * self.factor**2)
        decode, number = self.decoder or decode_frames, 0
        for part in decode(self.vae, (latents / scale + shift).to(self.device, self.vae.dtype), size):
            frames = part.float().cpu()
            chunks.check_finite(frames, range(number, number := number + frames.shape[1]))
            yield (frames / 2 + 0.5).clamp(0, 1)

    def unknown_words(self, said: str) -> list[str]:
        """The words of a text that the model has never seen; none when it has no list of the words it knows."""
        return [] if self.vocabulary is None else text_encoder.unknown_words(said, self.vocabulary)
