"""Who is asked what the pictures show: the pocket world's judge, and its CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer

from kineograph.metrics.features import Frames
from kineograph.models.loading.provenance import fingerprint
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab.judge.geometry import Geometry, load_geometry_network
from kineograph_lab.judge.networks import Judge, load_judge
from kineograph_lab.recipe.images import to_tensor
from kineograph_lab.studies.frame_metrics import JudgedFrames


class Witnesses(NamedTuple):
    """What is asked of each video, and the hashes of the weights that answer.

    look    what is in each frame
    alike   the cosine of each frame with a text
    embed   an embedding of each frame, of unit length
    move    how the main thing moves
    survey  how far each part of each frame is, and where its thing's ends are
    """

    look: Callable[[Frames], JudgedFrames]
    alike: Callable[[Frames, str], Float[np.ndarray, " f"]]
    embed: Callable[[Frames], Float[np.ndarray, "f d"]]
    move: Callable[[Frames], str]
    survey: Callable[[Frames], Geometry]
    weights: Mapping[str, str]


def pocket_witnesses() -> Witnesses:
    """The judge and the CLIP that come with the pocket model."""
    judge, eye = load_judge(), load_geometry_network()
    clip = CLIPModel.from_pretrained(POCKET / "clip", local_files_only=True).eval()
    tokens = CLIPTokenizer.from_pretrained(POCKET / "clip", local_files_only=True)
    return Witnesses(
        look=lambda frames: _seen(judge, frames),
        alike=lambda frames, text: _cosines(clip, tokens, frames, text),
        embed=lambda frames: _embedded(clip, frames),
        move=judge.classify_motion,
        survey=eye.predict,
        weights={"judge": fingerprint(judge.eye), "clip": fingerprint(clip), "geometry": fingerprint(eye)},
    )


def _seen(judge: Judge, frames: Frames) -> JudgedFrames:
    seen = judge.classify(frames)
    return JudgedFrames(seen.subject, seen.colour, seen.scene, seen.style, seen.identity.astype(float))


@torch.no_grad()
def _embedded(clip: CLIPModel, frames: Frames) -> Float[np.ndarray, "f d"]:
    found = clip.get_image_features(pixel_values=to_tensor(frames))
    found = getattr(found, "pooler_output", found)  # a tensor until transformers 5
    return normalize(found, dim=-1).double().numpy()


@torch.no_grad()
def _cosines(clip: CLIPModel, tokens: CLIPTokenizer, frames: Frames, text: str) -> Float[np.ndarray, " f"]:
    words = tokens([text], padding="max_length", truncation=True, return_tensors="pt").input_ids
    both = clip(input_ids=words, pixel_values=to_tensor(frames))
    return (both.image_embeds @ both.text_embeds.T)[:, 0].double().numpy()
