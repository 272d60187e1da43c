"""Video model checkpoints in a single file: VideoCrafter's, with all its networks, and VidRD's.

Source: the released checkpoints and configurations of Chen et al. 2023 and Gu et al. 2023.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from kineograph import hub
from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.conditioning.image_encoder import GREY, LAST, ImageEncoder, stretch_to_square
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import architecture, key_map, known_configurations, ldm, videocrafter, vidrd
from kineograph.models.formats.tensor_files import Tensors, preview_names
from kineograph.models.loading.components import Components, components_from_folder
from kineograph.models.loading.single_file import Checkpoint, components_from_file, tokenizer_for_file
from kineograph.models.network_folders import empty_network, empty_transformer, read_config
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae import vae_files

VAE, TEXT_ENCODER, EMBEDDER = "first_stage_model.", "cond_stage_model.model.", "embedder."
IMAGE_ENCODER = f"{EMBEDDER}model.visual."
# written by training and not read by the network
TRAINING_TENSORS = re.compile(
    r"model_ema\..*|embedder\.(?!model\.visual\.).*|cond_stage_model\.model\.(?:text_projection|logit_scale|attn_mask)|"
    r"betas|logvar|scale_arr\w*|lvlb_weights|ddim_\w+|alphas_cumprod\w*|(?:sqrt|log|posterior)_\w+"
)
VIDEOCRAFTER_SCHEDULER = known_configurations.SCHEDULER | {"prediction_type": "epsilon"}  # and VidRD's
VIDRD_TEXT_ENCODER = "text_encoder."


def components_from_checkpoint(file: Checkpoint) -> Components:
    """Return the components of a checkpoint in a single file: VideoCrafter's, VidRD's or Stable Diffusion's layout.

    Raises InputError if the file has another layout, or does not fit its configuration.
    """
    if videocrafter.is_videocrafter(file.tensors):
        return components_from_videocrafter(file)
    if vidrd.is_vidrd(file.tensors):
        return components_from_vidrd(file)
    return components_from_file(file)


def components_from_videocrafter(file: Checkpoint) -> Components:
    """Return the components of a VideoCrafter checkpoint, in the file's dtype; its prediction type is known.

    Raises InputError if tensors are missing, left over or have another shape.
    """
    path, tensors = file.path, file.tensors
    _refuse_other_tensors(path, tensors)
    with open_videocrafter_configuration(file.config, file.hub_options) as folder_of:
        settings = architecture.read_assumed_settings(folder_of("unet").parent)
        net = videocrafter.video_unet_from_videocrafter(tensors, str(path), settings)
        tokenizer, reads_images = (
            tokenizer_for_file(file, folder_of("tokenizer").parent, ""),
            net.image_unet.encoder_hid_proj,
        )
        return Components(
            unet=net.image_unet,
            vae=_read_vae(path, tensors, folder_of("vae")),
            text_encoders=(TextEncoder(tokenizer, _read_text_encoder(path, tensors, folder_of("text_encoder"))),),
            scheduler=videocrafter_scheduler(tensors, net.temporal),
            force_zeros_for_empty_prompt=False,
            image_encoder=_read_image_encoder(path, tensors, folder_of("image_encoder")) if reads_images else None,
            temporal=net.temporal,
        )


def components_to_videocrafter(components: Components) -> dict[str, Tensor]:
    """Return the tensors of all networks in the names and shapes of VideoCrafter's released checkpoints.

    Other tensors of a released file (the text encoder's last layer, tables of the training) are not among them.
    """
    text, vae = components.text_encoders[0].network, components.vae
    networks = {
        VAE: key_map.export_tensors(vae.state_dict(), ldm.vae_key_map(vae)),
        TEXT_ENCODER: key_map.export_tensors(text.state_dict(), ldm.text_encoder_key_map(text)),
    }
    if components.image_encoder is not None:
        vision = components.image_encoder.network
        exported = key_map.export_tensors(vision.state_dict(), ldm.vision_encoder_key_map(vision))
        networks[IMAGE_ENCODER] = ldm.transpose_projection(exported)
    return videocrafter.to_videocrafter(VideoUNet(components.unet, components.temporal)) | {
        prefix + name: each for prefix, network in networks.items() for name, each in network.items()
    }


def videocrafter_scheduler(tensors: Tensors, temporal: TemporalLayers | None) -> dict[str, Any]:
    """Return the scheduler configuration, with the file's signal scale, or that of the released model of its kind."""
    scales = tensors.get("scale_arr")
    assert temporal is not None
    released = 0.7 if temporal.config.layer_after("resnet") else 0.3 if temporal.config.frame_rate else 1.0
    with architecture.report_missing_tensors(tensors, "the file has a scale_arr, the scale of the signal"):
        scale = released if scales is None else round(float(scales.flatten()[-1]), 6)
    return VIDEOCRAFTER_SCHEDULER | ({} if scale == 1 else {"signal_scale": scale, "signal_scale_steps": 400})


def _refuse_other_tensors(path: Path, tensors: Tensors) -> None:
    known = (videocrafter.UNET, videocrafter.RESAMPLER, VAE, TEXT_ENCODER, EMBEDDER)
    unknown = [name for name in tensors if not name.startswith(known) and not TRAINING_TENSORS.fullmatch(name)]
    problems = [
        f"has no {what}"
        for what, prefix in {"VAE": VAE, "text encoder": TEXT_ENCODER}.items()
        if not key_map.select_prefix(prefix, tensors)
    ]
    if unknown:
        problems.append(f"has {len(unknown)} tensors of no part of one ({preview_names(unknown)})")
    if problems:
        raise InputError(f"{path} looks like a VideoCrafter checkpoint, but {' and '.join(problems)}: fetch it again")


@contextmanager
def open_videocrafter_configuration(
    config: str | Path | None, hub_options: HubOptions
) -> Iterator[Callable[[str], Path]]:
    """Provide the folder of each component's configuration: in `config`, or else the built-in one."""
    with TemporaryDirectory() as folder:
        built_in = given = Path(folder)
        known_configurations.write_videocrafter_configuration(built_in)
        if config is not None:
            given = hub.local_path(config) or hub.fetch_folder(str(config), hub.CONFIGS, hub_options)
        yield lambda part: given / part if (given / part).is_dir() else built_in / part


def _read_vae(path: Path, tensors: Tensors, folder: Path) -> AutoencoderKL:
    vae = empty_network(AutoencoderKL, read_config(folder, AutoencoderKL), str(folder))
    own, entries = key_map.select_prefix(VAE, tensors), ldm.vae_key_map(vae)
    key_map.load_tensors(vae, own, entries, f"the VAE in {path} is not as expected")
    return vae.eval()


def _read_text_encoder(path: Path, tensors: Tensors, folder: Path) -> CLIPTextModel:
    encoder = empty_transformer(CLIPTextModel, folder)
    last_layer = f"transformer.resblocks.{encoder.config.num_hidden_layers}."  # which the model does not use
    own = {
        name: each
        for name, each in key_map.select_prefix(TEXT_ENCODER, tensors).items()
        if not TRAINING_TENSORS.fullmatch(TEXT_ENCODER + name) and not name.startswith(last_layer)
    }
    entries = ldm.text_encoder_key_map(encoder)
    key_map.load_tensors(encoder, own, entries, f"the text encoder in {path} is not as expected")
    return encoder.eval()


def _read_image_encoder(path: Path, tensors: Tensors, folder: Path) -> ImageEncoder:
    encoder = empty_transformer(CLIPVisionModelWithProjection, folder)
    own = ldm.transpose_projection(key_map.select_prefix(IMAGE_ENCODER, tensors))
    entries = ldm.vision_encoder_key_map(encoder)
    key_map.load_tensors(encoder, own, entries, f"the image encoder in {path} is not as expected")
    return ImageEncoder(encoder.eval(), layer=LAST, resize=stretch_to_square, empty_color=GREY)


def components_from_vidrd(file: Checkpoint) -> Components:
    """Return the components of a VidRD checkpoint, completed from `config`, the model that it was trained from.

    The VAE and, if the file has none, the text encoder are that model's. Some files have a temporal decoder. Raises
    InputError if config is missing, or tensors of the file are missing, left over or have another shape.
    """
    path, tensors = file.path, file.tensors
    if file.config is None:
        raise InputError(
            f"{path} is a VidRD checkpoint, which holds a video network without a VAE: name in `config` the folder "
            "or repository of Stable Diffusion 2.1 base in diffusers layout, from which it was trained"
        )
    folder = hub.local_path(file.config) or hub.fetch_pipeline(str(file.config), file.hub_options)
    net = vidrd.video_unet_from_vidrd(tensors, str(path), architecture.read_assumed_settings(folder))
    base = components_from_folder(folder, file.dtype)
    if unknown := [n for n in tensors if not n.startswith((vidrd.UNET, VIDRD_TEXT_ENCODER, vae_files.VAE_PREFIX))]:
        count, names = len(unknown), preview_names(unknown)
        left_out = f"{count} tensors are of neither U-Net, VAE nor text encoder and are left out: {names}"
        warnings.warn(f"{path}: {left_out}", InputWarning, stacklevel=2)
    vae_files.fill_vae(base.vae, tensors, str(path))
    if vae_files.has_temporal_decoder(tensors):
        base = base._replace(temporal_decoder=vae_files.read_vidrd_decoder(tensors, str(path)))
    if own := key_map.select_prefix(VIDRD_TEXT_ENCODER, tensors):
        # newer versions of transformers have neither the prefix `text_model.` nor the buffer of positions
        own = {
            name.removeprefix("text_model."): each for name, each in own.items() if not name.endswith("position_ids")
        }
        encoder = base.text_encoders[0].network
        entries = {name: key_map.Entry(name.removeprefix("text_model.")) for name in encoder.state_dict()}
        key_map.load_tensors(encoder, own, entries, f"the text encoder in {path} is not like the one in config")
    return base._replace(unet=net.image_unet, temporal=net.temporal)
