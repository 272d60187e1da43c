"""Saving a model as a folder in diffusers layout, and conversion of checkpoints to such folders and back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import diffusers
import torch

from kineograph.errors import InputError, InputWarning
from kineograph.hub import HubOptions
from kineograph.media.files import replace_atomically, write_new
from kineograph.models.formats import adapter_files, architecture, tensor_files, videocrafter
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import video_checkpoints, video_folder
from kineograph.models.loading.components import INDEX, Components, components_from_folder
from kineograph.models.loading.single_file import Checkpoint
from kineograph.models.lora_layers import has_loras
from kineograph.models.model import Model
from kineograph.models.network_folders import GENERATION_CONFIG
from kineograph.models.placement import choose_placement
from kineograph.models.schedule import Schedule
from kineograph.models.vae.temporal_decoder import check_decoder_fits

SCHEDULER = "DDIMScheduler"  # its configuration has the settings of the other schedulers
UNUSED = "unused.safetensors"
VOCABULARY = "vocabulary.json"  # list of all words that a model was trained on
CLIP_SKIP = "clip_skip"  # in the configuration of the text encoder; diffusers takes it as an argument of a call


def save(model: Model | Components, folder: str | Path, *, unused: Tensors | None = None) -> Path:
    """Write a model into a new folder in diffusers layout, in its current dtype, and return the folder's path.

    `load` opens the folder, and diffusers opens its image model. An error leaves no folder behind.

    unused: tensors of the converted checkpoint that no network here has, kept so that it can be restored. Raises
    InputError if the folder exists; the model has LoRAs or a spatial adapter, which the layout cannot hold; or no
    configuration describes its noise schedule.
    """
    folder, components = Path(folder).expanduser(), model_components(model) if isinstance(model, Model) else model
    if folder.exists():
        raise InputError(f"{folder} is there already: choose another folder, or remove it")
    for name, network in components.networks.items():
        if has_loras(network):
            raise InputError(
                f"{name} has LoRAs on it, which the folder layout cannot hold: load the model without them"
            )
    if components.spatial_adapter is not None:
        raise InputError(
            "the model has a spatial adapter, which the folder layout cannot hold: load it without `adapter`"
        )
    with write_new(folder) as temporary:
        temporary.mkdir()
        _write_components(components, temporary, folder.name)
        if isinstance(model, Model) and model.vocabulary is not None:
            (temporary / VOCABULARY).write_text(json.dumps(sorted(model.vocabulary)))
        if isinstance(model, Model):
            if model.recommended:
                (temporary / GENERATION_CONFIG).write_text(json.dumps(dict(model.recommended), indent=2))
            _write_clip_skip(model.clip_skip, temporary / "text_encoder" / "config.json")
        if unused:
            tensor_files.write_tensors(unused, temporary / UNUSED)
    return folder


def model_components(model: Model) -> Components:
    """Return the components of a loaded model."""
    if not model.schedule.settings:
        raise InputError(f"the noise schedule of {model.name} was made from tables, and no configuration describes it")
    return Components(
        unet=model.net.image_unet,
        vae=model.vae,
        text_encoders=model.text_encoders,
        scheduler=model.schedule.settings,
        force_zeros_for_empty_prompt=model.force_zeros_for_empty_prompt,
        image_encoder=model.image_encoder,
        temporal=model.net.temporal,
        temporal_decoder=model.temporal_decoder,
        motion_adapter=model.net.motion_adapter,
        spatial_adapter=model.net.spatial_adapter,
    )


def _write_clip_skip(clip_skip: int, file: Path) -> None:
    config = json.loads(file.read_text())
    if clip_skip != config.get(CLIP_SKIP, 0):
        file.write_text(json.dumps(config | {CLIP_SKIP: clip_skip}, indent=2))


def _write_components(components: Components, folder: Path, name: str) -> None:
    for suffix, encoder in zip(("", "_2"), components.text_encoders, strict=False):
        encoder.tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        with tensor_files.as_os_error(folder):
            encoder.network.save_pretrained(folder / f"text_encoder{suffix}")
    with tensor_files.as_os_error(folder):
        components.vae.save_pretrained(folder / "vae")
    video_folder.write_unet(components.unet, folder / "unet")
    video_folder.write_image_adapter(components.unet, components.image_encoder, folder)
    if components.temporal is not None:
        video_folder.write_layers(components.temporal, folder / video_folder.TEMPORAL)
    if components.temporal is not None and components.motion_adapter is not None:
        file = folder / video_folder.MOTION_ADAPTER / video_folder.MOTION_ADAPTER_WEIGHTS
        adapter_files.save_motion_adapter(components.motion_adapter, components.temporal, file, name=name)
    if components.temporal_decoder is not None:
        video_folder.write_layers(components.temporal_decoder, folder / video_folder.TEMPORAL_DECODER)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": SCHEDULER, **components.scheduler}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    (folder / INDEX).write_text(json.dumps(_index(components), indent=2))


def _index(components: Components) -> dict[str, object]:
    """Return the content of model_index.json."""
    encoders = dict(zip(("", "_2"), components.text_encoders, strict=False))
    image_encoder = components.image_encoder and type(components.image_encoder.network).__name__
    settings: dict[str, dict[str, object]] = {
        "StableDiffusionXLPipeline": {"force_zeros_for_empty_prompt": components.force_zeros_for_empty_prompt},
        "StableDiffusionPipeline": {"safety_checker": [None, None], "requires_safety_checker": False},
    }
    pipeline = "StableDiffusionXLPipeline" if len(encoders) > 1 else "StableDiffusionPipeline"
    return {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        **settings[pipeline],
        "scheduler": ["diffusers", components.scheduler.get("_class_name", SCHEDULER)],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(components.vae).__name__],
        **{f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"] for suffix in encoders},
        **{f"text_encoder{suffix}": ["transformers", type(each.network).__name__] for suffix, each in encoders.items()},
        "feature_extractor": [None, None],
        "image_encoder": ["transformers", image_encoder] if image_encoder else [None, None],
    }


def checkpoint_to_folder(file: str | Path, folder: str | Path, *, config: str | Path | None = None) -> Path:
    """Convert a checkpoint in a single file to a new folder in diffusers layout, and return the folder's path.

    A VideoCrafter checkpoint keeps all its tensors and their dtype, so that `folder_to_videocrafter` restores it; other
    checkpoints are converted to the dtype that models have on this machine's CPU.

    config: as for `load`. Raises InputError if the file has another layout, or tensors are missing, left over or have
    another shape.
    """
    path = Path(file).expanduser()
    tensors, dtype = tensor_files.read_tensors(path), choose_placement("cpu").dtype
    components = video_checkpoints.components_from_checkpoint(
        Checkpoint(path, tensors, config, None, dtype, HubOptions())
    )
    if videocrafter.is_videocrafter(tensors):
        exported = video_checkpoints.components_to_videocrafter(components)
        return save(components, folder, unused={name: each for name, each in tensors.items() if name not in exported})
    if components.temporal_decoder is not None:
        check_decoder_fits(components.temporal_decoder, components.vae, str(path))
        components.temporal_decoder.to(dtype)
    for network in (*components.networks.values(), components.vae):
        network.to(dtype)
    return save(components, folder)


def folder_to_videocrafter(folder: str | Path, file: str | Path) -> Path:
    """Write a folder as a checkpoint in VideoCrafter's layout and return the file's path.

    The format is torch's if the name ends in .ckpt, else safetensors. A file that `checkpoint_to_folder` converted is
    restored bit for bit; another model's file lacks tensors that no network here has, such as the text encoder's last
    layer. Raises InputError if the folder has no temporal layers of VideoCrafter's kind, or anything else that the
    layout cannot hold. Warns if the file can only be opened with the folder as `config`.
    """
    folder, path = Path(folder).expanduser(), Path(file).expanduser()
    weights = sorted((folder / "unet").glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder} has no unet/*.safetensors: expected a folder that Kineograph saved")
    components = components_from_folder(folder, tensor_files.read_dtype(weights[0]))
    config = components.temporal and components.temporal.config
    layers = {site.after for site, _ in config.layers} if config else set()
    if not {"conv_in", "transformer"} <= layers or "cross_attention" in layers:
        raise InputError(
            f"{folder} has other temporal layers than VideoCrafter's, or none: its layout cannot hold them"
        )
    tensors = video_checkpoints.components_to_videocrafter(components)
    if (folder / UNUSED).is_file():
        tensors |= tensor_files.read_tensors(folder / UNUSED)
    _check_restorable(components, tensors, folder)
    with replace_atomically(path) as temporary:
        if path.suffix == ".ckpt":
            torch.save({"state_dict": tensors}, temporary)
        else:
            tensor_files.write_tensors(tensors, temporary)
    return path


def _check_restorable(components: Components, tensors: Tensors, folder: Path) -> None:
    """Raise InputError unless the tensors of a VideoCrafter checkpoint give the model back that is in a folder."""
    file = Checkpoint(folder, tensors, folder, None, components.unet.dtype, HubOptions())
    advice = "keep the folder, which `load` opens"
    try:
        restored = video_checkpoints.components_from_videocrafter(file)
    except InputError as error:
        raise InputError(f"{folder} has layers that VideoCrafter's layout has no place for: {advice}") from error
    lost = [name for name in ("motion_adapter", "temporal_decoder") if getattr(components, name) is not None]
    pairs = [
        (each.temporal.config, Schedule.from_config(each.scheduler)) for each in (components, restored) if each.temporal
    ]
    if pairs[0][0].layers != pairs[1][0].layers or pairs[0][0].frame_rate != pairs[1][0].frame_rate:
        lost.append("temporal layers of another kind")
    if pairs[0][1] != pairs[1][1]:
        lost.append("another noise schedule")
    if lost:
        raise InputError(f"{folder} has {' and '.join(lost)}, which VideoCrafter's layout cannot hold: {advice}")
    if architecture.read_assumed_settings(folder) != architecture.RELEASED_SETTINGS:
        warnings.warn(
            f"the networks in {folder} have other sizes than VideoCrafter's: the file is opened with this folder as "
            "`config`",
            InputWarning,
            stacklevel=3,
        )
