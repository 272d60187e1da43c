"""Components of a model: networks and settings, from a folder in diffusers layout or a live pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from kineograph.errors import InputError, InputWarning, check_number, check_text, shown
from kineograph.models import schedulers
from kineograph.models.conditioning.image_encoder import ImageEncoder, check_image_encoder
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import animatediff, known_configurations, modelscope
from kineograph.models.formats.lora import named_networks
from kineograph.models.formats.tensor_files import as_input_error, preview_names
from kineograph.models.hooks import refuse_any_hooks, refuse_unused_hooks
from kineograph.models.loading import video_folder
from kineograph.models.network_folders import (
    PLAIN,
    Config,
    check_config,
    empty_network,
    list_variants,
    read_config,
    read_generation_config,
    read_json,
    read_network,
)
from kineograph.models.temporal.adapters import MotionAdapter, SpatialAdapter
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.supported_layers import check_attention_processors
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae.autoencoder import VAE, VAES
from kineograph.models.vae.temporal_decoder import TemporalDecoder

INDEX = "model_index.json"
# diffusers' video networks -> their conversion to an image network with temporal layers
VIDEO_UNETS: Mapping[str, Callable[[Any], VideoUNet]] = {
    "UNet3DConditionModel": modelscope.video_unet_from_modelscope,
    "UNetMotionModel": animatediff.video_unet_from_animatediff,
}
UNETS = {each.__name__: each for each in (UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel)}
EXPECTED_CLASSES = {
    "unet": ("UNet2DConditionModel", *VIDEO_UNETS),
    "vae": tuple(VAES),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
TEXT_ENCODERS = {each.__name__: each for each in (CLIPTextModel, CLIPTextModelWithProjection)}
PIPELINE_NETWORKS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "controlnet", "adapter", "motion_adapter",
    "safety_checker",
)  # fmt: skip
# switched on by enable_... on a pipeline -> what to do
PIPELINE_FEATURES = {
    "free_noise": "disable_free_noise(), and take `method` freenoise",
    "free_init": "disable_free_init() first",
}
OWN_SCHEDULER_SETTINGS = ("signal_scale", "signal_scale_steps", "timestep_scaling")  # the first two are not diffusers'
SIZE_NUMBERS = 6  # sizes and places of an image that SDXL's U-Net embeds
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
MIN_TOKENS = 3  # that a text encoder reads together: the start, the end and one between them
FREEU = ("s1", "s2", "b1", "b2")


@runtime_checkable
class Pipeline(Protocol):
    """Interface of a live diffusers pipeline, which can be checked without importing its class."""

    @property
    def components(self) -> dict[str, Any]: ...

    @property
    def config(self) -> Any: ...


class Components(NamedTuple):
    """Networks and settings of a model before it is placed on a device; most fields are those of `Model`.

    vae            None while another one is to be opened, of a model that has none
    scheduler      configuration of the noise schedule
    learned_words  words that its LoRAs were trained for
    """

    unet: UNet2DConditionModel
    vae: VAE
    text_encoders: tuple[TextEncoder, ...]
    scheduler: Config
    force_zeros_for_empty_prompt: bool
    image_encoder: ImageEncoder | None = None
    temporal: TemporalLayers | None = None
    temporal_decoder: TemporalDecoder | None = None
    motion_adapter: MotionAdapter | None = None
    spatial_adapter: SpatialAdapter | None = None
    subject: str | None = None
    learned_words: tuple[str, ...] = ()
    recommended: Mapping[str, float] = {}

    @property
    def net(self) -> VideoUNet:
        """The video U-Net."""
        return VideoUNet(
            self.unet, self.temporal, motion_adapter=self.motion_adapter, spatial_adapter=self.spatial_adapter
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that LoRAs can change, by their names in a pipeline, and the temporal layers."""
        return named_networks(self.unet, self.text_encoders, self.temporal)

    @property
    def other_networks(self) -> list[nn.Module]:
        """The other networks that have the model's dtype: image encoder and adapters."""
        encoders = [] if self.image_encoder is None else [self.image_encoder.network]
        return [*encoders, *(each for each in (self.motion_adapter, self.spatial_adapter) if each is not None)]

    @property
    def added_networks(self) -> list[nn.Module]:
        """The networks around the layers of the image U-Net: temporal layers and adapters."""
        return [each for each in (self.temporal, self.motion_adapter, self.spatial_adapter) if each is not None]


def components_from_pipeline(pipeline: Pipeline) -> Components:
    """Return the components of a live pipeline, which shares its networks; of a video network, its weights.

    Raises InputError if the pipeline is of another model family.
    """
    parts = pipeline.components
    refuse_other_families({part: (None, type(parts.get(part)).__name__) for part in EXPECTED_CLASSES}, "this pipeline")
    _check_switched_on(pipeline)
    suffixes = [suffix for suffix in ("", "_2") if f"tokenizer{suffix}" in parts]
    encoders = [TextEncoder(parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"]) for suffix in suffixes]
    unet, temporal = _split_unet(parts["unet"])
    image_encoder = ImageEncoder(parts["image_encoder"]) if parts.get("image_encoder") else None
    if unet.config.encoder_hid_dim_type == "ip_image_proj":
        check_image_encoder(unet, image_encoder, "the IP-Adapter of this pipeline")
    return Components(
        unet=unet,
        vae=parts["vae"],
        text_encoders=tuple(encoders),
        scheduler={**parts["scheduler"].config, "_class_name": type(parts["scheduler"]).__name__},
        force_zeros_for_empty_prompt=bool(pipeline.config.get("force_zeros_for_empty_prompt")),
        image_encoder=image_encoder,
        temporal=temporal,
    )


def _check_switched_on(pipeline: Pipeline) -> None:
    """Raise InputError for what a live pipeline has or has switched on, and that would be left out here."""
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name not in PIPELINE_NETWORKS:
            raise InputError(f"this pipeline has a {name} of the kind {type(part).__name__}, which is not supported")
    for feature, advice in PIPELINE_FEATURES.items():
        if getattr(pipeline, f"{feature}_enabled", False):
            raise InputError(f"{feature} of this pipeline does nothing here: {advice}")
    if pipeline.components.get("safety_checker") is not None:
        warnings.warn(
            "the safety checker of this pipeline is not used: nothing checks the frames of a video",
            InputWarning,
            stacklevel=5,
        )
    unet = pipeline.components["unet"]
    if type(unet).__name__ in VIDEO_UNETS:
        refuse_any_hooks(unet, "the video network of this pipeline")
    else:
        refuse_unused_hooks(unet, "the U-Net of this pipeline")
    check_attention_processors(unet)


def components_from_folder(
    folder: Path, dtype: torch.dtype, variant: str | None = None, *, given_apart: Sequence[str] = ()
) -> Components:
    """Return the components of a pipeline in diffusers layout. Raises InputError if something is missing or damaged.

    given_apart: "vae" for a VAE on the meta device, or None, to be replaced by another one.
    """
    index = read_index(folder)
    refuse_other_families(index, str(folder), given_apart=given_apart)
    _check_variant(folder, index, variant)
    unet, temporal = read_unet(folder, index, dtype, variant)
    decoder = folder / video_folder.TEMPORAL_DECODER
    classes = text_encoder_classes(index)
    tokenizers = [read_tokenizer(folder, suffix) for suffix, _ in classes]
    encoders = [
        read_network(each, folder / f"text_encoder{suffix}", dtype=dtype, variant=variant) for suffix, each in classes
    ]
    opened = Components(
        unet=unet,
        vae=_read_vae(folder, index, dtype, variant) if "vae" not in given_apart else empty_vae(folder, dtype),
        text_encoders=tuple(map(TextEncoder, tokenizers, encoders)),
        scheduler=read_scheduler(folder),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt")),
        image_encoder=video_folder.read_image_adapter(folder, unet, dtype),
        temporal=temporal,
        temporal_decoder=video_folder.read_temporal_decoder(decoder) if decoder.is_dir() else None,
        motion_adapter=None if temporal is None else video_folder.read_motion_adapter(folder, temporal),
        recommended=read_generation_config(folder),
    )
    _check_widths(opened, folder)
    return opened


def _check_widths(opened: Components, folder: Path) -> None:
    """Raise InputError if networks of a folder are for models of different architectures."""
    unet, texts = opened.unet.config, [each.network.config for each in opened.text_encoders]
    widths = {"cross_attention_dim": sum(each.hidden_size for each in texts)}
    if unet.addition_embed_type is not None:
        numbers = SIZE_NUMBERS * (unet.addition_time_embed_dim or 0)
        widths["projection_class_embeddings_input_dim"] = (texts[-1].projection_dim or 0) + numbers
    if opened.vae is not None:
        widths["out_channels"] = opened.vae.config.latent_channels
    for name, given in widths.items():
        if getattr(unet, name) != given:
            others = "VAE" if name == "out_channels" else "text encoders"
            raise InputError(
                f"{folder} has networks of different models: the U-Net's {name} is {getattr(unet, name)}, and its "
                f"{others} give {given}. Fetch it again"
            )


def _read_vae(folder: Path, index: Config, dtype: torch.dtype, variant: str | None) -> VAE:
    read_vae_config(folder)
    return read_network(VAES[index["vae"][1]], folder / "vae", dtype=dtype, variant=variant)


def empty_vae(folder: Path, dtype: torch.dtype) -> VAE | None:
    """Return a VAE on the meta device with the configuration in a pipeline's folder, None if it has none."""
    if (config := read_vae_config(folder)) is None:
        return None
    return empty_network(VAES[config.get("_class_name", AutoencoderKL.__name__)], config, str(folder / "vae")).to(dtype)


def read_vae_config(folder: Path) -> Config | None:
    """Return the configuration of a pipeline's VAE, None if it has none, or one of another kind."""
    file = folder / "vae" / "config.json"
    if not file.is_file():
        return None
    name = read_json(file).get("_class_name", AutoencoderKL.__name__)
    return read_config(folder / "vae", *VAES.values()) if name in tuple(VAES) else None


def _check_variant(folder: Path, index: Config, variant: str | None) -> None:
    """Raise InputError if no network of a pipeline has weights of the variant."""
    found = set().union(*(list_variants(folder / part) for part in index))
    if variant and variant not in found:
        names = " or ".join(sorted(found - {PLAIN})) or "none"
        raise InputError(f"{folder} has no weights of the variant {variant}: expected {names} in `variant`")


def read_unet(
    folder: Path, index: Config, dtype: torch.dtype | None = None, variant: str | None = None
) -> tuple[UNet2DConditionModel, TemporalLayers | None]:
    """Return the image network of a pipeline in diffusers layout, and its temporal layers, if it has any."""
    kind: type[nn.Module] = UNETS[index["unet"][1]]
    unet, temporal = _split_unet(read_network(kind, folder / "unet", dtype=dtype, variant=variant))
    own = folder / video_folder.TEMPORAL
    return unet, video_folder.read_temporal_layers(own, unet) if own.is_dir() else temporal


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence diffusers' and transformers' progress bars and messages while weights are read, not those of downloads.

    What the user had set is restored.
    """
    loggings = (transformers_logging, diffusers_logging)
    levels = [each.get_verbosity() for each in loggings]
    bars = [each for each in loggings if each.is_progress_bar_enabled()]
    no_downloads = are_progress_bars_disabled()

    def restore_downloads() -> None:  # transformers switches those of the Hub together with its own
        (disable_progress_bars if no_downloads else enable_progress_bars)()

    with _without_warnings():
        for each in loggings:
            each.set_verbosity_error()
        for each in bars:
            each.disable_progress_bar()
        restore_downloads()
    try:
        yield
    finally:
        with _without_warnings():
            for each, level in zip(loggings, levels, strict=True):
                each.set_verbosity(level)
            for each in bars:
                each.enable_progress_bar()
            restore_downloads()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore the Hub's warnings that an environment variable decides about its bars."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _split_unet(unet: Any) -> tuple[UNet2DConditionModel, TemporalLayers | None]:
    """Split a pipeline's network into an image network and temporal layers, if it has any."""
    convert = VIDEO_UNETS.get(type(unet).__name__)
    if convert is None:
        return unet, None
    net = convert(unet)
    for block, own in zip(net.image_unet.up_blocks, unet.up_blocks, strict=True):
        for name in FREEU:
            setattr(block, name, getattr(own, name, None))
    return net.image_unet, net.temporal


def read_index(folder: Path) -> Config:
    """Return the index of a pipeline's folder: component -> library and class."""
    if not (folder / INDEX).is_file():
        raise InputError(
            f"{folder} has no {INDEX}: expected a pipeline in diffusers layout. "
            f"It holds {preview_names(sorted(each.name for each in folder.iterdir())) or 'nothing'}; "
            "a checkpoint that is a single file is loaded by the path of the file"
        )
    index = read_json(folder / INDEX)
    for part in (*EXPECTED_CLASSES, "text_encoder_2"):
        value = index.get(part)
        if value is not None and not _is_library_and_class(value):
            raise InputError(
                f"{folder / INDEX} is damaged: expected {part} to be a library and a class, got {shown(value)}. Fetch "
                "it again"
            )
    return index


def _is_library_and_class(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str | None) for each in value)


def text_encoder_classes(index: Config) -> list[tuple[str, type[CLIPTextModel] | type[CLIPTextModelWithProjection]]]:
    """Return the suffix of each text encoder's name, "" and "_2", with its class."""
    kinds = {suffix: (index.get(f"text_encoder{suffix}") or [None, None])[1] for suffix in ("", "_2")}
    names = {suffix: name for suffix, name in kinds.items() if name is not None}
    if unknown := [name for name in names.values() if name not in TEXT_ENCODERS]:
        raise InputError(f"a text encoder is of the kind {unknown[0]}: expected {' or '.join(TEXT_ENCODERS)}")
    return [(suffix, TEXT_ENCODERS[name]) for suffix, name in names.items()]


def read_tokenizer(folder: Path, suffix: str) -> CLIPTokenizer:
    """Return the tokenizer of a pipeline in diffusers layout, the first ("") or the second ("_2").

    Raises InputError if it is missing; transformers would return a tokenizer with an empty vocabulary.
    """
    if not any((folder / f"tokenizer{suffix}" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(f"{folder} has no tokenizer{suffix}/tokenizer.json or vocab.json: fetch it again")
    return open_tokenizer(folder / f"tokenizer{suffix}")


def open_tokenizer(folder: Path, pad_token: str | None = None) -> CLIPTokenizer:
    """Return the tokenizer in a folder. Raises InputError if it is damaged.

    pad_token: in place of its own.
    """
    settings = {} if pad_token is None else {"pad_token": pad_token}
    with as_input_error(f"{folder} holds no tokenizer of CLIP, or is damaged"):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, **settings)
        tokenizer("a", add_special_tokens=False)
    numbers = {name: getattr(tokenizer, name) for name in (*SPECIAL_TOKENS, "model_max_length")}
    for name, value in numbers.items():
        least = MIN_TOKENS if name == "model_max_length" else 0
        if not isinstance(value, int | float) or value < least or value % 1:  # some have 1e30 for no limit
            raise InputError(f"{folder} holds a damaged tokenizer: its {name} is {shown(value)}. Fetch it again")
    return tokenizer


def read_scheduler(folder: Path) -> Config:
    """Return the configuration of a pipeline's scheduler, as the pipeline of diffusers corrects it.

    Raises InputError if it is damaged.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    name = config.get("_class_name", schedulers.DEFAULT)
    check_text(f"_class_name in {file}", name)
    known = [name] if name in schedulers.SAMPLERS else []
    check_config(config, [getattr(diffusers, each) for each in (*known, schedulers.DEFAULT, schedulers.FALLBACK)], file)
    for setting in OWN_SCHEDULER_SETTINGS:
        check_number(f"{setting} in {file}", config.get(setting) or 1)
    betas = [config[setting] for setting in ("beta_start", "beta_end") if setting in config]
    if not all(0 < beta < 1 for beta in [*betas, *(config.get("trained_betas") or ())]):
        raise InputError(f"{file} is damaged: expected betas between 0 and 1, got {shown(betas)}. Fetch it again")
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    return schedulers.correct_as_pipeline(config, str(index.get("_class_name")))


def refuse_other_families(index: Config, what: str, *, given_apart: Sequence[str] = ()) -> None:
    """Raise InputError unless the components are those of an SD 1.x, 2.x or SDXL model, or a video model of one."""
    kinds = {part: str((index.get(part) or (None, None))[1]) for part in (*EXPECTED_CLASSES, "text_encoder_2")}
    if kinds["text_encoder"] == "None" and kinds["text_encoder_2"] in TEXT_ENCODERS:
        raise InputError(f"{what} {known_configurations.REFINER}")
    for part, expected in EXPECTED_CLASSES.items():
        if kinds[part] not in expected and part not in given_apart:
            raise InputError(
                f"{what} has a {part} of the kind {kinds[part]}: expected {' or '.join(expected)}, "
                "as in models of the SD 1.x, 2.x and SDXL family"
            )
