"""Description of a model, known from configurations and headers before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kineograph.errors import InputError

if TYPE_CHECKING:
    from kineograph.models.model import Model
    from kineograph.models.temporal.config import TemporalConfig

ANY_CONTROL = ""  # kind of a ControlNet that was given without a kind of control: used for every kind
# defaults of diffusers' networks, which files may leave out
UNET_IN_CHANNELS, LATENT_CHANNELS, VAE_BLOCK_CHANNELS = 4, 4, (64,)
UNET_BLOCKS, UNET_LAYERS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), 2


class Networks(NamedTuple):
    """Configurations of diffusers' networks, and where and in what dtype they are or would be; for `models.memory`.

    device      such as "cpu" or "cuda:1"
    dtype       of torch; None if it is not known yet
    file_dtype  of the weights in the files; None for that of the networks
    loaded      True if the weights are in memory
    offload     as in `load`
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    device: str = "cpu"
    dtype: Any = None
    file_dtype: Any = None
    loaded: bool = False
    offload: str | None = None


@dataclass(frozen=True)
class Description:
    """Properties of a model that decide which options it accepts.

    temporal              configuration of the temporal layers; None for an image model
    in_channels           channels that the U-Net reads: the latents', and others for inpainting or editing
    latent_channels       channels of the VAE's latents
    takes_images          True for an image-to-video model, or one with an IP-Adapter
    has_motion_adapter    True if a motion scale can be given
    controls              kinds of control that it has a ControlNet for; `ANY_CONTROL` stands for every kind
    default_size          height and width, in pixels, that the model was trained on
    vae_scale_factor      height and width of a latent pixel, in pixels
    out_channels          channels that the U-Net returns: the latents', and others for a learned variance
    reads_guidance_scale  True for a latent consistency model whose network takes the guidance scale as an input
    skips                 number of skip connections of the U-Net
    recommended           options of sampling that its authors recommend, `generation_config.json`
    scheduler             configuration of the scheduler; None if only the weights determine it
    networks              configurations and placement of the networks
    """

    name: str
    temporal: TemporalConfig | None
    in_channels: int
    latent_channels: int
    takes_images: bool
    has_motion_adapter: bool
    controls: tuple[str, ...]
    default_size: tuple[int, int]
    vae_scale_factor: int
    out_channels: int = LATENT_CHANNELS
    reads_guidance_scale: bool = False
    skips: int = 12
    recommended: Mapping[str, float] = field(default_factory=dict)
    scheduler: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    networks: Networks | None = field(default=None, repr=False, compare=False)

    @property
    def is_video(self) -> bool:
        """True for a model with temporal layers."""
        return self.temporal is not None

    @property
    def edits(self) -> bool:
        """True for an editing model such as InstructPix2Pix, which reads the latents of an image too."""
        return self.in_channels == 2 * self.latent_channels


def describe_model(model: Model) -> Description:
    """Return the description of a loaded model."""
    from kineograph.models.hooks import is_offloaded  # imports accelerate

    return Description(
        name=model.name,
        temporal=model.temporal,
        in_channels=model.net.image_unet.config.in_channels,
        latent_channels=model.vae.config.latent_channels,
        takes_images=model.image_encoder is not None,
        has_motion_adapter=model.net.motion_adapter is not None,
        controls=tuple(model.controls),
        default_size=model.default_size,
        vae_scale_factor=model.vae_scale_factor,
        out_channels=model.net.image_unet.config.out_channels,
        reads_guidance_scale=model.net.reads_guidance_scale,
        skips=count_skips(model.net.image_unet.config),
        recommended=model.recommended,
        scheduler=model.schedule.settings or None,
        networks=Networks(
            model.net.image_unet.config,
            model.vae.config,
            device=str(model.device),
            dtype=model.dtype,
            loaded=True,
            offload="model" if is_offloaded(model.net.image_unet) else None,
        ),
    )


def describe_configurations(
    name: str,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    temporal: TemporalConfig | None,
    *,
    takes_images: bool,
    has_motion_adapter: bool,
) -> Description | None:
    """Return the description of a model without ControlNets; None if its U-Net's configuration has no sample size.

    unet, vae: configurations of diffusers' networks.
    """
    size = unet.get("sample_size")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    factor = vae_scale_factor(vae)
    return Description(
        name=name,
        temporal=temporal,
        in_channels=unet.get("in_channels", UNET_IN_CHANNELS),
        latent_channels=vae.get("latent_channels", LATENT_CHANNELS),
        takes_images=takes_images,
        has_motion_adapter=has_motion_adapter,
        controls=(),
        default_size=(factor * height, factor * width),
        vae_scale_factor=factor,
        out_channels=unet.get("out_channels", LATENT_CHANNELS),
        reads_guidance_scale=unet.get("time_cond_proj_dim") is not None,
        skips=count_skips(unet),
        networks=Networks(unet, vae) if unet.get("_class_name") in (None, "UNet2DConditionModel") else None,
    )


def count_skips(unet: Mapping[str, Any]) -> int:
    """Return the number of skip connections of a U-Net: of its first convolution, ResNet blocks and downsamplers."""
    blocks, layers = len(unet.get("down_block_types", UNET_BLOCKS)), unet.get("layers_per_block", UNET_LAYERS)
    return blocks + (blocks * layers if isinstance(layers, int) else sum(layers))


def vae_scale_factor(vae: Mapping[str, Any]) -> int:
    """Return the height and width of a latent pixel, in pixels. vae: its configuration."""
    blocks = vae.get("block_out_channels") or vae.get("decoder_block_out_channels") or VAE_BLOCK_CHANNELS
    return 2 ** (len(blocks) - 1)


def check_size(height: int, width: int, factor: int) -> None:
    """Raise InputError unless height and width, in pixels, are multiples of the VAE's scale factor."""
    near = " x ".join(str(max(1, round(length / factor)) * factor) for length in (height, width))
    if height < 1 or width < 1 or height % factor or width % factor:
        raise InputError(
            f"expected `height` and `width` to be multiples of {factor} above 0, got {height} x {width}; {near} is near"
        )
