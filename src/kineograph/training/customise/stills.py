"""Pictures that a model draws: of the prior, to look at, and for whatever is trained on them next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph import noise
from kineograph.denoise import classifier_free_guidance, refuse_nan
from kineograph.media.files import instead_of, slug
from kineograph.media.video import Video
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.samplers import dpmpp_2m, final_latents
from kineograph.sigmas import leading
from kineograph.training.customise.settings import SamplingSettings


class GeneratedImages(NamedTuple):
    """How many pictures are in a folder, of how many, and their files, in order."""

    done: int
    total: int
    files: list[Path]


def generate_images(
    model: Model, prompts: Sequence[str], drawing: SamplingSettings, *, size: tuple[int, int], seed: int
) -> UInt8[np.ndarray, "n h w 3"]:
    """A picture of each prompt, drawn together. Picture j depends on `seed + j` alone, but for the last bit.

    size: height and width in pixels. Raises ValueError for a picture that holds NaN.
    """
    told, blank = (model.bind(model.prompt(texts, size=size)) for texts in (list(prompts), [""]))
    look = refuse_nan(classifier_free_guidance(told, blank, max(1.0, drawing.guidance_scale)))
    sigmas = leading(model.schedule.sigmas, drawing.num_inference_steps)
    begin = noise.independent(seed, [0], (len(prompts), *model.latent_shape(*size))).to(model.device)
    return Video.from_tensor(model.decode(final_latents(dpmpp_2m(look, sigmas[0] * begin, sigmas)))[:, 0]).frames


def generate_missing_images(
    model: Model, prompts: Sequence[str], folder: Path, drawing: SamplingSettings, *, size: tuple[int, int], seed: int
) -> Iterator[GeneratedImages]:
    """Draws pictures into a folder, `drawing.at_once` at a time, and passes over those that are there already.

    Pictures drawn by another model, or otherwise, are in another folder in there. A picture is whole or absent, and
    all that are drawn at once are drawn again where one is missing, so that a kill changes nothing. Raises OSError
    when they cannot be written.
    """
    home = folder / _name(model, prompts, drawing, size, seed)
    files = [home / f"{number:05d}.png" for number in range(len(prompts))]
    for start in range(0, len(files), drawing.at_once):
        some = files[start : start + drawing.at_once]
        if not all(file.is_file() for file in some):
            asked = prompts[start : start + len(some)]
            for file, pixels in zip(
                some, generate_images(model, asked, drawing, size=size, seed=seed + start), strict=True
            ):
                save_png(pixels, file)
        yield GeneratedImages(start + len(some), len(files), files)


def save_png(pixels: UInt8[np.ndarray, "h w 3"], file: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with instead_of(file) as part:
        Image.fromarray(pixels).save(part, "PNG")


def _name(model: Model, prompts: Sequence[str], drawing: SamplingSettings, size: tuple[int, int], seed: int) -> str:
    """Of a folder: after what is drawn, and all that decides how."""
    how = [fingerprints(model), str(model.dtype), list(prompts), drawing.model_dump(), list(size), seed]
    return f"{slug(prompts[0])}-{hashlib.sha256(json.dumps(how).encode()).hexdigest()[:12]}"
