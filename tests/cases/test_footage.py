"""Reading of videos and images as phones, browsers, cameras and editors write them."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from cases.program import run
from cases.small_media import movie
from PIL import Image

import kineograph as kg
from kineograph.errors import InputError
from kineograph.media.footage import open_footage
from kineograph.media.images import read_image

PLAIN = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def corners() -> np.ndarray:
    """Return a frame whose upper right is red and lower left is blue, unlike itself turned or mirrored."""
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:16, 32:] = (255, 0, 0)
    frame[16:, :32] = (0, 0, 255)
    return frame


def display_matrix(*values: float) -> bytes:
    """Return the nine numbers of a track header's matrix; the third column has other fixed-point units."""
    units = (1 << 16, 1 << 16, 1 << 30) * 3
    return struct.pack(">9i", *(int(value * unit) for value, unit in zip(values, units, strict=True)))


def phone_video(path: Path, matrix: tuple[int, ...]) -> Path:
    """Write a video of `corners` whose track header has this display matrix."""
    raw = movie(path, [corners()] * 6).read_bytes()
    at = raw.index(display_matrix(*PLAIN), raw.index(b"tkhd"))
    path.write_bytes(raw[:at] + display_matrix(*matrix) + raw[at + 36 :])
    return path


def first_frame(path: Path) -> np.ndarray:
    footage = open_footage(path)
    return next(footage.frames(footage.height, footage.width))


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.abs(one.astype(int) - other).mean() < 10


READERS = pytest.mark.parametrize(
    "read", [lambda path: kg.open_video(path).frames[0], first_frame], ids=["open_video", "open_footage"]
)


# case 39
@READERS
@pytest.mark.parametrize(
    ("matrix", "axis"), [((-1, 0, 0, 0, 1, 0, 64, 0, 1), 1), ((1, 0, 0, 0, -1, 0, 0, 32, 1), 0)], ids=["across", "down"]
)
def test_mirrored_video_is_mirrored_as_in_a_player(tmp_path: Path, read, matrix, axis) -> None:
    assert alike(read(phone_video(tmp_path / "mirrored.mp4", matrix)), np.flip(corners(), axis))


# case 40
@READERS
@pytest.mark.parametrize(
    ("matrix", "quarters"),
    [
        ((0, 1, 0, -1, 0, 0, 32, 0, 1), 3),
        ((-1, 0, 0, 0, -1, 0, 64, 32, 1), 2),
        ((0, -1, 0, 1, 0, 0, 0, 64, 1), 1),
    ],
    ids=["90", "180", "270"],
)
def test_rotated_video_is_upright(tmp_path: Path, read, matrix, quarters) -> None:
    assert alike(read(phone_video(tmp_path / "rotated.mp4", matrix)), np.rot90(corners(), quarters))


# case 42. BT.2408 puts white of 203 nits at 58 % of PQ and 75 % of HLG
@pytest.mark.parametrize(("signal", "transfer"), [(0.58, 16), (0.75, 18)], ids=["pq", "hlg"])
def test_white_of_hdr_video_is_white_or_hdr_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal, transfer
) -> None:
    monkeypatch.chdir(tmp_path)  # no name of a folder in what `inspect` prints
    frame = np.full((64, 64, 3), round(255 * signal), np.uint8)
    frame[:32] = 0
    x265 = {"x265-params": "log-level=none"}
    path = movie(
        Path("phone.mp4"),
        [frame] * 4,
        codec="libx265",
        pix_fmt="yuv420p10le",
        options=x265,
        colour=(9, transfer, 9, 1),
    )
    white = int(kg.open_video(path).frames[0][40:60].mean())
    assert white > 235 or "hdr" in run("inspect", path).text.lower(), white


def trimmed(folder: Path) -> Path:
    """Write a video of greys whose first ten frames an edit list cuts off, as trimming without re-encoding does."""
    frames = [np.full((32, 32, 3), 8 * number, np.uint8) for number in range(24)]
    whole = movie(folder / "whole.mp4", frames, options={"g": "24", "bf": "0", "sc_threshold": "0"})
    edits = {"use_editlist": "1", "avoid_negative_ts": "disabled", "movflags": "+faststart"}
    with av.open(whole) as read, av.open(folder / "cut.mp4", "w", options=edits) as written:
        source = read.streams.video[0]
        stream = written.add_stream_from_template(source)
        shift = int(10 / 8 / source.time_base)
        for packet in read.demux(source):
            if packet.dts is not None:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = stream
                written.mux(packet)
    return folder / "cut.mp4"


# case 43
def test_trimmed_video_has_the_frames_that_a_player_shows(tmp_path: Path) -> None:
    path = trimmed(tmp_path)
    with av.open(path) as container:
        shown = [int(frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    assert len(list(open_footage(path).frames(32, 32))) == len(shown)
    slower = [int(frame.mean()) for frame in open_footage(path, fps=4).frames(32, 32)]
    assert slower == pytest.approx(shown[::2], abs=5)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Path, float]:
    """A recording as browsers write it, and its length in seconds: VP8 at uneven times, without a stored rate."""
    folder = tmp_path_factory.mktemp("recording")
    random = np.random.default_rng(1)
    steps = random.choice([16, 33, 50], 72).tolist()
    times = [sum(steps[:number]) for number in range(72)]
    frames = [
        np.clip(random.integers(0, 30, (48, 64, 3)) + 3 * number, 0, 255).astype(np.uint8) for number in range(72)
    ]
    quick = {"lag-in-frames": "0", "deadline": "realtime", "cpu-used": "8"}
    stored = movie(folder / "a.mkv", frames, codec="libvpx", rate=30, options=quick, milliseconds=times)
    with av.open(stored) as read, av.open(folder / "recording.webm", "w", options={"live": "1"}) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    return folder / "recording.webm", sum(steps) / 1000


# case 45
@pytest.mark.parametrize(
    "opened",
    [
        pytest.param(kg.open_video, id="open_video"),
        pytest.param(open_footage, id="open_footage"),
        pytest.param(lambda path: open_footage(path, fps=10), id="open_footage-10-fps"),
    ],
)
def test_recording_of_a_browser_keeps_its_length(recording, opened) -> None:
    path, seconds = recording
    video = opened(path)
    assert len(video) / video.fps == pytest.approx(seconds, abs=0.2)


def red_square_on_nothing() -> list[np.ndarray]:
    """Return two frames with alpha."""
    first = np.zeros((32, 32, 4), np.uint8)
    first[8:24, 8:24] = (255, 0, 0, 255)
    return [first, np.roll(first, 4, 1)]


def transparent(path: Path) -> Path:
    """Write two frames with alpha in the format of the name's ending; without one, as a folder."""
    frames = red_square_on_nothing()
    first, second = map(Image.fromarray, frames)
    animated = {"save_all": True, "append_images": [second], "duration": 125}
    if path.suffix == ".gif":
        first.save(path, disposal=2, transparency=0, **animated)
    elif path.suffix == ".webp":
        first.save(path, lossless=True, **animated)
    elif path.suffix == ".png":
        first.save(path, **animated)
    elif path.suffix == ".mov":
        movie(path, frames, codec="qtrle", pix_fmt="argb")
    elif path.suffix == ".webm":
        movie(path, frames, codec="libvpx-vp9", pix_fmt="yuva420p", options={"auto-alt-ref": "0"})
    else:
        path.mkdir()
        for number, image in enumerate((first, second)):
            image.save(path / f"frame_{number:04d}.png")
    return path


# case 46
@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.mov", "a.webm", "frames"])
def test_transparent_footage_is_laid_on_white(tmp_path: Path, name) -> None:
    footage = open_footage(transparent(tmp_path / name))
    assert len(footage) == 2
    assert next(footage.frames(32, 32))[2, 2].min() > 200


# case 47
@pytest.mark.parametrize("name", ["maps", "one.png"])
def test_depth_maps_of_16_bits_are_scaled_to_8(tmp_path: Path, name) -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1)))
    (tmp_path / "maps").mkdir()
    for file in ("maps/frame_0000.png", "maps/frame_0001.png", "one.png"):
        ramp.save(tmp_path / file)
    assert abs(int(first_frame(tmp_path / name)[0, 32, 0]) - 128) < 8


# case 47
def test_image_to_animate_of_16_bits_is_scaled_to_8(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))).save(tmp_path / "one.png")
    assert abs(int(read_image(tmp_path / "one.png").pixels[0, 32, 0]) - 128) < 8


# case 47
def test_red_of_a_cmyk_image_is_red(tmp_path: Path) -> None:
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert first_frame(tmp_path / "cmyk.jpg")[5, 5, 0] > 200


# case 48
def test_frames_with_unpadded_numbers_come_in_numerical_order_or_are_refused(tmp_path: Path) -> None:
    for number in range(1, 13):
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(tmp_path / f"frame_{number}.png")
    try:
        got = [int(frame.mean() // 20) for frame in open_footage(tmp_path).frames(16, 16)]
    except InputError:
        return
    assert got == list(range(1, 13))


# case 49
def test_photo_is_upright_as_footage_as_it_is_to_animate(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32))
    image.paste((255, 0, 0), (32, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert first_frame(tmp_path / "photo.jpg").shape == read_image(tmp_path / "photo.jpg").pixels.shape


# case 51
def test_interlaced_footage_is_not_combed_or_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = []
    for number in range(8):
        frame = np.zeros((64, 96, 3), np.uint8)
        frame[0::2, 10 + 8 * number : 30 + 8 * number] = 255
        frame[1::2, 14 + 8 * number : 34 + 8 * number] = 255
        frames.append(frame)
    options = {"flags": "+ildct+ilme", "b": "4000k", "field_order": "tt"}
    path = movie(Path("dvd.mpg"), frames, codec="mpeg2video", rate=25, options=options)
    first = next(open_footage(path).frames(64, 96)).astype(int).mean(-1)
    combing = np.abs(first[2:-2:2] - (first[1:-3:2] + first[3:-1:2]) / 2).mean()
    assert combing < 3 or "interlac" in run("inspect", path).text.lower(), combing
