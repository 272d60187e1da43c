"""A model as a folder in diffusers layout, which `load` opens, and whose image model diffusers opens too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
from peft.tuners.lora import LoraLayer
from torch import nn

from kineograph.errors import InputError
from kineograph.models import video_folder
from kineograph.models.model import Model
from kineograph.models.parts import INDEX, Parts

VOCABULARY = "vocabulary.json"  # a list, beside a model that was trained on no other words


def save(model: Model | Parts, folder: str | Path) -> Path:
    """Write a model into a new folder, in the number format that it has now. The path of the folder.

    It is written beside and renamed, so that there is a whole folder or none.
    Raises InputError when something is there already, for a model with LoRAs on it, which the folder has no place for,
    and for one whose noise schedule no configuration describes.
    """
    folder, parts = Path(folder).expanduser(), parts_of(model) if isinstance(model, Model) else model
    if folder.exists():
        raise InputError(f"{folder} is there already: choose another folder, or remove it")
    for name, network in parts.networks.items():
        _refuse_adapters(name, network)
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _write(parts, beside)
        if isinstance(model, Model) and model.vocabulary is not None:
            (beside / VOCABULARY).write_text(json.dumps(sorted(model.vocabulary)))
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def parts_of(model: Model) -> Parts:
    """A model's networks and settings, as they were opened."""
    if not model.schedule.settings:
        raise InputError(f"the noise schedule of {model.name} was made from tables, and no configuration describes it")
    return Parts(
        unet=model.net.image_unet,
        vae=model.vae,
        text=model.text,
        scheduler=model.schedule.settings,
        force_zeros=model.force_zeros,
        reader=model.reader,
        temporal=model.net.temporal,
    )


def _refuse_adapters(name: str, network: nn.Module) -> None:
    if any(isinstance(layer, LoraLayer) for layer in network.modules()):
        raise InputError(f"the {name} has LoRAs on it, which a folder has no place for: load the model without them")


def _write(parts: Parts, folder: Path) -> None:
    ends = ["", "_2"][: len(parts.text)]
    for end, encoder in zip(ends, parts.text, strict=True):
        encoder.tokenizer.save_pretrained(folder / f"tokenizer{end}")
        encoder.network.save_pretrained(folder / f"text_encoder{end}")
    parts.vae.save_pretrained(folder / "vae")
    video_folder.write_unet(parts.unet, folder / "unet")
    video_folder.write_adapter(parts.unet, parts.reader, folder)
    if parts.temporal is not None:
        video_folder.write_temporal(parts.temporal, folder / video_folder.TEMPORAL)
    scheduler = {"_class_name": "DDIMScheduler", "_diffusers_version": diffusers.__version__, **parts.scheduler}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    (folder / INDEX).write_text(json.dumps(_index(parts, ends), indent=2))


def _index(parts: Parts, ends: list[str]) -> dict[str, object]:
    texts = dict(zip(ends, parts.text, strict=True))
    return {
        "_class_name": "StableDiffusionXLPipeline" if len(ends) > 1 else "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "force_zeros_for_empty_prompt": parts.force_zeros,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{f"tokenizer{end}": ["transformers", "CLIPTokenizer"] for end in texts},
        **{f"text_encoder{end}": ["transformers", type(each.network).__name__] for end, each in texts.items()},
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None] if parts.reader is None else ["transformers", type(parts.reader.network).__name__],
    }
