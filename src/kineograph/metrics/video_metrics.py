"""Metrics of single videos, in the four aspects of EvalCrafter (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from kineograph.metrics import optical_flow
from kineograph.metrics.collection import DecodedVideo
from kineograph.metrics.encoders import ClipEncoder
from kineograph.metrics.features import Frames, NamedValues

QUALITY, ALIGNMENT, MOTION, CONSISTENCY = "visual quality", "text alignment", "motion quality", "temporal consistency"
ASPECTS = (QUALITY, ALIGNMENT, MOTION, CONSISTENCY)


class VideoMetric(NamedTuple):
    """One or more values that are measured of each video.

    aspects   name of each value -> its aspect
    protocol  everything that the values depend on besides the video
    measure   a video -> those of the values that it has
    """

    aspects: Mapping[str, str]
    protocol: Mapping[str, Any]
    measure: Callable[[DecodedVideo], NamedValues]


def clip_metric(encoder: ClipEncoder) -> VideoMetric:
    """Return CLIP-T, the mean cosine of frames and prompt, and frame consistency; both times 100.

    CLIP-T is the CLIP score (Hessel et al. 2021) without its rescaling. In a video of several prompts each part is
    compared with its own.
    """

    def measure(video: DecodedVideo) -> NamedValues:
        embeddings = encoder.encode_frames(video.frames)
        if parts := video.prompted_parts:
            prompts = np.concatenate(
                [np.tile(encoder.encode_text(prompt), (len(frames), 1)) for frames, prompt in parts]
            )
            yield "CLIP-T", float(100 * np.mean((embeddings * prompts).sum(axis=1)))
        if len(embeddings) > 1:
            yield "frame consistency", 100 * frame_consistency(embeddings)

    return VideoMetric({"CLIP-T": ALIGNMENT, "frame consistency": CONSISTENCY}, encoder.protocol(), measure)


def frame_consistency(embeddings: Float[np.ndarray, "f d"]) -> float:
    """Return the mean cosine of neighbouring frames' embeddings, which have unit length."""
    return float((embeddings[1:] * embeddings[:-1]).sum(1).mean())


def image_similarity_metric(encoder: ClipEncoder, images: Sequence[Frames], digest: str) -> VideoMetric:
    """Return CLIP-I: the mean cosine of frames with images of a subject or style, times 100.

    Args:
        images: each a video of one frame.
        digest: hash of the images, for the protocol.
    """
    references = np.concatenate([encoder.encode_frames(image) for image in images])

    def measure(video: DecodedVideo) -> NamedValues:
        yield "CLIP-I", float(100 * (encoder.encode_frames(video.frames) @ references.T).mean())

    return VideoMetric({"CLIP-I": ALIGNMENT}, encoder.protocol() | {"pictures": digest}, measure)


def flow_metric() -> VideoMetric:
    """Return motion magnitude, share of followed pixels and warp error, as `optical_flow.measure_flow` defines them.

    Raises InputError when OpenCV is not installed.
    """
    optical_flow.import_flow_library()
    aspects = {"motion": MOTION, "followed": CONSISTENCY, "warp error": CONSISTENCY}
    return VideoMetric(aspects, optical_flow.PROTOCOL, lambda video: optical_flow.measure_flow(video.frames, video.fps))


def sharpness_metric() -> VideoMetric:
    """Return the sharpness, which a blur lowers as it lowers the warp error."""

    def measure(video: DecodedVideo) -> NamedValues:
        if min(video.frames.shape[1:3]) > 2:
            yield "sharpness", sharpness(video.frames)

    return VideoMetric({"sharpness": QUALITY}, {"sharpness": "mean |second difference| of grey levels"}, measure)


def sharpness(frames: Frames) -> float:
    """Return the mean magnitude of the second differences of the grey levels, horizontal and vertical.

    Noise raises it too. Compare videos of one size and of alike content.
    """
    grey = frames.astype(float).mean(-1)
    second = [np.diff(grey, 2, axis=axis) for axis in (1, 2)]
    return float(np.mean([np.abs(each).mean() for each in second]))
