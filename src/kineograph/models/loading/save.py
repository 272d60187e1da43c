"""A model as a folder in diffusers layout, which `load` opens, and whose image model diffusers opens too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.formats import tensor_files, videocrafter
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.loading import adapter_files, components, known_configurations, video_checkpoints, video_folder
from kineograph.models.loading.components import INDEX, Components
from kineograph.models.model import Model

SCHEDULER = "DDIMScheduler"  # whose configuration says what others say too
UNUSED = "unused.safetensors"
VOCABULARY = "vocabulary.json"  # a list, beside a model that was trained on no other words


def save(model: Model | Components, folder: str | Path, *, unused: Tensors | None = None) -> Path:
    """Write a model into a new folder, in the number format that it has now. The path of the folder.

    unused: what the file that it was made from holds and no network here has, so that it can be made again.
    It is written beside and renamed, so that there is a whole folder or none.
    Raises InputError when something is there already, for a model with LoRAs or a spatial adapter on it, which the
    folder has no place for, and for one whose noise schedule no configuration describes.
    """
    folder, parts = Path(folder).expanduser(), model_components(model) if isinstance(model, Model) else model
    if folder.exists():
        raise InputError(f"{folder} is there already: choose another folder, or remove it")
    for name, network in parts.networks.items():
        _refuse_adapters(name, network)
    if parts.spatial_adapter is not None:
        raise InputError("the model has a spatial adapter, which a folder has no place for: load it without adapter=")
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _write(parts, beside, folder.name)
        if isinstance(model, Model) and model.vocabulary is not None:
            (beside / VOCABULARY).write_text(json.dumps(sorted(model.vocabulary)))
        if unused:
            save_file(dict(unused), beside / UNUSED)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def model_components(model: Model) -> Components:
    """A model's networks and settings, as they were opened."""
    if not model.schedule.settings:
        raise InputError(f"the noise schedule of {model.name} was made from tables, and no configuration describes it")
    return Components(
        unet=model.net.image_unet,
        vae=model.vae,
        text=model.text,
        scheduler=model.schedule.settings,
        force_zeros_for_empty_prompt=model.force_zeros_for_empty_prompt,
        image_encoder=model.image_encoder,
        temporal=model.net.temporal,
        temporal_decoder=model.temporal_decoder,
        motion_adapter=model.net.motion_adapter,
        spatial_adapter=model.net.spatial_adapter,
    )


def _refuse_adapters(name: str, network: nn.Module) -> None:
    if any(isinstance(layer, LoraLayer) for layer in network.modules()):
        raise InputError(f"{name} has LoRAs on it, which a folder has no place for: load the model without them")


def _write(parts: Components, folder: Path, name: str) -> None:
    ends = ["", "_2"][: len(parts.text)]
    for end, encoder in zip(ends, parts.text, strict=True):
        encoder.tokenizer.save_pretrained(folder / f"tokenizer{end}")
        encoder.network.save_pretrained(folder / f"text_encoder{end}")
    parts.vae.save_pretrained(folder / "vae")
    video_folder.write_unet(parts.unet, folder / "unet")
    video_folder.write_image_adapter(parts.unet, parts.image_encoder, folder)
    if parts.temporal is not None:
        video_folder.write_temporal_layers(parts.temporal, folder / video_folder.TEMPORAL)
    if parts.temporal is not None and parts.motion_adapter is not None:
        file = folder / video_folder.MOTION_ADAPTER / video_folder.MOTION_ADAPTER_WEIGHTS
        adapter_files.save_motion_adapter(parts.motion_adapter, parts.temporal, file, name=name)
    if parts.temporal_decoder is not None:
        video_folder.write_temporal_decoder(parts.temporal_decoder, folder / video_folder.TEMPORAL_DECODER)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": SCHEDULER, **parts.scheduler}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    (folder / INDEX).write_text(json.dumps(_index(parts, ends), indent=2))


def _index(parts: Components, ends: list[str]) -> dict[str, object]:
    texts = dict(zip(ends, parts.text, strict=True))
    reader = parts.image_encoder and type(parts.image_encoder.network).__name__
    own: dict[str, dict[str, object]] = {
        "StableDiffusionXLPipeline": {"force_zeros_for_empty_prompt": parts.force_zeros_for_empty_prompt},
        "StableDiffusionPipeline": {"safety_checker": [None, None], "requires_safety_checker": False},
    }
    kind = "StableDiffusionXLPipeline" if len(ends) > 1 else "StableDiffusionPipeline"
    return {
        "_class_name": kind,
        "_diffusers_version": diffusers.__version__,
        **own[kind],
        "scheduler": ["diffusers", parts.scheduler.get("_class_name", SCHEDULER)],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{f"tokenizer{end}": ["transformers", "CLIPTokenizer"] for end in texts},
        **{f"text_encoder{end}": ["transformers", type(each.network).__name__] for end, each in texts.items()},
        "feature_extractor": [None, None],
        "image_encoder": ["transformers", reader] if reader else [None, None],
    }


def videocrafter_to_folder(
    file: str | Path, folder: str | Path, *, config: str | Path | None = None, hub_options: HubOptions | None = None
) -> Path:
    """A released checkpoint as a new folder in diffusers layout, which keeps all that the file holds.

    config: as for `load`, with the tokenizer at least, unless that is in reach on the Hub.
    Raises InputError for another kind of file, and where tensors are missing, left over or of another shape.
    """
    path = Path(file).expanduser()
    tensors = tensor_files.read_tensors(path)
    if not videocrafter.is_videocrafter(tensors):
        raise InputError(f"{path} is no VideoCrafter checkpoint. {known_configurations.describe_tensors(tensors)}")
    opened = video_checkpoints.components_from_videocrafter(path, tensors, config, None, torch.float32, HubOptions())
    placed = video_checkpoints.components_to_videocrafter(opened)
    return save(opened, folder, unused={name: each for name, each in tensors.items() if name not in placed})


def folder_to_videocrafter(folder: str | Path, file: str | Path) -> Path:
    """A folder as a checkpoint in VideoCrafter's layout: safetensors, or what torch writes if the name is `*.ckpt`.

    Of a folder that `to_folder` made it is the same file again, bit for bit. Of another model it lacks what no network
    here has, such as the text tower's last layer.
    Raises InputError for a folder without VideoCrafter's layers along time.
    """
    folder, path = Path(folder).expanduser(), Path(file).expanduser()
    opened = components.components_from_folder(folder, _dtype(folder))
    _refuse_others(folder, opened)
    tensors = video_checkpoints.components_to_videocrafter(opened)
    if (folder / UNUSED).is_file():
        tensors |= tensor_files.read_tensors(folder / UNUSED)
    beside = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".ckpt":
            torch.save({"state_dict": tensors}, beside)
        else:
            save_file(tensors, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _dtype(folder: Path) -> torch.dtype:
    weights = sorted((folder / "unet").glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder} has no unet/*.safetensors: expected a folder that Kineograph saved")
    return next(iter(tensor_files.read_tensors(weights[0]).values())).dtype


def _refuse_others(folder: Path, opened: Components) -> None:
    config = opened.temporal and opened.temporal.config
    if config is None or not (config.layer_after("conv_in") and config.layer_after("transformer")):
        raise InputError(f"{folder} has other layers along time than VideoCrafter's, or none: its layout has no place")
