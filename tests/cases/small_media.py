"""Small videos in the formats of other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def movie(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    rate: int = 8,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    milliseconds: Sequence[int] | None = None,
    colour: tuple[int, int, int, int] | None = None,
) -> Path:
    """Write frames [h w 3], or [h w 4] with alpha, as a video.

    milliseconds: when each frame is shown, for a variable rate. colour: primaries, transfer, matrix and range by their
    numbers in FFmpeg.
    """
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if colour:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = colour
        if milliseconds:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[-1] == 4 else "rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def moving_square(grey: int, count: int = 24, height: int = 96, width: int = 112) -> list[np.ndarray]:
    """Return frames of a red square that moves over a grey ground."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), grey, np.uint8)
        left = 3 * number % (width - 30)
        frame[20 + number : 50 + number, left : left + 30] = (220, 40, 40)
        frames.append(frame)
    return frames
