"""Metrics of a video's frames for the studies: agreement with the prompt, motion, background, edges, PSNR.

Frames are uint8 [f h w 3]. Most metrics compare the other frames with frame 0, from which the methods derive them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from kineograph.metrics.features import Frames
from kineograph.metrics.video_metrics import sharpness
from kineograph_lab.recipe.video.degraded import watermark_mask
from kineograph_lab.studies.protocol import Case

Shifts = Float[np.ndarray, "others 2"]

MAX_SHIFT = 1 / 3  # of the frame's width and height; a larger shift leaves less than half of the frame to compare
BLUR = 8  # radius of the box blur in pixels; smoother content does not localise a shift
MIN_ENERGY = 0.02  # of a frame's energy; an overlap with less has too little detail to compare
HANN = np.hanning(9)[1:-1] / np.hanning(9)[1:-1].sum()  # blur about as wide as a letter of the watermark


class JudgedFrames(NamedTuple):
    """A judge's answers for each frame, and an embedding of unit length of the individual in it."""

    subjects: Sequence[str]
    colours: Sequence[str]
    scenes: Sequence[str]
    styles: Sequence[str]
    identities: Float[np.ndarray, "f d"]


def prompt_agreement(judged: JudgedFrames, case: Case) -> dict[str, float]:
    """Return the shares of frames with the case's subject, colour and scene.

    "first right" is 1 if frame 0 has its subject and colour.
    """
    return {
        "thing": share_equal(judged.subjects, case.subject),
        "colour": share_equal(judged.colours, case.colour),
        "scene": share_equal(judged.scenes, case.scene),
        "first right": float(judged.subjects[0] == case.subject and judged.colours[0] == case.colour),
    }


def identity_consistency(judged: JudgedFrames) -> dict[str, float]:
    """Return the shares of frames with the first frame's subject and colour, and the similarity of the individual.

    "always the same" is 1 if all frames have one subject and colour. "individual" is the mean cosine of the embeddings
    of the other frames with that of the first.
    """
    return {
        "same thing": share_equal(judged.subjects[1:], judged.subjects[0]),
        "same colour": share_equal(judged.colours[1:], judged.colours[0]),
        "always the same": float(len({*judged.subjects}) == len({*judged.colours}) == 1),
        "individual": float((judged.identities[1:] @ judged.identities[0]).mean()),
    }


def clip_score(cosines: Float[np.ndarray, " f"]) -> float:
    """Return 100 times the mean cosine of text and frames (Hessel et al. 2021, without rescaling)."""
    return float(100 * np.mean(cosines))


def global_motion(frames: Frames, shifts: Shifts) -> dict[str, float]:
    """Return the motion of the whole frame per frame, "right" in frame widths and "down" in frame heights.

    It is the slope of the shifts against frame 0, fitted through 0, so later frames weigh more.
    """
    number = np.arange(1, len(frames))
    height, width = frames.shape[1:3]
    right, down = number @ shifts / (number @ number)
    return {"right": float(right / width), "down": float(down / height)}


def background_difference(frames: Frames, shifts: Shifts) -> float:
    """Return the difference from frame 0, with the shifts undone, in grey levels of 255: less is better.

    It is the mean over frames of the median over pixels and colours: the background's, since a subject covers less than
    half of the frame.
    """
    differences = [
        np.median(np.abs(np.subtract(*overlapping_parts(frames[0], frame, shift), dtype=float)))
        for frame, shift in zip(frames[1:], shifts.round().astype(int), strict=True)
    ]
    return float(np.mean(differences))


def frame_shifts(frames: Frames) -> Shifts:
    """Return the shift (right, down) of each other frame's content against frame 0, in pixels with subpixel precision.

    It maximises the normalised cross-correlation of the high-pass filtered frames over their overlap, among shifts of
    at most a third of the frame.
    """
    sharp = _high_pass(frames)
    size = (2 * frames.shape[1], 2 * frames.shape[2])
    spectrum, energy = np.fft.rfft2(sharp, size, (1, 2)), np.fft.rfft2((sharp**2).sum(-1), size)
    covered = np.fft.rfft2(np.ones(frames.shape[1:3]), size)
    alike = _correlate(spectrum[:1], spectrum[1:], size).sum(-1)
    mine = _correlate(energy[:1], covered[None], size)
    theirs = _correlate(covered[None], energy[1:], size)
    least = (MIN_ENERGY * (sharp**2).sum((1, 2, 3)).mean()) ** 2 + 1e-9
    scores = alike / np.sqrt(np.maximum(mine * theirs, least))
    return np.array([_peak(score) for score in scores])


def overlapping_parts(first: np.ndarray, other: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the overlapping parts of two images if the second one's content is shifted by `shift` (right, down)."""
    right, down = (int(each) for each in shift)
    height, width = first.shape[:2]
    ours = first[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    theirs = other[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
    return ours, theirs


def share_equal(values: Sequence[str], wanted: str) -> float:
    """Return the share of the values that equal the wanted one."""
    return float(np.mean([value == wanted for value in values]))


def _high_pass(frames: Frames) -> Float[np.ndarray, "f h w 3"]:
    """Subtract a box blur, mirrored at the edges, from each frame."""
    images = frames.astype(float)
    padded = np.pad(images, ((0, 0), (BLUR, BLUR), (BLUR, BLUR), (0, 0)), mode="symmetric")
    for axis in (1, 2):
        total = np.cumsum(np.insert(padded, 0, 0, axis=axis), axis=axis)
        ends = [np.take(total, np.arange(a, a + frames.shape[axis]), axis) for a in (0, 2 * BLUR + 1)]
        padded = (ends[1] - ends[0]) / (2 * BLUR + 1)
    return images - padded


def _correlate(first: np.ndarray, others: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the sum of products over the overlap for every shift; shifts wrap around the doubled size."""
    return np.fft.irfft2(np.conj(first) * others, size, (1, 2))


def _peak(score: Float[np.ndarray, "H W"]) -> tuple[float, float]:
    reach = [int(MAX_SHIFT * length / 2) for length in score.shape]
    near = np.fft.fftshift(score)
    middle = [length // 2 for length in score.shape]
    near = near[tuple(slice(m - r - 1, m + r + 2) for m, r in zip(middle, reach, strict=True))]
    row, column = np.unravel_index(near[1:-1, 1:-1].argmax(), near[1:-1, 1:-1].shape)
    down = row - reach[0] + _vertex(near[row : row + 3, column + 1])
    right = column - reach[1] + _vertex(near[row + 1, column : column + 3])
    return float(right), float(down)


def _vertex(values: Float[np.ndarray, " 3"]) -> float:
    """Return the position of the maximum of the parabola through three neighbouring values, from the middle one."""
    before, here, after = values
    bend = before - 2 * here + after
    return float(np.clip((before - after) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


def edge_f1(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean F1 of edge maps, bool [f h w], with a tolerance of one pixel."""
    return float(np.mean([_f1(*pair) for pair in zip(found, wanted, strict=True)]))


def _f1(found: np.ndarray, wanted: np.ndarray) -> float:
    right = (found & dilate(wanted)).sum() / max(1, found.sum())
    recalled = (wanted & dilate(found)).sum() / max(1, wanted.sum())
    return float(2 * right * recalled / max(right + recalled, 1e-9))


def dilate(mask: np.ndarray) -> np.ndarray:
    """Dilate a mask [h w] by its eight neighbours."""
    wide = np.pad(mask, 1)
    height, width = mask.shape
    parts = [wide[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(parts)


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Return the PSNR in dB of two images, uint8 [h w 3], where a mask [h w] is true; at most 60."""
    errors = np.square(one.astype(float) - other)[where]
    return float(10 * np.log10(255**2 / max(errors.mean(), 0.065))) if errors.size else float("nan")


def background_psnr(frames: Frames, masks: np.ndarray, camera: np.ndarray) -> float:
    """Return the mean PSNR of the background between neighbouring frames, with the camera motion undone.

    Rows and columns that only one frame shows are left out.

    Args:
        masks: the foreground of each frame.
        camera: motion in pixels per frame (right, down).
    """
    found = []
    for k in range(len(frames) - 1):
        before, after = overlapping_parts(frames[k], frames[k + 1], -camera)
        covered, too = overlapping_parts(masks[k], masks[k + 1], -camera)
        found.append(psnr(before, after, ~(covered | too)))
    return float(np.nanmean(found))


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two masks."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def warp_error(frames: Frames, flows: Sequence[np.ndarray]) -> float:
    """Return the mean difference, in grey levels, of each pixel from the next frame's where the flow [h w 2] takes it."""
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width]
    found = []
    for before, after, flow in zip(frames, frames[1:], flows, strict=False):
        to_x, to_y = (x + flow[..., 0]).round().astype(int), (y + flow[..., 1]).round().astype(int)
        there = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
        moved = after[to_y.clip(0, height - 1), to_x.clip(0, width - 1)]
        found.append(np.abs(moved.astype(float) - before)[there].mean())
    return float(np.mean(found))


def relative_sharpness(frames: Frames, reference: UInt8[np.ndarray, "rendered H W 3"]) -> float:
    """Return the sharpness over that of the world's own rendering; to be compared among videos of one size alone."""
    return sharpness(frames) / sharpness(reference)


def watermark_correlation(frames: Frames) -> float:
    """Return the correlation of the mean frame's detail with the watermark; near 0 without a watermark."""
    cover = np.array(watermark_mask(frames.shape[2], frames.shape[1]), float)
    rows = np.flatnonzero(cover.any(1))
    detail, wanted = (
        _subtract_blur(each)[rows[0] : rows[-1] + 1] for each in (frames.astype(float).mean((0, 3)), cover)
    )
    return float((detail * wanted).sum() / np.sqrt((detail**2).sum() * (wanted**2).sum() + 1e-9))


def _subtract_blur(image: np.ndarray) -> np.ndarray:
    """Subtract a Hann blur from an image [h w]."""
    blurred = image
    for axis in (0, 1):
        blurred = np.apply_along_axis(
            lambda line: np.convolve(np.pad(line, 3, mode="edge"), HANN, "valid"), axis, blurred
        )
    return image - blurred
