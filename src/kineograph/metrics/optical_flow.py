"""Motion magnitude and warp error of videos, from the optical flow between neighbouring frames.

The flow is OpenCV's DIS (Kroeger et al. 2016), which needs no weights. Frames are uint8 [f h w 3].
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from kineograph.media.images import center_crop_resize, import_opencv
from kineograph.metrics.features import Frames, NamedValues

FLOW_SIDE = 256  # pixels of the shorter side: flow and grey levels depend on the size
AGREE, SLACK = 0.01, 0.5  # forward and backward flow may differ by 1 % of their squares plus half a pixel squared

Flow = Float[np.ndarray, "h w 2"]
Mask = Bool[np.ndarray, "h w"]

PROTOCOL: dict[str, Any] = {"flow": "DIS, medium", "resize": f"Lanczos, the shorter side to {FLOW_SIDE}"}


def import_flow_library() -> Any:
    """Return the module `cv2`. Raises InputError when OpenCV is not installed."""
    return import_opencv("measuring motion and warp error")


def measure_flow(frames: Frames, fps: float) -> NamedValues:
    """Yield the motion magnitude, the share of followed pixels and the warp error; nothing for a single frame.

    motion      mean length of the flow, in widths and heights of the frame per second.
    followed    share of pixels whose forward and backward flow agree.
    warp error  mean difference between a pixel and the one the flow maps it to, in grey levels of 255, over the
                followed pixels (Lai et al. 2018). A frozen video has none, and one that breaks up leaves few pixels to
                compare: read it together with the other two.
    """
    pairs = [_compare_frames(*pair) for pair in pairwise(_resize_frames(frames))]
    if not pairs:
        return
    lengths, errors, followed = zip(*pairs, strict=True)
    yield "motion", float(fps * np.mean(lengths))
    yield "followed", float(np.mean(followed))
    if not np.isnan(errors).all():
        yield "warp error", float(np.nanmean(errors))


def _compare_frames(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Return the mean length of the flow between two frames, the warp error and the share of followed pixels."""
    forward, backward = estimate_flow(before, after), estimate_flow(after, before)
    followed = consistent_pixels(forward, backward)
    changed = np.abs(warp_image(after, forward) - before.astype(np.float32)).mean(-1)[followed]
    error = float(changed.mean()) if changed.size else np.nan
    return _mean_length(forward), error, float(followed.mean())


def motion_per_frame(frames: Frames) -> Float[np.ndarray, " pairs"]:
    """Return the mean length of the flow from each frame to the next, in widths and heights of the frame."""
    return np.array([_mean_length(estimate_flow(*pair)) for pair in pairwise(_resize_frames(frames))])


def _mean_length(flow: Flow) -> float:
    height, width = flow.shape[:2]
    return float(np.linalg.norm(flow / (width, height), axis=-1).mean())


def estimate_flow(before: np.ndarray, after: np.ndarray) -> Flow:
    """Return the displacement (right, down) in pixels of each pixel from one image, uint8 [h w 3], to another."""
    cv2 = import_flow_library()
    grey = [cv2.cvtColor(np.ascontiguousarray(each), cv2.COLOR_RGB2GRAY) for each in (before, after)]
    return np.asarray(cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None))


def warp_image(image: np.ndarray, flow: Flow) -> Float[np.ndarray, "h w c"]:
    """Sample an image [h w c] at the target of each pixel's flow, bilinearly; the edge is repeated beyond it."""
    cv2 = import_flow_library()
    right, down = _targets(flow)
    sampled = cv2.remap(image.astype(np.float32), right, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled)


def consistent_pixels(forward: Flow, backward: Flow) -> Mask:
    """Return the mask of pixels that both images show: forward and backward flow agree, and the target is inside.

    The bound is that of Sundaram et al. (2010).
    """
    height, width = forward.shape[:2]
    right, down = _targets(forward)
    inside = (right >= 0) & (right <= width - 1) & (down >= 0) & (down <= height - 1)
    returned = warp_image(backward, forward)
    off = np.square(forward + returned).sum(-1)
    return inside & (off < AGREE * (np.square(forward).sum(-1) + np.square(returned).sum(-1)) + SLACK)


def _targets(flow: Flow) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return x + flow[..., 0], y + flow[..., 1]


def _resize_frames(frames: Frames) -> list[np.ndarray]:
    height, width = frames.shape[1:3]
    scale = FLOW_SIDE / min(height, width)
    return [center_crop_resize(frame, round(scale * height), round(scale * width)) for frame in frames]
