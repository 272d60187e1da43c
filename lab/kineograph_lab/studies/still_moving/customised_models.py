"""Methods that customise a video model to a subject or style: Still-Moving, its ablations and the baselines.

Each is trained by the library's own functions, in a folder of the video model and the item, and resumes there if it was
stopped. The methods share the customised image network, the still videos that it generates, and the natural videos.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from kineograph.media.files import replace_atomically
from kineograph.methods import still_moving
from kineograph.metrics.features import Frames
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.model import Model
from kineograph.training.customise import (
    VideoCustomisationSettings,
    customise_video,
    default_video_settings,
    inject_customised,
    load_customised_video,
    train_interleaved,
    with_changes,
)
from kineograph.training.customise.adapters import merge_loras
from kineograph.training.customise.phases import ADAPTER_FILE, WHOLE
from kineograph.training.temporal_layers.run import FINAL
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import METRIC_VERSION, SAMPLER_VERSION, WORLD_VERSION
from kineograph_lab.studies.still_moving.items import Item, content, held_out_case, write_reference_images

FOLDER = Path("runs/still_moving")
OURS, INTERLEAVED, IMAGE = "ours", "interleaved", "image"  # folders
SHARED = (IMAGE, "stills", "latents")  # folders that Still-Moving and its ablations share
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)

Customise = Callable[[Model, Item], Model]  # (video model, item) -> customised video model
GenerateCase = partial[Frames]  # (model, case) -> frames; its keywords are the settings of sampling

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "no motion adapter": {"still_scale": 0.0},
    "all weights learn": {"spatial": None, "training": {"learning_rate": 1e-4}},
    "no natural videos": {"natural_weight": 0.0},
}


def customisation_settings(video: Model, item: Item, changes: Mapping[str, Any]) -> VideoCustomisationSettings:
    """Return the default settings with these changes, and with natural videos that all items share."""
    return with_changes(
        default_video_settings(video, item.kind), {"natural_folder": FOLDER / video.name / "natural", **changes}
    )


def item_folder(video: Model, item: Item) -> Path:
    """Return the folder of everything trained for an item."""
    return FOLDER / video.name / _folder_name(item.name)


def trained_files(video: Model, item: Item, name: str) -> list[Path]:
    """Return the weight files that a training of an item left: adapters, image networks, or a whole model."""
    folder = item_folder(video, item) / _folder_name(name)
    patterns = (ADAPTER_FILE, f"{IMAGE}/{FINAL}/*.safetensors", f"{FINAL}/*.safetensors", f"{WHOLE}/**/*.safetensors")
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def customise_with_still_moving(video: Model, item: Item) -> Model:
    """Customise by Still-Moving."""
    return load_customised_video(video, _run_customisation(video, item, OURS))


def customise_without(name: str, video: Model, item: Item) -> Model:
    """Customise by Still-Moving without one of its parts, with the same image network and still videos."""
    customised, folder = _run_customisation(video, item, OURS), item_folder(video, item) / _folder_name(name)
    for each in SHARED:
        if not (folder / each).exists():
            with replace_atomically(folder / each) as part:
                shutil.copytree(customised / each, part)
    return load_customised_video(video, _run_customisation(video, item, name))


@cache
def _run_customisation(video: Model, item: Item, name: str) -> Path:
    """Run or resume a customisation and return its folder; cached, since checking a finished one takes seconds."""
    folder = item_folder(video, item) / _folder_name(name)
    images = write_reference_images(item, item_folder(video, item) / "photos")
    settings = customisation_settings(video, item, ABLATIONS.get(name, {}))
    subject, style = _subject_and_style(item)
    _run_to_end(customise_video(video, images, folder, subject=subject, style=style, settings=settings))
    return folder


def _folder_name(name: str) -> str:
    return name.replace(" ", "-")


def customise_by_injection(video: Model, item: Item) -> Model:
    """Put the customised image network under the temporal layers, without adapters."""
    return inject_customised(video, _run_customisation(video, item, OURS) / IMAGE / FINAL)


def customise_by_interpolation(generate_case: GenerateCase, judges: Judges, video: Model, item: Item) -> Model:
    """Customise by weight interpolation; the customised network's share is the one that scores best on the item."""
    customised = customise_by_injection(video, item)
    file = item_folder(video, item) / "interpolation.json"
    chosen_for = {
        "shares": list(SHARES), "judges": dict(judges.weight_hashes), "sampling": dict(generate_case.keywords),
        "versions": [SAMPLER_VERSION, METRIC_VERSION, WORLD_VERSION],
        "networks": [fingerprint(each.net) for each in (video, customised)],
    }  # fmt: skip
    earlier = json.loads(file.read_text()) if file.exists() else {}
    if earlier.get("chosen_for") != chosen_for:
        videos = {share: generate_case(_interpolate(video, customised, share), held_out_case(item)) for share in SHARES}
        scores = {share: _score(frames, item, judges) for share, frames in videos.items()}
        earlier = {"share": max(scores, key=lambda each: scores[each]), "scores": scores, "chosen_for": chosen_for}
        with replace_atomically(file) as part:
            part.write_text(json.dumps(earlier))
    return _interpolate(video, customised, float(earlier["share"]))


def _interpolate(video: Model, customised: Model, share: float) -> Model:
    image = deepcopy(customised.net.image_unet)
    merge_loras(image)
    mixed = still_moving.interpolate_weights(image, video.net.image_unet, share)
    return replace(customised, net=still_moving.inject(mixed, video.net))


def _score(frames: Frames, item: Item, judges: Judges) -> float:
    """Return the sum of CLIP-I and CLIP-T of a video of the held-out prompt."""
    text_similarity = judges.text_similarity(frames, content(held_out_case(item))).mean()
    return float(text_similarity + (judges.embed(frames) @ judges.embed(item.images).T).mean())


def customise_by_interleaved_training(video: Model, item: Item) -> Model:
    """Customise by training on images and natural videos in turn."""
    folder = item_folder(video, item) / INTERLEAVED
    images = write_reference_images(item, item_folder(video, item) / "photos")
    subject, style = _subject_and_style(item)
    settings = customisation_settings(video, item, {})
    _run_to_end(train_interleaved(video, images, folder, subject=subject, style=style, settings=settings))
    return inject_customised(video, folder / FINAL)


def _subject_and_style(item: Item) -> tuple[str | None, str | None]:
    return (item.phrase, None) if item.kind == "subject" else (None, item.phrase)


def _run_to_end(steps: Iterable[object]) -> None:
    """Exhaust the steps of a training."""
    for _ in steps:
        pass
