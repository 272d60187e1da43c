"""Networks that judge generated frames: the pocket world's judge, its geometry network and its CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizer

from kineograph.metrics.features import Frames
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab.judge.geometry import Geometry, load_geometry_network
from kineograph_lab.judge.networks import Judge, load_judge
from kineograph_lab.recipe.images import to_tensor
from kineograph_lab.studies.frame_metrics import JudgedFrames
from kineograph_lab.studies.weights import JUDGES, hash_models


class Judges(NamedTuple):
    """Functions that evaluate a video, and the hashes of the weights behind them.

    classify          subject, colour, scene, style and identity of each frame
    text_similarity   cosine of each frame with a text (CLIP)
    embed             embedding of unit length of each frame (CLIP)
    classify_motion   motion of the main subject
    predict_geometry  depth of each part of each frame, and its subject's keypoints
    weight_hashes     network -> SHA-256 of its file; the judge's file has the image and the motion classifier
    """

    classify: Callable[[Frames], JudgedFrames]
    text_similarity: Callable[[Frames, str], Float[np.ndarray, " f"]]
    embed: Callable[[Frames], Float[np.ndarray, "f d"]]
    classify_motion: Callable[[Frames], str]
    predict_geometry: Callable[[Frames], Geometry]
    weight_hashes: Mapping[str, str]


def load_pocket_judges() -> Judges:
    """Load the judge, the geometry network and the pocket model's CLIP."""
    judge, geometry = load_judge(), load_geometry_network()
    clip = CLIPModel.from_pretrained(POCKET / "clip", local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(POCKET / "clip", local_files_only=True)
    return Judges(
        classify=lambda frames: _classify(judge, frames),
        text_similarity=lambda frames, text: _text_cosines(clip, tokenizer, frames, text),
        embed=lambda frames: _embed(clip, frames),
        classify_motion=judge.classify_motion,
        predict_geometry=geometry.predict,
        weight_hashes={name: sha256 for name, files in hash_models(JUDGES).items() for sha256 in files.values()},
    )


def _classify(judge: Judge, frames: Frames) -> JudgedFrames:
    labels = judge.classify(frames)
    return JudgedFrames(labels.subject, labels.colour, labels.scene, labels.style, labels.identity.astype(float))


@torch.no_grad()
def _embed(clip: CLIPModel, frames: Frames) -> Float[np.ndarray, "f d"]:
    features = clip.get_image_features(pixel_values=to_tensor(frames))
    features = getattr(features, "pooler_output", features)  # a tensor until transformers 5
    return normalize(features, dim=-1).double().numpy()


@torch.no_grad()
def _text_cosines(clip: CLIPModel, tokenizer: CLIPTokenizer, frames: Frames, text: str) -> Float[np.ndarray, " f"]:
    token_ids = tokenizer([text], padding="max_length", truncation=True, return_tensors="pt").input_ids
    outputs = clip(input_ids=token_ids, pixel_values=to_tensor(frames))
    return (outputs.image_embeds @ outputs.text_embeds.T)[:, 0].double().numpy()
