"""A text-to-image or video model: its networks, and the operations that sampling and training need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kineograph.denoise import Denoise
from kineograph.errors import InputError
from kineograph.latents import Latents
from kineograph.models.conditioning import text_encoder
from kineograph.models.conditioning.condition import Condition, stack_encoded
from kineograph.models.conditioning.image_encoder import ImageEncoder, Images
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.description import ANY_CONTROL, check_size, describe_model
from kineograph.models.formats.lora import LoraScale, named_networks
from kineograph.models.hooks import execution_device
from kineograph.models.loading.controlnets import ControlNetwork, OpenControlNet
from kineograph.models.lora_layers import lora_names
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.adapters import AdapterScale
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.unet.deepcache import DeepCache, check_branch, reuse_features, with_features
from kineograph.models.unet.frame_attention import FrameAttention, KeyValueCache, own
from kineograph.models.unet.video_unet import RunLayers, VideoUNet
from kineograph.models.unet.windows import (
    AttentionWindows,
    FrameWindow,
    average_windows,
    one_window,
    pyramid,
    window_ranges,
)
from kineograph.models.vae import autoencoder
from kineograph.models.vae.autoencoder import VAE, PixelFrames
from kineograph.models.vae.temporal_decoder import TemporalDecoder
from kineograph.request import VIDEO_MODEL_FPS, Prompt, PromptWeights


@dataclass(frozen=True, eq=False)
class Model:
    """Networks that belong together. It encodes prompts and images, denoises and decodes; it never samples or trains.

    net               the U-Net on all frames of a video, with temporal layers if it is a video model's
    text_encoders     one, or the two of SDXL
    schedule          the noise levels and parameterisation that the network was trained with
    dtype             of the network's weights; latents between evaluations are float32
    clip_skip         number of the text encoder's last layers that encoded prompts skip
    force_zeros_for_empty_prompt  zeros instead of the encoding of an empty prompt (SDXL)
    settings          the arguments of `load` that return this model again; empty for one made from a live pipeline
    vocabulary        the words that the model was trained on, if it comes with a list of them
    image_encoder     makes the image tokens of an image-to-video model or an IP-Adapter
    controls          function that returns each ControlNet, by kind of control; the pocket model's open at first use
    temporal_decoder  temporal layers of the VAE's decoder
    subject           the prompt's words for the subject or style that the model was customised to
    learned_words     the words that its LoRAs were trained for
    recommended       options of sampling that its authors recommend, `generation_config.json`
    engine            the library that evaluates the U-Net and the ControlNets

    `to`, `load_lora_weights` and `unload_lora_weights` return a new model that shares the weights with this one.
    """

    net: VideoUNet
    vae: VAE
    text_encoders: tuple[TextEncoder, ...]
    schedule: Schedule
    name: str
    device: torch.device
    dtype: torch.dtype
    clip_skip: int = 0
    force_zeros_for_empty_prompt: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: frozenset[str] | None = None
    image_encoder: ImageEncoder | None = None
    controls: Mapping[str, OpenControlNet] = field(default_factory=dict)
    temporal_decoder: TemporalDecoder | None = None
    subject: str | None = None
    learned_words: tuple[str, ...] = ()
    recommended: Mapping[str, float] = field(default_factory=dict)
    engine: Literal["torch", "openvino"] = "torch"

    def __repr__(self) -> str:
        """Name, kind, size, placement and number of parameters; in a second line what was added to the networks."""
        encoders = [each.network for each in self.text_encoders] + (
            [] if self.image_encoder is None else [self.image_encoder.network]
        )
        networks = [self.net, self.vae, *encoders, *([] if self.temporal_decoder is None else [self.temporal_decoder])]
        millions = sum(weight.numel() for network in networks for weight in network.parameters()) / 1e6
        kind = "editing model" if describe_model(self).edits else "image model"
        kind = kind if self.temporal is None else f"video model of {self.temporal.num_frames} frames"
        height, width = self.default_size
        parts = [
            f"LoRA {name}" for name in dict.fromkeys(n for each in self.networks.values() for n in lora_names(each))
        ]
        parts += [] if self.subject is None else [f"customised to {self.subject!r}"]
        parts += [] if self.net.motion_adapter is None else ["motion adapter"]
        parts += [] if self.image_encoder is None else ["image encoder"]
        parts += [] if self.temporal_decoder is None else ["temporal decoder"]
        parts += [f"ControlNet {', '.join(self.controls)}"] if self.controls else []
        where = f"{self.device}, {str(self.dtype).removeprefix('torch.')}"
        first = f"Model {self.name}: {kind}, {width} x {height}, {millions:.1f} million parameters, {where}"
        return first + (f"\n    with {', '.join(parts)}" if parts else "")

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that LoRAs can change, by their names in a pipeline, and the temporal layers."""
        return named_networks(self.net.image_unet, self.text_encoders, self.net.temporal)

    def to(
        self,
        *place: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Model:
        """Move all networks to a device, a dtype or both, and return the model there.

        The networks are moved, not copied, as in diffusers: this model, and others that share them, can then no longer
        be used. A change of dtype and back loses what the smaller one cannot hold.

        Raises InputError for a device that is not available or a dtype that networks do not run in.

        >>> import kineograph as kg
        >>> model = kg.load().to("cpu", torch.float32)
        """
        from kineograph.models.changes import move

        return move(self, place, device, dtype)

    def load_lora_weights(self, source: str | Path, scale: LoraScale = 1.0) -> Model:
        """Return the model with a LoRA, or a motion LoRA, beside those that it has; as by `load` with `lora`.

        The new model shares all weights that the LoRA does not change; this one stays without the LoRA.

        source: a file, folder or repository. scale: of all networks, or by network, as in diffusers' `set_adapters`:
        {"unet": 0.8, "text_encoder": 0.5}. Raises InputError if it is no LoRA, or one for another architecture.
        """
        from kineograph.models.changes import add_lora_to_model

        return add_lora_to_model(self, source, scale)

    def unload_lora_weights(self) -> Model:
        """Return the model without its LoRAs, those of `load` too; a customised adapter stays. This one keeps them."""
        from kineograph.models.changes import remove_loras_from_model

        return remove_loras_from_model(self)

    def control(self, kind: str) -> ControlNetwork:
        """Return the ControlNet or T2I-Adapter for a kind of control. Raises InputError if the model has none."""
        found = self.controls.get(kind) or self.controls.get(ANY_CONTROL)
        if found is None:
            others = ", ".join(self.controls)
            raise InputError(
                f"{self.name} has no ControlNet for {kind!r}{f', only for {others}' if others else ''}: load it with "
                "one, `controlnet`"
            )
        return found()

    @property
    def temporal(self) -> TemporalConfig | None:
        """Configuration of the temporal layers; None for an image model."""
        return None if self.net.temporal is None else self.net.temporal.config

    @property
    def vae_scale_factor(self) -> int:
        """Height and width of a latent pixel, in pixels."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that the model was trained on."""
        size = self.net.image_unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return channels, height and width of the latents of an image of this size in pixels.

        Raises InputError unless both are multiples of the VAE's scale factor.
        """
        factor = self.vae_scale_factor
        check_size(height, width, factor)
        return self.vae.config.latent_channels, height // factor, width // factor

    @torch.no_grad()
    def prompt(
        self,
        texts: Sequence[Prompt],
        *,
        size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        fps: float = VIDEO_MODEL_FPS,
        guidance_scale: float | None = None,
        prompt_weights: PromptWeights = "a1111",
        num_chunks: int = 1,
    ) -> Condition:
        """Encode prompts, one for each video of the batch.

        Args:
            size: height and width of the image, a condition of SDXL; the model's default size by default.
            clip_skip: number of the text encoder's last layers to skip; the model's own by default.
            fps: frames per second, for a video model with a frame-rate condition.
            guidance_scale: for a latent consistency model that reads it; without it the network gets none.
            prompt_weights: how weights such as (word:1.3) are read, see `prompt_weights.parse_weights`.
            num_chunks: the least number of chunks of tokens, see `count_chunks`; those beyond a prompt are empty.
        """
        skip = self.clip_skip if clip_skip is None else clip_skip
        condition = self._encode_text(texts, size, skip, prompt_weights, num_chunks)
        if self.net.reads_guidance_scale:
            condition = replace(condition, guidance_scale=guidance_scale)
        if not self.net.has_frame_rate:
            return condition
        rate = torch.full((len(texts), 1), float(fps), device=condition.tokens.device)
        if condition.embedding is None:
            return replace(condition, embedding=rate)
        return replace(condition, embedding=torch.cat([condition.embedding, rate.to(condition.embedding)], dim=1))

    def count_chunks(self, texts: Sequence[Prompt], prompt_weights: PromptWeights = "a1111") -> int:
        """Return the number of chunks, of 75 tokens for most text encoders, that the longest of these prompts has."""
        words = [text for text in texts if isinstance(text, str)]
        return text_encoder.count_chunks(self.text_encoders, words, prompt_weights)

    def _encode_text(
        self,
        texts: Sequence[Prompt],
        size: tuple[int, int] | None,
        clip_skip: int,
        weights: PromptWeights,
        num_chunks: int,
    ) -> Condition:
        is_sdxl = self.net.image_unet.config.addition_embed_type is not None
        words = [text for text in texts if isinstance(text, str)]
        if (encoded := stack_encoded(texts, self.net.image_unet)) is not None:
            tokens, pooled = encoded
        elif is_sdxl:
            tokens, pooled = text_encoder.encode_text_sdxl(
                self.text_encoders, words, clip_skip, weights=weights, num_chunks=num_chunks
            )
        else:
            (encoder,), pooled = self.text_encoders[:1], None
            tokens = text_encoder.encode_text(encoder, words, clip_skip, weights=weights, num_chunks=num_chunks)
        if pooled is None:
            return Condition(tokens)
        if self.force_zeros_for_empty_prompt:
            not_empty = torch.tensor([bool(text) for text in texts], device=tokens.device)
            tokens, pooled = tokens * not_empty[:, None, None], pooled * not_empty[:, None]
        # SDXL's micro-conditioning: original size, crop corner, target size (Podell et al. 2023, section 2.2)
        height, width = size or self.default_size
        numbers = torch.tensor([height, width, 0, 0, height, width], device=pooled.device)
        sizes = self.net.image_unet.add_time_proj(numbers).flatten()
        embedding = torch.cat([pooled, sizes.to(pooled.dtype).expand(len(pooled), -1)], dim=-1)
        return Condition(tokens, embedding=embedding)

    def image_tokens(self, images: Images | None, count: int = 1) -> Float[Tensor, "b m d"]:
        """Encode images, values from 0 to 1, as image tokens; None for the tokens of `count` videos without an image.

        Raises InputError if the model has no image encoder.
        """
        if self.image_encoder is None:
            raise InputError(
                f"{self.name} takes no images: take an image-to-video model, such as pocket-animate, or load the "
                "model with an IP-Adapter and its image encoder"
            )
        if images is None:
            return self.image_encoder.empty_tokens(self.net.image_unet, count)
        return self.image_encoder.image_tokens(self.net.image_unet, images)

    def bind(
        self,
        condition: Condition,
        *,
        frame_attention: FrameAttention = own,
        chunk_size: int = 8,
        window: int | None = None,
        overlap: int | None = None,
        motion_scale: AdapterScale = 0.0,
        spatial_scale: AdapterScale = 1.0,
        attention_windows: AttentionWindows | None = None,
        deepcache: DeepCache | None = None,
    ) -> Denoise:
        """Return the model as a function `(x, sigma) -> x0` for this condition.

        Args:
            chunk_size: number of frames that an image model processes at once; memory grows with it, the result does
                not change.
            window: number of frames that a video model processes together; that of its training by default.
            overlap: least number of frames that successive windows share; a quarter of the window by default.
            attention_windows: windows of temporal attention alone, in which the network then processes all frames
                together; `window` and `overlap` are those of the whole network.
            deepcache: at which sigmas all layers are evaluated; None for every one.
            frame_attention, motion_scale, spatial_scale: as in `VideoUNet.forward`.
        """
        expected = self.net.image_unet.config.in_channels - self.vae.config.latent_channels
        given = 0 if condition.channels is None else condition.channels.shape[2]
        if given != expected:
            raise InputError(
                f"{self.name} reads {expected} channels besides the latents', and the condition has {given}: "
                "a text-to-image model reads none, one for inpainting or editing reads an image there"
            )
        self._refuse_moved()
        self.net.check_motion_scale(motion_scale, self.name)
        with torch.no_grad():
            key_values = self.net.project_tokens(condition)
        if self.engine == "openvino":
            from kineograph.models.openvino.networks import in_float32

            key_values = in_float32(key_values)
        net = partial(
            self.net, condition=condition, frame_attention=frame_attention, key_values=key_values,
            motion_scale=motion_scale, spatial_scale=spatial_scale, attention_windows=attention_windows or one_window,
        )  # fmt: skip

        def video_network(run_layers: RunLayers, z: Latents, t: Tensor) -> Latents:
            assert self.temporal is not None
            if attention_windows is not None:
                return net(z.to(self.device), t, run_layers=run_layers).to(z.device)
            ranges = window_ranges(self.temporal, window, overlap, z.shape[1])
            windows = [FrameWindow(each, pyramid(len(each))) for each in ranges]
            output = average_windows(
                lambda part, numbers: net(part, t, frames=numbers, run_layers=run_layers), z.to(self.device), windows
            )
            return output.to(z.device)

        def image_network(run_layers: RunLayers, z: Latents, t: Tensor) -> Latents:
            cache: KeyValueCache | None = {} if z.shape[1] > chunk_size else None
            chunks = autoencoder.split_frames(z.to(self.device), chunk_size)
            outputs = torch.empty_like(z)  # a list of parts would lie between the activations of one chunk and the next
            for numbers, part in chunks:
                outputs[:, numbers.start : numbers.stop] = net(
                    part, t, frames=numbers, cache=cache, run_layers=run_layers
                )
            return outputs

        def bind_layers(run_layers: RunLayers) -> Denoise:
            return self.schedule.denoise(partial(image_network if self.temporal is None else video_network, run_layers))

        run_layers = self._run_layers()
        if deepcache is None:
            return bind_layers(run_layers)
        check_branch(deepcache.branch, describe_model(self).skips)
        return reuse_features(lambda features: bind_layers(with_features(run_layers, features)), deepcache)

    def _run_layers(self) -> RunLayers:
        """Return the function that evaluates the U-Net's layers."""
        if self.engine == "torch":
            return VideoUNet.run_layers
        from kineograph.models.openvino.engine import shared_engine

        return shared_engine().run_unet(self.net)

    def _refuse_moved(self) -> None:
        """Raise InputError if the networks were moved for another model, see `to`."""
        found = execution_device(self.net.image_unet).type, self.net.image_unet.dtype
        if found != (self.device.type, self.dtype):
            raise InputError(
                f"the networks of this model were moved to {found[0]}, {str(found[1]).removeprefix('torch.')}: use the "
                "model that `to` returned, as in model = model.to('cuda')"
            )

    @torch.no_grad()
    def encode(self, frames: PixelFrames, chunk_size: int | None = None) -> Latents:
        """Encode frames, values from 0 to 1, as clean latents: float32, on their device. chunk_size: as in `decode`."""
        self.latent_shape(*frames.shape[-2:])
        size = chunk_size or autoencoder.frames_per_chunk(frames.shape[-2] * frames.shape[-1])
        encoded = autoencoder.encode_frames(self.vae, frames, self.device, size)
        return autoencoder.scale_latents(self.vae, encoded).to(frames.device)

    @torch.no_grad()
    def decode(self, latents: Latents, chunk_size: int | None = None) -> PixelFrames:
        """Decode clean latents as frames with values from 0 to 1: float32, on the CPU.

        chunk_size: number of frames in the VAE at once; by default as many as have 512 x 512 pixels together.
        Raises InputError if a frame contains NaN or infinity, naming it.
        """
        return torch.cat(list(self.decode_chunks(latents, chunk_size)), dim=1)

    @torch.no_grad()
    def decode_chunks(self, latents: Latents, chunk_size: int | None = None) -> Iterator[PixelFrames]:
        """Yield the result of `decode` a few frames at a time, for videos that would not fit into memory as floats."""
        pixels = latents.shape[-2] * latents.shape[-1] * self.vae_scale_factor**2
        decode, number = self.temporal_decoder or autoencoder.decode_per_frame, 0
        z = autoencoder.unscale_latents(self.vae, latents).to(self.device, self.vae.dtype)
        for part in decode(self.vae, z, chunk_size or autoencoder.frames_per_chunk(pixels)):
            frames = part.float().cpu()
            autoencoder.check_finite(frames, range(number, number := number + frames.shape[1]))
            yield (frames / 2 + 0.5).clamp(0, 1)

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that the model was not trained on; none if it has no vocabulary."""
        known = None if self.vocabulary is None else self.vocabulary.union(self.learned_words)
        return [] if known is None else text_encoder.unknown_words(text, known)
