"""A VideoCrafter checkpoint as a whole: the video network, and the VAE, text tower and vision tower beside it.

Source: the released checkpoints and configurations of Chen et al. 2023.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from kineograph import hub
from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.models.conditioning import image_encoder
from kineograph.models.conditioning.image_encoder import ImageEncoder
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import key_map, ldm, shapes, vidrd
from kineograph.models.formats import ldm as vae_layout
from kineograph.models.formats import videocrafter as video
from kineograph.models.formats.tensor_files import Tensors, preview_names
from kineograph.models.loading import components, known_configurations, single_file
from kineograph.models.loading.components import Components
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae import files

VAE, TEXT, EMBEDDER = "first_stage_model.", "cond_stage_model.model.", "embedder."
VISION = f"{EMBEDDER}model.visual."
# written by training and not read by the network; the last text layer is the one that is left out
TRAINING_TENSORS = re.compile(
    r"model_ema\..*|embedder\.(?!model\.visual\.).*|cond_stage_model\.model\.(?:text_projection|logit_scale|attn_mask)|"
    r"betas|logvar|scale_arr\w*|lvlb_weights|ddim_\w+|alphas_cumprod\w*|(?:sqrt|log|posterior)_\w+"
)
VIDEOCRAFTER_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def components_from_videocrafter(
    path: Path,
    tensors: Tensors,
    config: str | Path | None,
    prediction_type: str | None,
    dtype: torch.dtype,
    hub_options: HubOptions,
) -> Components:
    """The parts of a checkpoint. See `single_file.open_parts`; what its network predicts is known.

    Raises InputError when tensors are missing, left over or of another shape.
    """
    _refuse_others(path, tensors)
    with _configured(config, hub_options) as configured:
        net = video.video_unet_from_videocrafter(
            tensors, str(path), shapes.read_assumed_settings(configured("unet").parent)
        )
        tokenizer = single_file.tokenizer_for_file(path, configured("tokenizer").parent, "", hub_options)
        return Components(
            unet=net.image_unet,
            vae=_vae(path, tensors, configured("vae")),
            text=(TextEncoder(tokenizer, _text(path, tensors, configured("text_encoder"))),),
            scheduler=videocrafter_scheduler(tensors, net.temporal),
            force_zeros_for_empty_prompt=False,
            image_encoder=_reader(path, tensors, configured("image_encoder"))
            if net.image_unet.encoder_hid_proj
            else None,
            temporal=net.temporal,
        )


def components_to_videocrafter(parts: Components) -> dict[str, Tensor]:
    """All networks by the names, and in the shapes, of a released checkpoint: `open_parts` backwards.

    What a released file has beside them (the text tower's last layer, training's tables) is not there.
    """
    text, vae = parts.text[0].network, parts.vae
    towers = {
        VAE: key_map.export_tensors(vae.state_dict(), vae_layout.vae_key_map(vae)),
        TEXT: key_map.export_tensors(text.state_dict(), ldm.text_encoder_key_map(text)),
    }
    if parts.image_encoder is not None:
        tower = parts.image_encoder.network
        gathered = key_map.export_tensors(tower.state_dict(), ldm.vision_encoder_key_map(tower))
        towers[VISION] = ldm.transpose_projection(gathered)
    return video.to_videocrafter(VideoUNet(parts.unet, parts.temporal)) | {
        prefix + name: each for prefix, tower in towers.items() for name, each in tower.items()
    }


def videocrafter_scheduler(tensors: Tensors, temporal: TemporalLayers | None) -> dict[str, Any]:
    """The noise it was trained on: how far the signal is scaled down is in the file, or is known by its kind."""
    scales = tensors.get("scale_arr")
    assert temporal is not None
    known = 0.7 if temporal.config.layer_after("resnet") else 0.3 if temporal.config.frame_rate else 1.0
    scale = known if scales is None else round(float(scales.flatten()[-1]), 6)
    return VIDEOCRAFTER_SCHEDULER | ({} if scale == 1 else {"signal_scale": scale, "signal_scale_steps": 400})


def _refuse_others(path: Path, tensors: Tensors) -> None:
    known = (video.UNET, video.RESAMPLER, VAE, TEXT, EMBEDDER)
    strange = [name for name in tensors if not name.startswith(known) and not TRAINING_TENSORS.fullmatch(name)]
    missing = [
        what
        for what, prefix in {"VAE": VAE, "text encoder": TEXT}.items()
        if not key_map.select_prefix(prefix, tensors)
    ]
    if strange or missing:
        parts = [f"has no {each}" for each in missing]
        parts += (
            [f"has {len(strange)} tensors that are of no part of one ({preview_names(strange)})"] if strange else []
        )
        raise InputError(f"{path} looks like a VideoCrafter checkpoint, but {' and '.join(parts)}: fetch it again")


@contextmanager
def _configured(config: str | Path | None, hub_options: HubOptions) -> Iterator[Callable[[str], Path]]:
    """Where the configuration of each part is: in the folder that was given, or else among those known by heart."""
    with TemporaryDirectory() as folder:
        known = Path(folder)
        known_configurations.write_videocrafter_configuration(known)
        given = (
            known
            if config is None
            else hub.local_path(config) or hub.fetch_folder(str(config), hub.CONFIGS, hub_options)
        )
        yield lambda part: given / part if (given / part).is_dir() else known / part


def _vae(path: Path, tensors: Tensors, folder: Path) -> AutoencoderKL:
    with init_empty_weights(include_buffers=False):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, local_files_only=True))
    key_map.load_tensors(
        vae, key_map.select_prefix(VAE, tensors), vae_layout.vae_key_map(vae), f"the VAE in {path} is not as expected"
    )
    return vae.eval()


def _text(path: Path, tensors: Tensors, folder: Path) -> CLIPTextModel:
    with init_empty_weights(include_buffers=False):
        tower = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    mine = {
        name: each
        for name, each in key_map.select_prefix(TEXT, tensors).items()
        if not TRAINING_TENSORS.fullmatch(TEXT + name)
    }
    left_out = f"transformer.resblocks.{tower.config.num_hidden_layers}."
    mine = {name: each for name, each in mine.items() if not name.startswith(left_out)}
    key_map.load_tensors(tower, mine, ldm.text_encoder_key_map(tower), f"the text encoder in {path} is not as expected")
    return tower.eval()


def _reader(path: Path, tensors: Tensors, folder: Path) -> ImageEncoder:
    with init_empty_weights(include_buffers=False):
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(folder))
    mine = ldm.transpose_projection(key_map.select_prefix(VISION, tensors))
    key_map.load_tensors(
        tower, mine, ldm.vision_encoder_key_map(tower), f"the image encoder in {path} is not as expected"
    )
    return ImageEncoder(
        tower.eval(), layer=image_encoder.LAST, fit=image_encoder.stretch_to_square, blank=image_encoder.GREY
    )


TEXT_ENCODER = "text_encoder."


def components_from_vidrd(
    path: Path,
    tensors: Tensors,
    config: str | Path | None,
    prediction_type: str | None,
    dtype: torch.dtype,
    hub_options: HubOptions,
) -> Components:
    """The parts of a checkpoint, with the VAE of the model that it was trained from, and the text encoder if need be.

    Where the file holds a temporal decoder, that is among them.
    config: that model, in diffusers layout.
    Raises InputError when it is not given, and when tensors of the file are missing, left over or of another shape.
    """
    if config is None:
        raise InputError(
            f"{path} is a VidRD checkpoint, which holds a video network without a VAE: pass config= the folder or "
            "repository of Stable Diffusion 2.1 base in diffusers layout, from which it was trained"
        )
    folder = hub.local_path(config) or hub.fetch_pipeline(str(config), hub_options)
    net = vidrd.video_unet_from_vidrd(tensors, str(path), shapes.read_assumed_settings(folder))
    beside = components.components_from_folder(folder, dtype)
    if left := [name for name in tensors if not name.startswith((vidrd.UNET, TEXT_ENCODER, files.VAE_PREFIX))]:
        warnings.warn(
            f"{path}: {len(left)} tensors are of neither U-Net, VAE nor text encoder and are left out: {preview_names(left)}",
            InputWarning,
            stacklevel=2,
        )
    files.fill_vae(beside.vae, tensors, str(path))
    if files.has_temporal_decoder(tensors):
        beside = beside._replace(temporal_decoder=files.read_vidrd_decoder(tensors, str(path)))
    if own := key_map.select_prefix(TEXT_ENCODER, tensors):
        beside = beside._replace(text=(_with_own(beside.text[0], own, path),))
    return beside._replace(unet=net.image_unet, temporal=net.temporal)


def _with_own(encoder: TextEncoder, own: Tensors, path: Path) -> TextEncoder:
    plain = {name.removeprefix("text_model."): each for name, each in own.items() if not name.endswith("position_ids")}
    layout = {name: key_map.Entry(name.removeprefix("text_model.")) for name in encoder.network.state_dict()}
    key_map.load_tensors(encoder.network, plain, layout, f"the text encoder in {path} is not like the one in config")
    return encoder
