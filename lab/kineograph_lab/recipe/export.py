"""From what the stages left to the folder that is shipped: float16 safetensors in diffusers' own layout."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kineograph.models.pocket import WEIGHTS
from kineograph_lab import WEIGHTS as LABORATORY
from kineograph_lab.recipe.image.tokenizer import vocabulary
from kineograph_lab.recipe.image.unet import SCHEDULER
from kineograph_lab.recipe.image_stages import pools, told
from kineograph_lab.recipe.networks import SIDE
from kineograph_lab.recipe.settings import Settings
from kineograph_lab.world import edits
from kineograph_lab.world.truth import MAPS


def export(settings: Settings, out: Path, weights: Path = WEIGHTS, laboratory: Path = LABORATORY) -> None:
    """Write the pipeline, `clip/`, `control/`, `edit/`, `judge/` and the words that each model knows into `weights`."""
    clip = CLIPModel.from_pretrained(out / "clip" / "final").half()
    tokens = CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")
    _export_pipeline(out, weights, tokens)
    _export_clip(weights / "clip", clip, tokens)
    for kind in MAPS:
        _export_tensors(out / "control" / f"{kind}.safetensors", weights / "control")
    _export_tensors(out / "edit.safetensors", weights / "edit")
    for judge in ("judge", "geometry"):
        _export_tensors(out / f"{judge}.safetensors", laboratory / "judge")
    known = vocabulary(told(pools(settings, out)[0]))
    _export_words(weights / "vocabulary.json", known)
    _export_words(weights / "edit" / "vocabulary.json", vocabulary(edits.words()))


def _export_tensors(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half() for name, weight in load_file(file).items()}, folder / file.name)


def _export_words(file: Path, words: list[str]) -> None:
    file.write_text(json.dumps(words, indent=0) + "\n")


def _export_pipeline(out: Path, weights: Path, tokens: CLIPTokenizer) -> None:
    networks = {
        "vae": AutoencoderKL.from_pretrained(out / "vae" / "final").half(),
        "unet": UNet2DConditionModel.from_pretrained(out / "unet" / "final").half(),
    }
    for network in networks.values():
        network.register_to_config(_name_or_path="")  # a path of this machine is nobody's business
    text = CLIPTextModel.from_pretrained(out / "text" / "final").half()
    StableDiffusionPipeline(
        **networks, text_encoder=text, tokenizer=tokens, scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(weights)  # fmt: skip


def _export_clip(folder: Path, clip: CLIPModel, tokens: CLIPTokenizer) -> None:
    clip.save_pretrained(folder)
    tokens.save_pretrained(folder)
    config = folder / "config.json"  # half the bytes on disk, but read as what a CPU computes in
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    middle = [0.5, 0.5, 0.5]
    size, crop = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size=size, crop_size=crop, image_mean=middle, image_std=middle).save_pretrained(folder)
