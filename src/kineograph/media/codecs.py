"""Frames to files and back, one pair of functions for each kind of file.

Frames are uint8 arrays [f h w 3]; writers take the label's text and write to exactly the path they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from av.container import InputContainer
from av.video import VideoStream
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from kineograph.errors import InputError
from kineograph.media.metadata import IMAGE_DESCRIPTION, VideoMetadata, frame_files

# crf: hardly to be told from lossless. mbtree: with AVX-512 it reads what nobody wrote at most widths, so that the same
# frames gave other bytes each time; without it the pocket model's videos are some 10 % larger.
X264 = {"crf": "17", "x264-params": "mbtree=0"}
PALETTE_PIXELS = 1 << 21  # as many as a palette needs to see; more only takes time


def write_mp4(path: Path, frames: np.ndarray, label: VideoMetadata) -> None:
    """H.264 in yuv420p with BT.709 colours, which all players show alike; starts playing before it is loaded.

    yuv420p needs even sides: an odd one repeats its last row or column, and reading cuts it off again.
    """
    even = np.pad(frames, ((0, 0), (0, label.height % 2), (0, label.width % 2), (0, 0)), mode="edge")
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = label.text()
        stream = container.add_stream("libx264", rate=frame_rate_fraction(label.fps), options=X264)
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
    """Frames and frames per second of anything that FFmpeg opens."""
    rate, _ = read_frame_times(path)
    return np.stack(list(stream_frames(path))), rate


def stream_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of anything that FFmpeg opens, one after another, turned as a player would."""
    with av.open(path) as container:
        _first_stream(path, container).thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def read_frame_times(path: Path) -> tuple[float, list[float]]:
    """Frames per second on average, and when each frame is shown, in seconds; found without decoding one."""
    with av.open(path) as container:
        stream = _first_stream(path, container)
        stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        rate = float(stream.average_rate or 1)
        unit = stream.time_base or Fraction(1)
        return rate, [float((stamp - stamps[0]) * unit) for stamp in stamps]


def _first_stream(path: Path, container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise InputError(f"{path} holds no picture, only sound or data")
    return container.streams.video[0]


def write_gif(path: Path, frames: np.ndarray, label: VideoMetadata) -> None:
    """One palette for all frames, so that what stands still does not change colour; dithered."""
    palette = _palette(frames)
    first, *rest = [PIL.Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    durations = [max(20, 10 * round(time / 10)) for time in _durations(frames, label)]  # browsers slow down under 20 ms
    whole = BytesIO()
    first.save(whole, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, comment=label.text())
    path.write_bytes(whole.getvalue())


def write_webp(path: Path, frames: np.ndarray, label: VideoMetadata) -> None:
    """Animated WebP: all colours in a fraction of a gif's size."""
    exif = PIL.Image.Exif()
    exif[IMAGE_DESCRIPTION] = label.text()
    first, *rest = [PIL.Image.fromarray(frame) for frame in frames]
    durations = _durations(frames, label)
    whole = BytesIO()
    first.save(whole, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, exif=exif, quality=92)
    path.write_bytes(whole.getvalue())


def read_animation(path: Path, label: VideoMetadata | None) -> tuple[np.ndarray, float]:
    """Frames and frames per second of a gif or webp.

    Both formats keep equal neighbours as one picture that is shown longer; here they come back as frames.
    """
    frames, durations = [], []
    with PIL.Image.open(path) as picture:
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
            durations.append(picture.info.get("duration") or 100)
    if label and len(frames) == 1:
        return np.repeat(np.stack(frames), label.frames, axis=0), label.fps
    fps = label.fps if label else 1000 / min(durations)
    return np.repeat(np.stack(frames), [max(1, round(time * fps / 1000)) for time in durations], axis=0), fps


def write_pngs(path: Path, frames: np.ndarray, label: VideoMetadata) -> None:
    """A folder of frame_0000.png and so on: nothing is lost."""
    path.mkdir()
    for number, frame in enumerate(frames):
        write_png(path / f"frame_{number:04d}.png", frame[None], label)


def read_pngs(path: Path, label: VideoMetadata | None) -> tuple[np.ndarray, float]:
    """Frames and frames per second of a folder of frames."""
    pictures = [read_animation(file, None)[0] for file in frame_files(path)]
    return np.concatenate(pictures), label.fps if label else 1.0


def write_png(path: Path, frames: np.ndarray, label: VideoMetadata) -> None:
    """The one frame of a still picture."""
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Comment", label.text())
    whole = BytesIO()
    PIL.Image.fromarray(frames[0]).save(whole, "PNG", pnginfo=text)
    path.write_bytes(whole.getvalue())  # a disk that is full says so here; Pillow's own writer hides it


def frame_rate_fraction(fps: float) -> Fraction:
    """Frames per second as the fraction that containers store."""
    return Fraction(fps).limit_denominator(1001)


def _durations(frames: np.ndarray, label: VideoMetadata) -> list[int]:
    """Milliseconds for each frame, rounded so that they do not drift."""
    ends = [round(1000 * (number + 1) / label.fps) for number in range(len(frames))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _palette(frames: np.ndarray) -> PIL.Image.Image:
    pixels = frames[:: max(1, frames[..., 0].size // PALETTE_PIXELS)]
    return PIL.Image.fromarray(pixels.reshape(-1, frames.shape[2], 3)).quantize(256)
