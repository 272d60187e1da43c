"""Videos in the formats of other programs, whose frames can be identified by their grey."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

PIXELS = {"gif": "rgb8", "ffv1": "yuv444p", "mjpeg": "yuvj420p"}
QUICK = {"libx264": {"preset": "ultrafast"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}
STEP = 6  # grey levels between frames: more than a codec loses


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Return up to 40 frames [f h w 3], each of its own grey; codecs change it by a level or two."""
    greys = (10 + STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (count, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Return the numbers of frames made by `numbered`."""
    return [round((float(frame.mean()) - 10) / STEP) for frame in frames]


def movie(
    path: Path,
    frames: np.ndarray,
    *,
    rate: int = 10,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    quarters: int = 0,
    pixel: Fraction | None = None,
) -> Path:
    """Write a video with key frames far apart. times: of the frames, in ticks of 1 / rate, for a variable rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", options=dict(container or {})) as opened:
        stream = opened.add_stream(codec, rate=rate, options={"g": "12", **QUICK.get(codec, {}), **(options or {})})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        stream.codec_context.thread_count, stream.codec_context.bit_rate = 1, 1_000_000
        stream.codec_context.time_base = Fraction(1, rate)
        if quarters:
            stream.set_display_rotation(90 * quarters)
        if pixel:
            stream.codec_context.sample_aspect_ratio = pixel
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times else number
            opened.mux(stream.encode(frame))
        opened.mux(stream.encode(None))
    return path


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a tar of files."""
    with tarfile.open(path, "w") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path
