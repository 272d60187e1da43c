"""Decoded frames as a player shows them: upright, with square pixels, progressive, in SDR, transparent parts on white.

Every command decodes videos by these functions.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.audio import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video import VideoStream
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation
from jaxtyping import Float32, UInt8
from PIL import Image

from kineograph.errors import InputError, in_one_line
from kineograph.media.shards import FileSlice

IMAGE_ERRORS = (  # raised by Pillow
    OSError, SyntaxError, EOFError, ValueError, LookupError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
DECODE_ERRORS = (av.FFmpegError, *IMAGE_ERRORS)
MAX_PIXELS = 1 << 32  # of all frames that are held at once; KINEOGRAPH_MAX_PIXELS is another limit
PIXEL_BYTES = 6  # of memory that each takes: frames are decoded one by one, and copied to one array
MAX_HELD_FRAMES = 1 << 16
# Pixels of an image or animation, all frames together: a file of a few bytes may claim any number of them.
UNPACKED_PIXELS, UNPACKED_PIXELS_PER_BYTE = 1 << 26, 10_000

# Files are read without a network. Of the formats, playlists and scripts that name other files (hls, concat) are none.
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,live_flv,asf,ogg,mxf,nut,rm,dv,gxf,wtv,swf,ivf,obu,av1,h261,"
    "h263,h264,hevc,vvc,evc,m4v,mjpeg,mpjpeg,vc1,dirac,cavsvideo,yuv4mpegpipe,gif,apng"
)
READ_OPTIONS = {"protocol_whitelist": "file,pipe", "format_whitelist": FORMATS}
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ignore the alpha of a WebM
RAW_RATE = 25  # frames a second of a stream that states none
TICKS = 90000  # a second, of frames without timestamps
MAX_PIXEL_ASPECT = 10  # a file that states a longer pixel is not believed
DEINTERLACER = ("bwdif", "mode=send_frame:deint=interlaced")
UNSUPPORTED_COLOURS = {
    8: "YCgCo", 10: "BT.2020 of constant luminance", 11: "SMPTE ST 2085", 12: "derived YCbCr", 13: "derived YCbCr",
    14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-R", 17: "YCgCo-R",
}  # fmt: skip
UNSPECIFIED = 2  # of primaries, transfers and matrices

WHITE_NITS, HLG_NITS = 203.0, 1000.0  # diffuse white of HDR (ITU-R BT.2408), and the peak of a display of HLG
KNEE = 0.8  # linear light above which highlights are compressed
HDR_TRANSFERS = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
LINEAR_TRANSFERS = (*HDR_TRANSFERS, ColorTrc.LINEAR)
WIDE_PRIMARIES = {  # x and y of red, green and blue; their white is D65
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
D65 = (0.3127, 0.3290)


class BrokenFile(InputError):
    """A file that cannot be decoded, or does not hold what was asked of it. The message begins with its name."""


def decode_problem(error: Exception) -> str:
    """Return what one of `DECODE_ERRORS` says, for a message.

    FFmpeg refuses a stated size beyond 2 GB as a lack of memory, before it is allocated.
    """
    if isinstance(error, av.MemoryError):
        return "it states sizes that need too much memory: it is damaged, or very large"
    return f"{type(error).__name__}: {in_one_line(getattr(error, 'strerror', None) or error)}"


# --- streams


@contextmanager
def open_video_stream(file: FileSlice | str, threads: str = "NONE") -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a container and its main video stream, which is no cover image.

    threads: "AUTO" for one file at a time; clips are decoded in parallel, and threads within one would only wait.

    Raises BrokenFile when there is none.
    """
    if isinstance(file, FileSlice):
        file.seek(0)
    with av.open(file, "r", metadata_errors="replace", options=READ_OPTIONS) as container:
        moving = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not moving:
            raise BrokenFile("holds no video stream: it is damaged, or has only audio or data")
        moving = [stream for stream in moving if has_decoder(stream)]
        if not moving:
            raise BrokenFile("holds a video stream that FFmpeg has no decoder for")
        best = container.streams.best("video")
        stream = best if isinstance(best, VideoStream) and best in moving else moving[0]
        stream.thread_type = threads
        if threads == "NONE":
            stream.codec_context.thread_count = 1
        yield container, stream


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def has_decoder(stream: VideoStream | AudioStream) -> bool:
    """Return False for a stream of a codec that this build of FFmpeg does not know."""
    context: Any = stream.codec_context  # None for an unknown codec
    return context is not None


def decode_stream(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the frames from here on, deinterlaced, each with a timestamp.

    Raises BrokenFile for a damaged frame, but for those before the first intact one, and what PyAV raises.
    """
    intact = False
    for frame in _deinterlace(_with_timestamps(_decode(container, stream), container, stream)):
        if frame.is_corrupt and intact:
            raise BrokenFile(f"has no intact frame at {frame_time(frame):.2f} s")
        intact = intact or not frame.is_corrupt
        if intact:
            yield frame


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    decoder = ALPHA_DECODERS.get(stream.codec_context.name, "")
    if stream.metadata.get("alpha_mode") != "1" or decoder not in av.codecs_available:
        yield from container.decode(stream)
        return
    context: Any = av.CodecContext.create(decoder, "r")  # a VideoCodecContext
    for packet in container.demux(stream):
        yield from context.decode(packet)


def _with_timestamps(
    frames: Iterator[av.VideoFrame], container: InputContainer, stream: VideoStream
) -> Iterator[av.VideoFrame]:
    """Number the frames of streams without timestamps."""
    numbered = lacks_timestamps(container, stream)
    previous: float | None = None
    for frame in frames:
        if frame.pts is None:
            frame.pts = frame.dts
        if numbered or frame.pts is None or frame.time_base is None:
            frame.time_base = Fraction(1, TICKS)
            frame.pts = 0 if previous is None else round((previous + 1 / untimed_rate(container, stream)) * TICKS)
        previous = frame_time(frame)
        yield frame


def lacks_timestamps(container: InputContainer, stream: VideoStream) -> bool:
    """Return True for an AVI of codecs that store frames in another order: it states no order in which they are shown.

    Raw streams are recognised by their packets.
    """
    return container.format.name == "avi" and stream.codec_context.name in ("h264", "hevc")


def untimed_rate(container: InputContainer, stream: VideoStream) -> Fraction:
    """Return the frame rate that a stream without timestamps states, or that of raw streams in FFmpeg."""
    in_container, in_stream = stream.average_rate, stream.codec_context.framerate  # a raw stream's container has none
    first, second = (in_container, in_stream) if container.format.name == "avi" else (in_stream, in_container)
    return Fraction(first or second or RAW_RATE)


def frame_time(frame: av.VideoFrame) -> float:
    """Return when a frame is shown, in seconds. Raises BrokenFile when it has no timestamp."""
    stamp = frame.dts if frame.pts is None else frame.pts
    if stamp is None or frame.time_base is None:
        raise BrokenFile("has frames without timestamps")
    return stamp * float(frame.time_base)


def _deinterlace(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield as many frames, from the first interlaced one on through FFmpeg's filter."""
    graph, shape = None, None
    for frame in frames:
        if graph is not None and shape != _shape(frame):
            yield from _flush(graph)
            graph = None
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None:
            graph, shape = _deinterlacer(frame), _shape(frame)
        graph.push(frame)
        yield from _pull(graph)
    if graph is not None:
        yield from _flush(graph)


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _deinterlacer(frame: av.VideoFrame) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, TICKS)
    )
    graph.link_nodes(source, graph.add(*DEINTERLACER), graph.add("buffersink")).configure()
    return graph


def _pull(graph: Any) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return


def _flush(graph: Any) -> Iterator[av.VideoFrame]:
    graph.push(None)
    yield from _pull(graph)


# --- pixels


def read_pixel_aspect(stream: VideoStream) -> float:
    """Return width over height of a stream's pixels."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def square_size(frame: av.VideoFrame, pixel_aspect: float) -> tuple[float, float]:
    """Return width and height of a frame with square pixels, before it is turned: neither is less than stored."""
    return frame.width * max(pixel_aspect, 1), frame.height * max(1 / pixel_aspect, 1)


def to_rgb(frame: av.VideoFrame, size: tuple[float, float]) -> UInt8[np.ndarray, "h w 3"]:
    """Return a decoded frame as it is shown.

    size: width and height that it is scaled to, before it is turned, such as its `square_size`.

    Raises BrokenFile for colours that cannot be converted.
    """
    width, height = (max(1, round(side)) for side in size)
    if _has_alpha(frame):
        image = Image.fromarray(_on_white(frame))
        resized = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        return _turn(np.asarray(resized), frame)
    return _turn(_colours(frame, width, height), frame)


def _turn(pixels: np.ndarray, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """Turn and mirror pixels as the display matrix says, by the multiple of 90 degrees that is nearest to it."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is not None:
        a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).astype(float)  # x' = a x + c y, y' = b x + d y
        if abs(a) + abs(d) < abs(b) + abs(c):
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels)


def _has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)


def _on_white(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    alpha = frame.to_ndarray(format="rgba")[..., 3:].astype(np.float32) / 255
    colours = _colours(frame, frame.width, frame.height)
    return (colours * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def _colours(frame: av.VideoFrame, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return the colours of a frame in sRGB, scaled."""
    if name := UNSUPPORTED_COLOURS.get(int(frame.colorspace)):
        raise BrokenFile(f"has colours in {name}, which are not supported: convert it to BT.709 with FFmpeg first")
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    if transfer == UNSPECIFIED and frame.side_data.get("DOVI_METADATA") is not None:
        raise BrokenFile("is Dolby Vision without an HDR10 or SDR layer: convert it to SDR first")
    is_hdr = transfer in HDR_TRANSFERS
    scaling = Interpolation.AREA if width * height < frame.width * frame.height else Interpolation.LANCZOS
    options: dict[str, Any] = {} if (width, height) == (frame.width, frame.height) else {"interpolation": scaling}
    if is_hdr and int(frame.colorspace) == UNSPECIFIED:
        options["src_colorspace"] = Colorspace.BT2020
    if is_hdr and primaries == UNSPECIFIED:
        primaries = int(ColorPrimaries.BT2020)
    if transfer not in LINEAR_TRANSFERS and primaries not in WIDE_PRIMARIES:
        return frame.to_ndarray(format="rgb24", width=width, height=height, **options)
    signal = frame.to_ndarray(format="rgb48le", width=width, height=height, **options)
    return _to_srgb(signal, transfer, primaries)


def _to_srgb(signal: np.ndarray, transfer: int, primaries: int) -> UInt8[np.ndarray, "h w 3"]:
    """Convert HDR (PQ, HLG), linear light and wide gamuts to sRGB. signal: uint16 [h w 3]."""
    light = _light_table(transfer)[signal]
    if transfer == ColorTrc.ARIB_STD_B67:  # the display's part of HLG (BT.2100): light grows with luminance ** 1.2
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * luminance[..., None] ** np.float32(0.2) * np.float32(HLG_NITS / WHITE_NITS)
    if primaries in WIDE_PRIMARIES:
        light = light @ _gamut_matrix(primaries).T
    light = np.maximum(light, 0)
    if transfer in HDR_TRANSFERS:
        light = _compress_highlights(light)
    return (255 * _encode_srgb(light.clip(0, 1))).round().astype(np.uint8)


@lru_cache(maxsize=4)
def _light_table(transfer: int) -> Float32[np.ndarray, " 65536"]:
    """Return the linear light of each signal of 16 bits; 1 is white, for HLG the peak of the scene."""
    signal = np.linspace(0, 1, 1 << 16)
    if transfer == ColorTrc.SMPTE2084:  # BT.2100, table 4
        root = signal ** (32 / 2523)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (8192 / 1305)
        return (10000 / WHITE_NITS * light).astype(np.float32)
    if transfer == ColorTrc.ARIB_STD_B67:  # BT.2100, table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    if transfer == ColorTrc.LINEAR:
        return signal.astype(np.float32)
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _encode_srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _compress_highlights(light: np.ndarray) -> np.ndarray:
    """Return light of HDR in 0..1: what is below the knee stays, all above is between it and 1; hues stay."""
    brightest = light.max(-1, keepdims=True)
    above = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
    shown = np.where(brightest > KNEE, KNEE + (1 - KNEE) * above / (1 + above), brightest)
    return light * shown / np.maximum(brightest, 1e-6)


@lru_cache(maxsize=4)
def _gamut_matrix(primaries: int) -> Float32[np.ndarray, "3 3"]:
    """Return the matrix from linear light of wide primaries to that of BT.709."""
    to_xyz = (_xyz_matrix(WIDE_PRIMARIES[ColorPrimaries(primaries)]), _xyz_matrix(BT709))
    return (np.linalg.inv(to_xyz[1]) @ to_xyz[0]).astype(np.float32)


def _xyz_matrix(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*primaries, D65)]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])


def check_held(path: Path, frames: int, height: int, width: int, *, most: int = MAX_PIXELS) -> None:
    """Raise InputError for a file with more frames and pixels than should be held at once, before they are decoded."""
    given = os.environ.get("KINEOGRAPH_MAX_PIXELS", str(min(most, _physical_memory() // PIXEL_BYTES)))
    if not given.isascii() or not given.isdecimal() or len(given) > 18:
        raise InputError(f"the environment variable KINEOGRAPH_MAX_PIXELS is a number of pixels, not {given[:40]!r}")
    most = int(given)
    if frames * height * width > most or frames > MAX_HELD_FRAMES:
        raise InputError(
            f"{path} has {frames} frame{'s'[: frames > 1]} of {width} x {height}: expected at most {MAX_HELD_FRAMES} "
            f"frames, and {most} pixels in all (the environment variable KINEOGRAPH_MAX_PIXELS); "
            "cut it, or make it smaller"
        )


def _physical_memory() -> int:
    """Return the bytes of memory of this machine; where the system does not say, more than any has."""
    names = getattr(os, "sysconf_names", {})
    if not names.keys() >= {"SC_PAGE_SIZE", "SC_PHYS_PAGES"}:
        return 1 << 60
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
