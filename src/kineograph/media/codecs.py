"""Encoding and decoding of frames, a pair of functions for each kind of file.

Frames are uint8 arrays [f h w 3]. Writers write to exactly the path they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from av.container import InputContainer, OutputContainer
from av.video import VideoStream
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from kineograph.errors import InputError
from kineograph.media.metadata import IMAGE_DESCRIPTION, VideoMetadata, frame_files

DECODE_ERRORS = (av.FFmpegError, OSError, SyntaxError, EOFError, ValueError, LookupError)  # raised by PyAV and Pillow

# crf 17: visually lossless. mbtree=0: with AVX-512, mbtree reads uninitialised memory at most widths, so that the same
# frames gave different bytes each time; without it the pocket model's videos are some 10 % larger.
X264_OPTIONS = {"crf": "17", "x264-params": "mbtree=0"}
VP9_ENCODER = "libvpx-vp9"
VP9_OPTIONS = {"crf": "20", "b": "0"}  # b 0: constant quality
PALETTE_PIXELS = 1 << 21  # enough for a palette; more only takes time


def write_mp4(path: Path, frames: np.ndarray, metadata: VideoMetadata) -> None:
    """Write H.264, which all players show; the index comes first."""
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        _encode(container, "libx264", X264_OPTIONS, frames, metadata)


def write_webm(path: Path, frames: np.ndarray, metadata: VideoMetadata) -> None:
    """Write VP9, which browsers show. Raises InputError when FFmpeg was built without its encoder."""
    if VP9_ENCODER not in av.codecs_available:
        raise InputError(f"a .webm needs the encoder {VP9_ENCODER}, which this build of PyAV lacks: name an .mp4")
    with av.open(path, "w", format="webm") as container:
        _encode(container, VP9_ENCODER, VP9_OPTIONS, frames, metadata)


def _encode(
    container: OutputContainer, codec: str, options: dict[str, str], frames: np.ndarray, metadata: VideoMetadata
) -> None:
    """Encode in yuv420p with BT.709 colours, which all players show alike.

    yuv420p needs even sides: an odd one repeats its last row or column, and reading crops it again.
    """
    even = np.pad(frames, ((0, 0), (0, metadata.height % 2), (0, metadata.width % 2), (0, 0)), mode="edge")
    container.metadata["comment"] = metadata.to_json()
    stream: Any = container.add_stream(codec, rate=frame_rate_fraction(metadata.fps), options=options)  # a VideoStream
    stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
    stream.codec_context.colorspace = Colorspace.ITU709
    stream.codec_context.color_primaries = ColorPrimaries.BT709
    stream.codec_context.color_trc = ColorTrc.IEC61966_2_1
    stream.codec_context.color_range = ColorRange.MPEG
    for pixels in even:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
    container.mux(stream.encode(None))


def decode_all_frames(path: Path) -> tuple[np.ndarray, float]:
    """Return the frames and the frame rate of any video that FFmpeg opens."""
    fps, _ = read_frame_times(path)
    return np.stack(list(stream_frames(path))), fps


def stream_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of any video that FFmpeg opens, rotated as its display matrix says."""
    with av.open(path) as container:
        _first_stream(path, container).thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def read_frame_times(path: Path) -> tuple[float, list[float]]:
    """Return the average frame rate, and when each frame is shown, in seconds, without decoding."""
    with av.open(path) as container:
        stream = _first_stream(path, container)
        stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        fps = float(stream.average_rate or 1)
        unit = stream.time_base or Fraction(1)
        return fps, [float((stamp - stamps[0]) * unit) for stamp in stamps]


def _first_stream(path: Path, container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise InputError(f"{path} holds no video stream, only audio or data")
    return container.streams.video[0]


def write_gif(path: Path, frames: np.ndarray, metadata: VideoMetadata) -> None:
    """Write a dithered gif with one palette for all frames, so that still regions keep their colours."""
    palette = _palette(frames)
    first, *rest = [PIL.Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    durations = [max(20, 10 * round(time / 10)) for time in _durations(frames, metadata)]  # browsers slow down < 20 ms
    buffer = BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, comment=metadata.to_json())
    path.write_bytes(buffer.getvalue())


def write_webp(path: Path, frames: np.ndarray, metadata: VideoMetadata) -> None:
    """Write an animated WebP: all colours, and a fraction of a gif's size."""
    exif = PIL.Image.Exif()
    exif[IMAGE_DESCRIPTION] = metadata.to_json()
    first, *rest = [PIL.Image.fromarray(frame) for frame in frames]
    durations = _durations(frames, metadata)
    buffer = BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, exif=exif, quality=92)
    path.write_bytes(buffer.getvalue())


def read_animation(path: Path, metadata: VideoMetadata | None) -> tuple[np.ndarray, float]:
    """Return the frames and the frame rate of a gif, a WebP or a still image.

    Both animated formats merge equal neighbours into one image of longer duration; here they are frames again.
    """
    frames, durations = [], []
    with PIL.Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info.get("duration") or 100)
    if metadata and len(frames) == 1:
        return np.repeat(np.stack(frames), metadata.frames, axis=0), metadata.fps
    fps = metadata.fps if metadata else 1000 / min(durations)
    return np.repeat(np.stack(frames), [max(1, round(time * fps / 1000)) for time in durations], axis=0), fps


def write_pngs(path: Path, frames: np.ndarray, metadata: VideoMetadata) -> None:
    """Write a folder of frame_0000.png and so on, which is lossless."""
    path.mkdir()
    for number, frame in enumerate(frames):
        write_png(path / f"frame_{number:04d}.png", frame[None], metadata)


def read_pngs(path: Path, metadata: VideoMetadata | None) -> tuple[np.ndarray, float]:
    """Return the frames and the frame rate of a folder of frames."""
    frames = [read_animation(file, None)[0] for file in frame_files(path)]
    return np.concatenate(frames), metadata.fps if metadata else 1.0


def write_png(path: Path, frames: np.ndarray, metadata: VideoMetadata) -> None:
    """Write the first frame as a still image."""
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Comment", metadata.to_json())
    buffer = BytesIO()
    PIL.Image.fromarray(frames[0]).save(buffer, "PNG", pnginfo=text)
    path.write_bytes(buffer.getvalue())  # a full disk raises here; Pillow's own writer hides it


def frame_rate_fraction(fps: float) -> Fraction:
    """Return a frame rate as the fraction that containers store."""
    return Fraction(fps).limit_denominator(1001)


def _durations(frames: np.ndarray, metadata: VideoMetadata) -> list[int]:
    """Return the duration of each frame in milliseconds, rounded so that errors do not add up."""
    ends = [round(1000 * (number + 1) / metadata.fps) for number in range(len(frames))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _palette(frames: np.ndarray) -> PIL.Image.Image:
    pixels = frames[:: max(1, frames[..., 0].size // PALETTE_PIXELS)]
    return PIL.Image.fromarray(pixels.reshape(-1, frames.shape[2], 3)).quantize(256)
