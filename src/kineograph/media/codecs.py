"""Encoding and decoding of frames and sound, a pair of functions for each kind of file.

Frames are uint8 arrays [f h w 3]. Writers write to exactly the path they are given; those of .mp4, .webm and folders
hold one frame at a time, Pillow's of .gif and .webp all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
from av.audio import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import Int16

from kineograph.errors import InputError, InputWarning
from kineograph.media.frames import (
    MAX_HELD_FRAMES,
    MAX_PIXELS,
    READ_OPTIONS,
    UNPACKED_PIXELS,
    UNPACKED_PIXELS_PER_BYTE,
    BrokenFile,
    check_held,
    decode_stream,
    frame_time,
    has_decoder,
    open_video_stream,
    read_pixel_aspect,
    square_size,
    to_rgb,
)
from kineograph.media.images import open_image, to_rgb_image
from kineograph.media.mapped_frames import iterate_frames
from kineograph.media.metadata import IMAGE_DESCRIPTION, PILLOW_SUFFIXES, FileTags, VideoMetadata, find_gap, frame_files
from kineograph.media.seek import read_frame_times

# crf 17: visually lossless. mbtree=0: with AVX-512, mbtree reads uninitialised memory at most widths, so that the same
# frames gave different bytes each time; without it the pocket model's videos are some 10 % larger.
X264_OPTIONS = {"crf": "17", "x264-params": "mbtree=0"}
VP9_ENCODER = "libvpx-vp9"
VP9_OPTIONS = {"crf": "20", "b": "0"}  # b 0: constant quality
PALETTE_PIXELS = 1 << 21  # enough for a palette; more only takes time
SOUND_RATE = 48000  # samples a second, which AAC and Opus have
MAX_SOUND_GAP = 0.1  # seconds by which sound may depart from its timestamps before it is shifted
SAME_TIME = 1e-3  # seconds: Matroska rounds timestamps to milliseconds
SHORTEST, USUAL_DURATION = 10, 100  # milliseconds: browsers show animations of a shorter one at the usual one
MAX_TIMES = 10_000_000  # frames of four days at 30 a second
MAX_REPEATS = 1000  # frames shown for each in the file, unless they are at most MAX_HELD_FRAMES
XMP_OF_MP4 = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # the UUID of the box
XMP_OF_GIF = b"XMP DataXMP"


class Sound(NamedTuple):
    """Sound of a video, from its first frame on. samples: [channels n], one or two channels."""

    samples: Int16[np.ndarray, "c n"]
    rate: int = SOUND_RATE


class FrameFile(NamedTuple):
    """Frames of a file.

    times  when each is shown, in seconds from the first
    fps    rate at which most of them follow one another
    end    of the last one, in seconds from the first
    read   yields all frames: uint8 [h w 3]
    """

    times: Sequence[float]
    fps: float
    end: float
    read: Callable[[], Iterator[np.ndarray]]


# --- writing


def write_mp4(path: Path, frames: np.ndarray, fps: float, tags: FileTags, sound: Sound | None = None) -> None:
    """Write H.264 and AAC, which all players show; the index comes first, XMP last."""
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        _encode(container, ("libx264", X264_OPTIONS), "aac", frames, fps, tags, sound)
    if tags.xmp:
        content = XMP_OF_MP4 + tags.xmp.encode()
        with path.open("ab") as file:
            file.write((8 + len(content)).to_bytes(4, "big") + b"uuid" + content)


def write_webm(path: Path, frames: np.ndarray, fps: float, tags: FileTags, sound: Sound | None = None) -> None:
    """Write VP9 and Opus, which browsers show. Raises InputError when FFmpeg was built without the encoder of VP9."""
    if VP9_ENCODER not in av.codecs_available:
        raise InputError(f"a .webm needs the encoder {VP9_ENCODER}, which this build of PyAV lacks: name an .mp4")
    with av.open(path, "w", format="webm") as container:
        _encode(container, (VP9_ENCODER, VP9_OPTIONS), "libopus", frames, fps, tags, sound)


def _encode(
    container: OutputContainer,
    codec: tuple[str, dict[str, str]],
    sound_codec: str,
    frames: np.ndarray,
    fps: float,
    tags: FileTags,
    sound: Sound | None,
) -> None:
    """Encode in yuv420p with BT.709 colours, which all players show alike.

    yuv420p needs even sides: an odd one repeats its last row or column, and reading crops it again.
    """
    height, width = frames.shape[1:3]
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    if tags.comment:
        container.metadata["comment"] = tags.comment
    stream: Any = container.add_stream(codec[0], rate=frame_rate_fraction(fps), options=codec[1])  # a VideoStream
    stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    stream.codec_context.colorspace = Colorspace.ITU709
    stream.codec_context.color_primaries = ColorPrimaries.BT709
    stream.codec_context.color_trc = ColorTrc.IEC61966_2_1
    stream.codec_context.color_range = ColorRange.MPEG
    encode_sound = None if sound is None else _sound_encoder(container, sound_codec, sound, len(frames) / fps)
    for number, pixels in enumerate(iterate_frames(frames), 1):
        frame = av.VideoFrame.from_ndarray(np.pad(pixels, odd, mode="edge"), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        if encode_sound:
            encode_sound(number / fps)
    container.mux(stream.encode(None))
    if encode_sound:
        encode_sound(None)


def _sound_encoder(
    container: OutputContainer, codec: str, sound: Sound, seconds: float
) -> Callable[[float | None], None]:
    """Return the function that encodes sound up to a time, or to its end: beside the frames, as players read it.

    seconds: length to which the sound is cut, or padded with silence.
    """
    samples = _fit_length(sound.samples, round(seconds * sound.rate))
    layout = "mono" if len(samples) == 1 else "stereo"
    stream: Any = container.add_stream(codec, rate=sound.rate, layout=layout)  # an AudioStream
    written = 0

    def encode(until: float | None) -> None:
        nonlocal written
        end = samples.shape[1] if until is None else min(round(until * sound.rate), samples.shape[1])
        if end > written:
            part = np.ascontiguousarray(samples[:, written:end].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
            frame.rate, frame.pts, frame.time_base = sound.rate, written, Fraction(1, sound.rate)
            container.mux(stream.encode(frame))
            written = end
        if until is None:
            container.mux(stream.encode(None))

    return encode


def _fit_length(samples: np.ndarray, count: int) -> np.ndarray:
    return np.pad(samples[:, :count], ((0, 0), (0, max(0, count - samples.shape[1]))))


def write_gif(path: Path, frames: np.ndarray, fps: float, tags: FileTags, sound: Sound | None = None) -> None:
    """Write a dithered gif with one palette for all frames, so that still regions keep their colours."""
    palette = _palette(frames)
    first, *rest = [PIL.Image.fromarray(frame).quantize(palette=palette) for frame in iterate_frames(frames)]
    durations = [max(20, 10 * round(time / 10)) for time in _durations(frames, fps)]  # browsers slow down < 20 ms
    comment = {"comment": tags.comment} if tags.comment else {}
    buffer = BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, **comment)
    content = buffer.getvalue()
    if tags.xmp:  # an extension before the end mark; a reader of blocks of stated lengths ends in its last 258 bytes
        magic = bytes([1, *range(255, -1, -1), 0])
        content = content[:-1] + b"\x21\xff\x0b" + XMP_OF_GIF + tags.xmp.encode() + magic + content[-1:]
    path.write_bytes(content)


def write_webp(path: Path, frames: np.ndarray, fps: float, tags: FileTags, sound: Sound | None = None) -> None:
    """Write an animated WebP: all colours, and a fraction of a gif's size."""
    exif = PIL.Image.Exif()
    if tags.comment:
        exif[IMAGE_DESCRIPTION] = tags.comment
    first, *rest = [PIL.Image.fromarray(frame) for frame in frames]
    extra: dict[str, Any] = {"exif": exif if tags.comment else b"", "xmp": tags.xmp.encode()}
    durations = _durations(frames, fps)
    buffer = BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, quality=92, **extra)
    path.write_bytes(buffer.getvalue())


def write_pngs(path: Path, frames: np.ndarray, fps: float, tags: FileTags, sound: Sound | None = None) -> None:
    """Write a folder of frame_0000.png and so on, which is lossless."""
    path.mkdir()
    for number, frame in enumerate(iterate_frames(frames)):
        write_png(path / f"frame_{number:04d}.png", frame[None], fps, tags)


def write_png(path: Path, frames: np.ndarray, fps: float, tags: FileTags, sound: Sound | None = None) -> None:
    """Write the first frame as a still image."""
    text = PIL.PngImagePlugin.PngInfo()
    if tags.comment:
        text.add_text("Comment", tags.comment)
    if tags.xmp:
        text.add_itxt("XML:com.adobe.xmp", tags.xmp)
    buffer = BytesIO()
    PIL.Image.fromarray(frames[0]).save(buffer, "PNG", pnginfo=text)
    path.write_bytes(buffer.getvalue())  # a full disk raises here; Pillow's own writer hides it


# --- reading


def open_frames(path: Path, metadata: VideoMetadata | None) -> FrameFile:
    """Open the frames of a file or of a folder of frames. metadata: of a file of ours.

    Raises BrokenFile when it holds no frames, and what PyAV and Pillow raise.
    """
    if path.is_dir():
        return _open_folder(path, metadata)
    if path.suffix.lower() in PILLOW_SUFFIXES:
        return _open_animation(path, metadata)
    return _open_container(path, metadata)


def select_frames(file: FrameFile, fps: float | None = None) -> list[int]:
    """Return the index of the frame that is shown at every multiple of 1 / fps seconds.

    fps: by default the file's own, where the nearest frame counts: all frames, once each, unless their rate varies.
    """
    rate, tolerance = (file.fps, 0.5 / file.fps) if fps is None else (fps, SAME_TIME)
    count = max(1, int((file.end + tolerance) * rate))
    if count > min(MAX_TIMES, max(MAX_REPEATS * len(file.times), MAX_HELD_FRAMES)):
        raise BrokenFile(f"would have {count} frames at {rate:g} a second, by the timestamps of its {len(file.times)}")
    return (np.searchsorted(file.times, np.arange(count) / rate + tolerance, side="right") - 1).tolist()


def _open_folder(path: Path, metadata: VideoMetadata | None) -> FrameFile:
    files, fps = frame_files(path), metadata.fps if metadata else 1.0
    if gap := find_gap(files):
        warnings.warn(
            f"{path} has no frames between {gap[0]} and {gap[1]}: the others are used", InputWarning, stacklevel=4
        )
    return FrameFile(_even_times(len(files), fps), fps, len(files) / fps, lambda: (_read_still(file) for file in files))


def _read_still(path: Path) -> np.ndarray:
    with open_image(path.read_bytes()) as image:
        return np.asarray(to_rgb_image(image))


def _open_animation(path: Path, metadata: VideoMetadata | None) -> FrameFile:
    """Open a gif, a WebP, an animated png or a still image.

    The formats merge equal neighbours into one image of longer duration; in a file of ours they are frames again.
    """
    frames, durations = [], []
    with open_image(path.read_bytes()) as image:
        count = getattr(image, "n_frames", 1)
        if metadata and count == 1 and path.suffix.lower() == ".png":  # one of a folder, whose metadata it has
            metadata = metadata._replace(frames=1)
        most = min(MAX_PIXELS, UNPACKED_PIXELS + UNPACKED_PIXELS_PER_BYTE * path.stat().st_size)
        check_held(path, max(count, metadata.frames if metadata else 0), image.height, image.width, most=most)
        for number in range(1 if image.info.get("default_image") else 0, count):
            image.seek(number)
            frames.append(np.asarray(to_rgb_image(image)))
            duration = image.info.get("duration") or 0
            durations.append(duration if duration > SHORTEST else USUAL_DURATION)
    if metadata:
        once = len(frames) == 1
        counts = [metadata.frames] if once else [max(1, round(time * metadata.fps / 1000)) for time in durations]
        if sum(counts) <= max(metadata.frames, len(frames)):
            ours = [frame for frame, shown in zip(frames, counts, strict=True) for _ in range(shown)]
            times = _even_times(len(ours), metadata.fps)
            return FrameFile(times, metadata.fps, len(ours) / metadata.fps, ours.__iter__)
    *starts, end = accumulate((time / 1000 for time in durations), initial=0.0)
    return FrameFile(starts, 1000 / float(np.median(durations)), end, frames.__iter__)


def _even(side: int) -> int:
    return side + side % 2


def _even_times(count: int, fps: float) -> list[float]:
    return [number / fps for number in range(count)]


def _open_container(path: Path, metadata: VideoMetadata | None) -> FrameFile:
    fps, times = read_frame_times(str(path))
    with open_video_stream(str(path)) as (container, stream):
        first = next(decode_stream(container, stream), None)
        if first is None:
            raise BrokenFile("holds no frames")
    start = frame_time(first)  # players drop what comes before the first frame that can be decoded
    times = [time for time in times if time > start - SAME_TIME] or [start]
    if metadata and (first.height, first.width) != (_even(metadata.height), _even(metadata.width)):
        metadata = None  # another program scaled or cut the frames, and kept the comment
    if metadata and len(times) < metadata.frames:
        raise InputError(f"{path} is cut short: {len(times)} of its {metadata.frames} frames are left")
    size = (metadata.height, metadata.width) if metadata else (None, None)  # ours may be padded
    read = partial(_read_container, path, times, *size)
    if metadata:
        return FrameFile(_even_times(len(times), metadata.fps), metadata.fps, len(times) / metadata.fps, read)
    return FrameFile([time - times[0] for time in times], fps, times[-1] - times[0] + 1 / fps, read)


def _read_container(path: Path, times: Sequence[float], height: int | None, width: int | None) -> Iterator[np.ndarray]:
    """Yield the frame that is shown at each of these times, which are those of the frames."""
    remaining, previous = iter(times), None
    wanted = next(remaining, None)
    with open_video_stream(str(path), threads="AUTO") as (container, stream):
        aspect = read_pixel_aspect(stream)
        for frame in decode_stream(container, stream):
            while previous is not None and wanted is not None and wanted < frame_time(frame) - SAME_TIME:
                yield to_rgb(previous, square_size(previous, aspect))[:height, :width]
                wanted = next(remaining, None)
            previous = frame
        if previous is not None and wanted is not None and wanted < frame_time(previous) + SAME_TIME:
            yield to_rgb(previous, square_size(previous, aspect))[:height, :width]


def _audio_frames(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]:
    for packet in container.demux(stream):
        yield from stream.decode(packet)


def read_sound(path: Path, seconds: float) -> Sound | None:
    """Return the sound of a video from its first frame on, of so many seconds at most; None where there is none.

    Its timestamps decide where it lies: what is missing is silence. Raises BrokenFile and what PyAV raises.
    """
    if path.is_dir() or path.suffix.lower() in PILLOW_SUFFIXES:
        return None
    with open_video_stream(str(path)) as (container, video):
        if not any(map(has_decoder, container.streams.audio)):
            return None
        first = next(decode_stream(container, video), None)
    with av.open(str(path), metadata_errors="replace", options=READ_OPTIONS) as container:
        best = container.streams.best("audio")
        decodable = [each for each in container.streams.audio if has_decoder(each)]
        stream = best if isinstance(best, AudioStream) and best in decodable else decodable[0]
        layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        resampler = av.AudioResampler(format="s16p", layout=layout, rate=SOUND_RATE)
        samples = np.zeros((1 if layout == "mono" else 2, round(seconds * SOUND_RATE)), np.int16)
        start, position = 0.0 if first is None else frame_time(first), None
        for frame in _audio_frames(container, stream):
            due = position if frame.time is None else round((frame.time - start) * SOUND_RATE)
            if position is None or (due is not None and abs(due - position) > MAX_SOUND_GAP * SOUND_RATE):
                position = due or 0
            for part in resampler.resample(frame):
                values = part.to_ndarray()
                target = samples[:, max(0, position) : max(0, position + values.shape[1])]
                target[:] = values[:, max(0, -position) :][:, : target.shape[1]]
                position += values.shape[1]
            if position >= samples.shape[1]:
                break
    return Sound(samples) if position is not None else None


def frame_rate_fraction(fps: float) -> Fraction:
    """Return a frame rate as the fraction that containers store."""
    return Fraction(fps).limit_denominator(1001)


def _durations(frames: np.ndarray, fps: float) -> list[int]:
    """Return the duration of each frame in milliseconds, rounded so that errors do not add up."""
    ends = [round(1000 * (number + 1) / fps) for number in range(len(frames))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _palette(frames: np.ndarray) -> PIL.Image.Image:
    pixels = frames[:: max(1, frames[..., 0].size // PALETTE_PIXELS)]
    return PIL.Image.fromarray(pixels.reshape(-1, frames.shape[2], 3)).quantize(256)
