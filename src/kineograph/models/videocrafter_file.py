"""A VideoCrafter checkpoint as a whole: the video network, and the VAE, text tower and vision tower beside it.

Source: the released checkpoints and configurations of Chen et al. 2023.
"""

from __future__ import annotations

import re
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

from kineograph.errors import InputError
from kineograph.models import architecture, catalog, hub, openclip_layout, pictures, places, single_file, vae_layout
from kineograph.models import videocrafter_layout as video
from kineograph.models.hub import Hub
from kineograph.models.parts import Parts
from kineograph.models.pictures import PictureReader
from kineograph.models.temporal_layers import TemporalLayers
from kineograph.models.tensor_files import Tensors, some
from kineograph.models.text import TextEncoder
from kineograph.models.unet import VideoUNet

VAE, TEXT, EMBEDDER = "first_stage_model.", "cond_stage_model.model.", "embedder."
VISION = f"{EMBEDDER}model.visual."
# written by training and not read by the network; the last text layer is the one that is left out
BESIDE = re.compile(
    r"model_ema\..*|embedder\.(?!model\.visual\.).*|cond_stage_model\.model\.(?:text_projection|logit_scale|attn_mask)|"
    r"betas|logvar|scale_arr\w*|lvlb_weights|ddim_\w+|alphas_cumprod\w*|(?:sqrt|log|posterior)_\w+"
)
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def open_parts(
    path: Path, tensors: Tensors, config: str | Path | None, prediction_type: str | None, dtype: torch.dtype, ask: Hub
) -> Parts:
    """The parts of a checkpoint. See `single_file.open_parts`; what its network predicts is known.

    Raises InputError when tensors are missing, left over or of another shape.
    """
    _refuse_others(path, tensors)
    with _configured(config, ask) as configured:
        net = video.network(tensors, str(path), architecture.unsaid(configured("unet").parent))
        tokenizer = single_file.tokenizer(path, configured("tokenizer").parent, "", ask)
        return Parts(
            unet=net.image_unet,
            vae=_vae(path, tensors, configured("vae")),
            text=(TextEncoder(tokenizer, _text(path, tensors, configured("text_encoder"))),),
            scheduler=scheduler(tensors, net.temporal),
            force_zeros=False,
            reader=_reader(path, tensors, configured("image_encoder")) if net.image_unet.encoder_hid_proj else None,
            temporal=net.temporal,
        )


def released(parts: Parts) -> dict[str, Tensor]:
    """All networks by the names, and in the shapes, of a released checkpoint: `open_parts` backwards.

    What a released file has beside them (the text tower's last layer, training's tables) is not there.
    """
    text, vae = parts.text[0].network, parts.vae
    towers = {
        VAE: places.gathered(vae.state_dict(), vae_layout.layout(vae)),
        TEXT: places.gathered(text.state_dict(), openclip_layout.text_layout(text)),
    }
    if parts.reader is not None:
        tower = parts.reader.network
        gathered = places.gathered(tower.state_dict(), openclip_layout.vision_layout(tower))
        towers[VISION] = openclip_layout.turned(gathered)
    return video.released(VideoUNet(parts.unet, parts.temporal)) | {
        prefix + name: each for prefix, tower in towers.items() for name, each in tower.items()
    }


def scheduler(tensors: Tensors, temporal: TemporalLayers | None) -> dict[str, Any]:
    """The noise it was trained on: how far the signal is scaled down is in the file, or is known by its kind."""
    scales = tensors.get("scale_arr")
    assert temporal is not None
    known = 0.7 if temporal.config.convolution else 0.3 if temporal.config.frame_rate else 1.0
    scale = known if scales is None else round(float(scales.flatten()[-1]), 6)
    return SCHEDULER | ({} if scale == 1 else {"signal_scale": scale, "signal_scale_steps": 400})


def _refuse_others(path: Path, tensors: Tensors) -> None:
    known = (video.UNET, video.RESAMPLER, VAE, TEXT, EMBEDDER)
    strange = [name for name in tensors if not name.startswith(known) and not BESIDE.fullmatch(name)]
    missing = [what for what, prefix in {"VAE": VAE, "text encoder": TEXT}.items() if not places.below(prefix, tensors)]
    if strange or missing:
        parts = [f"has no {each}" for each in missing]
        parts += [f"has {len(strange)} tensors that are of no part of one ({some(strange)})"] if strange else []
        raise InputError(f"{path} looks like a VideoCrafter checkpoint, but {' and '.join(parts)}: fetch it again")


@contextmanager
def _configured(config: str | Path | None, ask: Hub) -> Iterator[Callable[[str], Path]]:
    """Where the configuration of each part is: in the folder that was given, or else among those known by heart."""
    with TemporaryDirectory() as folder:
        known = Path(folder)
        catalog.write_videocrafter(known)
        given = known if config is None else hub.local(config) or hub.fetch_folder(str(config), hub.CONFIGS, ask)
        yield lambda part: given / part if (given / part).is_dir() else known / part


def _vae(path: Path, tensors: Tensors, folder: Path) -> AutoencoderKL:
    with init_empty_weights(include_buffers=False):
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, local_files_only=True))
    places.fill(vae, places.below(VAE, tensors), vae_layout.layout(vae), f"the VAE in {path} is not as expected")
    return vae.eval()


def _text(path: Path, tensors: Tensors, folder: Path) -> CLIPTextModel:
    with init_empty_weights(include_buffers=False):
        tower = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    mine = {name: each for name, each in places.below(TEXT, tensors).items() if not BESIDE.fullmatch(TEXT + name)}
    left_out = f"transformer.resblocks.{tower.config.num_hidden_layers}."
    mine = {name: each for name, each in mine.items() if not name.startswith(left_out)}
    places.fill(tower, mine, openclip_layout.text_layout(tower), f"the text encoder in {path} is not as expected")
    return tower.eval()


def _reader(path: Path, tensors: Tensors, folder: Path) -> PictureReader:
    with init_empty_weights(include_buffers=False):
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(folder))
    mine = openclip_layout.turned(places.below(VISION, tensors))
    places.fill(tower, mine, openclip_layout.vision_layout(tower), f"the image encoder in {path} is not as expected")
    return PictureReader(tower.eval(), layer=pictures.LAST, fit=pictures.squashed, blank=pictures.GREY)
