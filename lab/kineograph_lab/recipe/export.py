"""Export of stage outputs to the shipped folders: float16 safetensors in diffusers' layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kineograph.models.loading.save import VOCABULARY
from kineograph.models.loading.video_folder import MOTION_ADAPTER_WEIGHTS, TEMPORAL_DECODER, write_layers
from kineograph.models.pocket import WEIGHTS
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.vae.temporal_decoder import TemporalDecoder
from kineograph_lab import WEIGHTS as LABORATORY
from kineograph_lab.recipe.image.unet import SCHEDULER
from kineograph_lab.recipe.layer_stages import DECODER, MOTION_ADAPTER, SPACE_TIME, SPACE_TIME_MOTION, VIDRD
from kineograph_lab.recipe.networks import SIDE
from kineograph_lab.recipe.outputs import TEXT_TO_VIDEO
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.recipe.unpack import COPIED, NETWORKS, TENSORS
from kineograph_lab.recipe.video import image_to_video, temporal_decoder, temporal_layers, text_to_video
from kineograph_lab.recipe.video_stages import DEGRADED, IMAGE_TO_VIDEO
from kineograph_lab.world import edits, wide
from kineograph_lab.world.truth import CONTROL_MAPS


def export_image_models(
    settings: RecipeSettings, out: Path, weights: Path = WEIGHTS, laboratory: Path = LABORATORY
) -> None:
    """Write the pipeline, `clip/`, `control/`, `edit/`, `judge/` and each model's vocabulary."""
    clip_model = CLIPModel.from_pretrained(out / "clip" / "final").half()
    tokenizer = CLIPTokenizer.from_pretrained(out / "text" / "tokenizer")
    _export_pipeline(out, weights, tokenizer)
    _export_clip(weights / "clip", clip_model, tokenizer)
    for kind in CONTROL_MAPS:
        _export_tensors(out / "control" / f"{kind}.safetensors", weights / "control")
    _export_tensors(out / "edit.safetensors", weights / "edit")
    for judge in ("judge", "geometry", "parts"):
        _export_tensors(out / f"{judge}.safetensors", laboratory / "judge")
    phrases = {**wide.wide_phrases(), "edits": edits.instruction_phrases()}
    (weights / VOCABULARY).write_text(json.dumps(phrases, indent=0) + "\n")


def export_finished(out: Path, folder: Path, stages: Collection[str]) -> None:
    """Write the finished results of these stages into a folder in the layout of what ships; existing files stay.

    Another machine goes on from them (`unpack_shipped` of that folder), and moving them to where they ship later adds
    nothing to the repository's history.
    """

    def is_new(result: str, source: str, stage: str) -> bool:
        return stage in stages and (out / result).exists() and not (folder / source).exists()

    for result, (kind, source) in NETWORKS.items():
        if is_new(result, source, Path(result).parts[0]):
            network = kind.from_pretrained(out / result).half()
            if hasattr(network, "register_to_config"):
                network.register_to_config(_name_or_path="")
            network.save_pretrained(folder / source)
    for table, write in ((TENSORS, _save_as_float16), (COPIED, lambda target, file: shutil.copy(file, target))):
        for result, source in table.items():
            if is_new(result, source, Path(result).stem):
                (folder / source).parent.mkdir(parents=True, exist_ok=True)
                write(folder / source, out / result)


def _export_tensors(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half() for name, weight in load_file(file).items()}, folder / file.name)


def _export_pipeline(out: Path, weights: Path, tokenizer: CLIPTokenizer) -> None:
    networks = {
        "vae": AutoencoderKL.from_pretrained(out / "vae" / "final").half(),
        "unet": UNet2DConditionModel.from_pretrained(out / "unet" / "final").half(),
    }
    for network in networks.values():
        network.register_to_config(_name_or_path="")  # not a path of this machine
    text = CLIPTextModel.from_pretrained(out / "text" / "final").half()
    StableDiffusionPipeline(
        **networks, text_encoder=text, tokenizer=tokenizer, scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(weights)  # fmt: skip


def _export_clip(folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "config.json"  # float16 on disk, loaded as float32, in which a CPU computes
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    middle = [0.5, 0.5, 0.5]
    size, crop = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size=size, crop_size=crop, image_mean=middle, image_std=middle).save_pretrained(folder)


def export_video_models(
    settings: RecipeSettings, out: Path, weights: Path = WEIGHTS, laboratory: Path = LABORATORY
) -> None:
    """Write `video/`, `animate/`, `video-degraded/`, `vidrd/` and `space-time/`, as changes of the pocket model."""
    export_text_to_video(settings, out, weights)
    export_image_to_video(out, weights)
    export_motion_adapter(out, weights)
    export_degraded(out, weights, laboratory)
    export_vidrd(out, weights)
    export_space_time(out, weights, laboratory)


def export_text_to_video(settings: RecipeSettings, out: Path, weights: Path) -> None:
    """Write `video/`: temporal layers and changed layers, text encoder, schedule."""
    folder = weights / "video"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(text_to_video.TEXT_TO_VIDEO.model_dump(mode="json"), indent=2) + "\n"
    )
    DDIMScheduler(**text_to_video.SCHEDULER).save_pretrained(folder / "scheduler")
    _save_as_float16(folder / "video.safetensors", out / TEXT_TO_VIDEO)
    CLIPTextModel.from_pretrained(out / "moving_text" / "final").half().save_pretrained(folder / "text_encoder")


def export_image_to_video(out: Path, weights: Path) -> None:
    """Write `animate/`: the layers that read image tokens."""
    folder = weights / "animate"
    folder.mkdir(exist_ok=True)
    (folder / "resampler.json").write_text(image_to_video.RESAMPLER.model_dump_json(indent=2) + "\n")
    _save_as_float16(folder / "animate.safetensors", out / IMAGE_TO_VIDEO)


def export_motion_adapter(out: Path, weights: Path) -> None:
    """Write the motion adapter to `video/`."""
    shutil.copy(out / MOTION_ADAPTER, weights / "video" / MOTION_ADAPTER)


def export_degraded(out: Path, weights: Path, laboratory: Path) -> None:
    """Write `video-degraded/`: low-rank changes of the video network by training on degraded clips."""
    folder = laboratory / "video-degraded"
    folder.mkdir(parents=True, exist_ok=True)
    _save_as_float16(folder / "degraded.safetensors", out / DEGRADED)


def export_vidrd(out: Path, weights: Path) -> None:
    """Write `vidrd/`: VidRD's layers, the changes of the `video/` network, and the temporal decoder."""
    folder = _export_layers(weights, weights / "vidrd", temporal_layers.VIDRD_CONFIG, out / VIDRD)
    shutil.rmtree(folder / TEMPORAL_DECODER, ignore_errors=True)
    layers = TemporalDecoder(temporal_decoder.decoder_config(AutoencoderKL.from_pretrained(out / "vae" / "final")))
    layers.load_state_dict(load_file(out / DECODER))
    write_layers(layers.half(), folder / TEMPORAL_DECODER)


def export_space_time(out: Path, weights: Path, laboratory: Path) -> None:
    """Write `space-time/`: Lumiere's layers, the changes of the `video/` network, and their motion adapter."""
    folder = _export_layers(weights, laboratory / "space-time", temporal_layers.SPACE_TIME_CONFIG, out / SPACE_TIME)
    shutil.copy(out / SPACE_TIME_MOTION, folder / MOTION_ADAPTER_WEIGHTS)


def _export_layers(weights: Path, folder: Path, config: TemporalConfig, trained: Path) -> Path:
    """Write the folder of other temporal layers for the `video/` network and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    _save_as_float16(folder / f"{folder.name}.safetensors", trained)
    return folder


def _save_as_float16(path: Path, file: Path) -> None:
    tensors = load_file(file)
    save_file({name: each.half() if each.is_floating_point() else each for name, each in tensors.items()}, path)
