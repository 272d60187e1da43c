"""Frames as a player shows them: the same pixels and times whoever reads them, in footage, training and curation."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from cases.small_media import movie
from numbered import movie as numbered_movie
from numbered import numbered, numbers
from PIL import Image, ImageCms

from kineograph.curation.decoding import frames_at_rate, open_decodable
from kineograph.errors import InputError, InputWarning
from kineograph.media.dataset_layouts import DatasetItem
from kineograph.media.footage import open_footage
from kineograph.media.frames import decode_stream, open_video_stream, to_rgb
from kineograph.media.images import read_image, to_rgb_image
from kineograph.media.seek import read_timing
from kineograph.media.shards import FileRange, open_range
from kineograph.media.training_clips import load_clip
from kineograph.media.video import Video, open_video

pytestmark = pytest.mark.slow  # `tests/cases/test_footage.py` has one of each kind
LOSSLESS = {"codec": "ffv1", "pix_fmt": "yuv444p"}


def by_footage(path: Path) -> np.ndarray:
    footage = open_footage(path)
    return next(footage.frames(footage.height, footage.width))


def by_open_video(path: Path) -> np.ndarray:
    return open_video(path).frames[0]


def by_training(path: Path) -> np.ndarray:
    """Return the first frame of a training clip at the size that footage has."""
    size = by_footage(path).shape[:2]
    item = DatasetItem(path.name, "", "video", FileRange(path))
    length = len(open_footage(path))  # the only window is all of it
    return load_clip(item, np.random.default_rng(0), num_frames=length, height=size[0], width=size[1]).frames[0]


def by_curation(path: Path) -> np.ndarray:
    with open_range(FileRange(path)) as file:
        return next(frames_at_rate(open_decodable(file, fps=None, shorter_side=None)))


@pytest.fixture(params=[by_footage, by_open_video, by_training, by_curation], ids=lambda each: each.__name__)
def read(request: pytest.FixtureRequest) -> Callable[[Path], np.ndarray]:
    return request.param


def near(one: np.ndarray, other: np.ndarray, within: float = 6) -> bool:
    return one.shape == other.shape and float(np.abs(one.astype(int) - other).mean()) < within


def quadrants(height: int = 32, width: int = 64) -> np.ndarray:
    """Return a frame of four colours, unlike itself turned or mirrored."""
    frame = np.full((height, width, 3), 40, np.uint8)
    frame[: height // 2, width // 2 :], frame[height // 2 :, : width // 2] = (200, 60, 60), (60, 60, 200)
    return frame


# --- shape


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_all_orientations(tmp_path: Path, read, quarters, mirrored) -> None:
    path = tmp_path / "a.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"qp": "4"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.set_display_rotation(90 * quarters, hflip=mirrored)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quadrants(), format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(path) as container:  # FFmpeg's matrix decides what "as a player" is
        a, b, _, c, d, *_ = np.frombuffer(bytes(next(container.decode(video=0)).side_data["DISPLAYMATRIX"]), np.int32)
    expected = np.empty((64, 32, 3) if quarters % 2 else (32, 64, 3), np.uint8)
    for y, x in np.ndindex(
        32, 64
    ):  # from the definition: (x, y) is shown at (a x + c y, b x + d y), moved to the frame
        across, down = np.sign(a) * x + np.sign(c) * y, np.sign(b) * x + np.sign(d) * y
        expected[down % expected.shape[0], across % expected.shape[1]] = quadrants()[y, x]
    shifted = [np.roll(expected, (dy, dx), (0, 1)) for dy in (0, -1, 1) for dx in (0, -1, 1)]
    assert any(near(read(path), each) for each in shifted)


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2), (32, 128)), (Fraction(1, 2), (64, 64))])
def test_pixels_are_square(tmp_path: Path, read, aspect: Fraction, size: tuple[int, int]) -> None:
    path = numbered_movie(tmp_path / "a.mp4", np.stack([quadrants()] * 3), pixel=aspect, options={"qp": "4"})
    assert near(read(path), np.asarray(Image.fromarray(quadrants()).resize(size[::-1])))


def test_a_turned_anamorphic_video_has_the_shape_that_is_shown(tmp_path: Path, read) -> None:
    path = numbered_movie(tmp_path / "a.mp4", np.stack([quadrants()] * 3), pixel=Fraction(3, 2), quarters=1)
    assert read(path).shape == (96, 32, 3)


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mkv", [quadrants(33, 47)] * 2, **LOSSLESS)
    assert near(by_footage(path), quadrants(33, 47), 2) and near(by_open_video(path), quadrants(33, 47), 2)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [movie(tmp_path / f"{side}.ts", [quadrants(side, 2 * side)] * 3) for side in (32, 64)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    video = open_video(tmp_path / "a.ts")
    assert video.frames.shape[1:] == (32, 64, 3) and near(video.frames[-1], quadrants(), 12)


# --- colours


def coloured(path: Path, colour: tuple[int, int, int], tags: tuple[int, int, int, int], **more) -> Path:
    return movie(path, [np.full((32, 32, 3), colour, np.uint8)] * 3, **{"codec": "ffv1", **more}, colour=tags)


RGB = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"qp": "0"}}
PQ_OF_NITS = {0: 0, 50: 0.4398, 203: 0.5807, 1000: 0.7518, 10000: 1.0}  # BT.2100
HLG_OF_WHITE = {203: 0.75, 1000: 1.0}  # BT.2408


@pytest.mark.parametrize(("transfer", "signals"), [(16, PQ_OF_NITS), (18, HLG_OF_WHITE)], ids=["pq", "hlg"])
def test_hdr_is_mapped_to_sdr(tmp_path: Path, read, transfer: int, signals: dict[int, float]) -> None:
    shown = {}
    for nits, signal in signals.items():
        path = tmp_path / f"{nits}.mkv"
        grey = (round(255 * signal),) * 3
        frame = read(coloured(path, grey, (9, transfer, 9, 1), pix_fmt="yuv444p16le"))[16, 16].astype(int)
        assert np.ptp(frame) <= 2  # a grey stays grey
        shown[nits] = int(frame.mean())
    assert shown[203] > 235 and [*shown.values()] == sorted(shown.values()) and len(set(shown.values())) == len(shown)
    if transfer == 16:
        expected = 255 * (1.055 * (50 / 203) ** (1 / 2.4) - 0.055)  # below the knee, light is kept
        assert shown[0] == 0 and shown[50] == pytest.approx(expected, abs=3) and shown[10000] >= 254


@pytest.mark.parametrize(
    ("primaries", "wide"), [(9, (0.6274, 0.0691, 0.0164)), (12, (0.8225, 0.0332, 0.0171))], ids=["bt2020", "p3"]
)
def test_wide_gamuts_are_converted(tmp_path: Path, read, primaries: int, wide: tuple[float, float, float]) -> None:
    # red of BT.709 in linear light of the wider primaries (BT.2087; CSS Color 4), so that it is red again
    signal = [round(255 * (1.055 * each ** (1 / 2.4) - 0.055)) for each in wide]
    path = coloured(tmp_path / "a.mkv", tuple(signal), (primaries, 13, 0, 2), **RGB)
    assert near(read(path)[16, 16], np.array([255, 0, 0]), 4)
    grey = coloured(tmp_path / "b.mkv", (120, 120, 120), (primaries, 13, 0, 2), **RGB)
    assert near(read(grey)[16, 16], np.array([120] * 3), 1)


@pytest.mark.parametrize("matrix", [8, 14])
def test_colours_that_are_not_supported_are_named(tmp_path: Path, read, matrix: int) -> None:
    path = coloured(tmp_path / "a.mkv", (200, 40, 60), (1, 1, matrix, 1), pix_fmt="yuv444p")
    with pytest.raises(InputError, match=r"a\.mkv .*has colours in|has colours in"):
        read(path)


@pytest.mark.parametrize(("tags", "name"), [((1, 1, 1, 1), "709"), ((6, 6, 6, 1), "601"), ((1, 1, 1, 2), "full")])
def test_stated_matrices_and_ranges_count(tmp_path: Path, tags, name: str) -> None:
    luma, blue, red = 120, 90, 160
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv444p"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        planes = np.stack([np.full((32, 32), each, np.uint8) for each in (luma, blue, red)])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        container.mux(stream.encode(None))
    kr, kb = (0.2126, 0.0722) if tags[2] == 1 else (0.299, 0.114)
    y, pb, pr = (
        (luma / 255, (blue - 128) / 255, (red - 128) / 255)
        if tags[3] == 2
        else ((luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224)
    )
    r, b = y + 2 * (1 - kr) * pr, y + 2 * (1 - kb) * pb
    expected = 255 * np.array([r, (y - kr * r - kb * b) / (1 - kr - kb), b])
    assert near(by_footage(path)[16, 16], expected, 2)


@pytest.mark.parametrize(("pix_fmt", "most"), [("gray16le", 65535), ("gray10le", 1023), ("gray", 255)])
def test_grey_of_any_depth_is_scaled(tmp_path: Path, read, pix_fmt: str, most: int) -> None:
    ramp = np.tile(np.linspace(0, most, 64), (64, 1)).astype(np.uint8 if most == 255 else np.uint16)
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, pix_fmt
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format=pix_fmt)))
        container.mux(stream.encode(None))
    assert near(read(path)[0, :, 0], np.linspace(0, 255, 64), 2)


def test_half_transparent_pixels_are_blended_with_white(tmp_path: Path, read) -> None:
    half = np.full((32, 32, 4), (200, 0, 0, 128), np.uint8)
    path = movie(tmp_path / "a.mov", [half] * 3, codec="qtrle", pix_fmt="argb")
    assert near(read(path)[16, 16], np.array([227, 127, 127]), 2)


# --- times


def times_of(path: Path) -> tuple[float, float, int]:
    with open_range(FileRange(path)) as file:
        timing = read_timing(file)
    footage = open_footage(path)
    assert footage.fps == pytest.approx(timing.fps)
    return footage.fps, timing.end - timing.start, len(footage)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "ts", "mov", "flv", "mpg"])
def test_all_frames_of_an_even_rate_are_read_once(tmp_path: Path, ending: str) -> None:
    codec = "mpeg2video" if ending == "mpg" else "libx264"
    path = numbered_movie(tmp_path / f"a.{ending}", numbered(36), rate=25, codec=codec, options={"bf": "2"})
    assert times_of(path) == (pytest.approx(25), pytest.approx(36 / 25, abs=0.01), 36)
    assert numbers(open_video(path).frames) == list(range(36))


def test_frames_of_a_varying_rate_are_shown_when_their_timestamps_say(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 20, 21, 22, 30, 31, 32]  # tenths of a second
    path = numbered_movie(tmp_path / "a.mp4", numbered(10), times=times)
    fps, seconds, count = times_of(path)
    assert (fps, count) == (pytest.approx(10), 33) and seconds == pytest.approx(3.3)
    shown = numbers(open_video(path).frames)
    assert shown == [max(n for n, time in enumerate(times) if time <= tick) for tick in range(33)]


def test_jitter_repeats_no_frame(tmp_path: Path) -> None:
    jitter = np.random.default_rng(0).integers(-9, 10, 39)
    milliseconds = [0, *(40 * np.arange(1, 40) + jitter).tolist()]
    path = movie(tmp_path / "a.mkv", list(numbered(40)), milliseconds=milliseconds, rate=25)
    assert open_footage(path).indices == tuple(range(40))


def test_a_raw_stream_is_read_in_order_at_its_own_rate(tmp_path: Path, read) -> None:
    path = movie(tmp_path / "a.h264", list(numbered(20)), rate=12, options={"bf": "2"})
    assert times_of(path) == (12, pytest.approx(20 / 12), 20)
    assert numbers(open_video(path).frames) == list(range(20))
    item = DatasetItem("a", "", "video", FileRange(path))
    for seed in range(4):
        shown = numbers(load_clip(item, np.random.default_rng(seed), num_frames=5, height=32, width=48).frames)
        assert shown == list(range(shown[0], shown[0] + 5))
    assert near(read(path), numbered(1)[0])


def test_a_cover_before_the_video_is_not_the_video(tmp_path: Path, read) -> None:
    path = tmp_path / "a.mp4"
    with av.open(path, "w") as container:
        cover = container.add_stream("mjpeg", rate=10)
        cover.height, cover.width, cover.pix_fmt = 200, 300, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        image = np.full((200, 300, 3), (250, 0, 0), np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")))
        for pixels in numbered(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(_with_cover_first(path.read_bytes()))
    with av.open(path) as container:
        assert [each.width for each in container.streams.video] == [300, 48]
    assert near(read(path), numbered(1)[0])


def _with_cover_first(content: bytes) -> bytes:
    """Move the box of an mp4 that holds the cover before those of the tracks."""

    def size(at: int) -> int:
        return int.from_bytes(content[at : at + 4], "big")

    moov = content.index(b"moov") - 4
    udta = content.index(b"udta", moov) - 4
    first = moov + 8 + size(moov + 8)  # behind the header
    box = content[udta : udta + size(udta)]
    return content[:first] + box + content[first:udta] + content[udta + size(udta) :]


def test_a_cut_broadcast_begins_with_its_first_key_frame(tmp_path: Path) -> None:
    whole = numbered_movie(tmp_path / "whole.ts", numbered(30), options={"g": "10", "bf": "0"})
    with av.open(whole) as container:
        keys = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe and packet.pos is not None]
    content, packet = whole.read_bytes(), 188
    (tmp_path / "a.ts").write_bytes(content[: 3 * packet] + content[keys[1] // packet * packet - 3 * packet :])
    shown = numbers(open_video(tmp_path / "a.ts").frames)
    assert shown[0] in (9, 10) and shown == list(range(shown[0], 30))


def test_interlaced_frames_are_as_many_and_at_the_same_times(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "field_order": "tt"}
    path = movie(tmp_path / "a.mpg", list(numbered(12, 64, 96)), codec="mpeg2video", rate=25, options=options)
    with av.open(path) as container:
        plain = [frame.time for frame in container.decode(video=0)]
    with open_video_stream(str(path)) as (container, stream):
        frames = list(decode_stream(container, stream))
    assert [frame.time for frame in frames] == pytest.approx(plain) and not any(
        each.interlaced_frame for each in frames
    )
    assert numbers(np.stack([to_rgb(frame, (96, 64)) for frame in frames])) == list(range(12))
    item = DatasetItem("a", "", "video", FileRange(path))
    shown = numbers(load_clip(item, np.random.default_rng(1), num_frames=5, height=64, width=96).frames)
    assert shown == list(range(shown[0], shown[0] + 5))


def test_a_container_does_not_fetch_other_files(tmp_path: Path) -> None:
    video = numbered_movie(tmp_path / "a.ts", numbered(3))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nhttp://127.0.0.1:9/{video.name}\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(InputError):
        open_footage(playlist)


# --- images and animations


def test_animations_keep_their_times(tmp_path: Path) -> None:
    images = [Image.fromarray(frame) for frame in numbered(3)]
    for name in ("a.webp", "a.png", "a.gif"):
        more = {"lossless": True} if name == "a.webp" else {}
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=[100, 100, 500], **more)
        video = open_video(tmp_path / name)
        assert (video.fps, numbers(video.frames)) == (10, [0, 1, 2, 2, 2, 2, 2])


def test_the_image_of_viewers_without_animation_is_no_frame(tmp_path: Path) -> None:
    still, *images = [Image.fromarray(frame) for frame in numbered(4)]
    still.save(tmp_path / "a.png", save_all=True, append_images=images, duration=100, default_image=True)
    assert numbers(open_video(tmp_path / "a.png").frames) == [1, 2, 3]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "F", "CMYK"])
def test_images_of_every_mode_are_grey_where_they_are(tmp_path: Path, mode: str) -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1)))
    expected = np.asarray(ramp.convert("1").convert("L") if mode == "1" else ramp)[0]
    special = {"I;16": np.asarray(ramp).astype(np.uint16) * 257, "F": np.asarray(ramp).astype(np.float32) / 255}
    image = Image.fromarray(special[mode]) if mode in special else (ramp.convert("RGB") if mode == "CMYK" else ramp)
    shown = np.asarray(to_rgb_image(image if mode in special else image.convert(mode)))
    assert near(shown[0, :, 1], expected, 6 if mode in ("P", "PA") else 2)


def test_profiles_of_colours_count(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red = Image.new("RGB", (32, 32), (200, 30, 40))
    red.save(tmp_path / "srgb.png", icc_profile=profile)
    red.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    red.convert("L").save(tmp_path / "other.png", icc_profile=profile)  # three channels for one
    assert near(read_image(tmp_path / "srgb.png").pixels[5, 5], np.array([200, 30, 40]), 1)
    assert near(read_image(tmp_path / "damaged.png").pixels[5, 5], np.array([200, 30, 40]), 0.1)
    assert near(read_image(tmp_path / "other.png").pixels[5, 5], np.array([82] * 3), 1)
    head, tail = profile[:500], profile[500:]  # the table of tags says where red and blue are: exchanged
    swapped = head.replace(b"rXYZ", b"?").replace(b"bXYZ", b"rXYZ").replace(b"?", b"bXYZ") + tail
    red.save(tmp_path / "swapped.jpg", icc_profile=swapped, quality=98)
    assert near(read_image(tmp_path / "swapped.jpg").pixels[5, 5], np.array([40, 30, 200]), 6)
    assert near(by_footage(tmp_path / "swapped.jpg")[5, 5], np.array([40, 30, 200]), 6)


def test_frames_of_a_folder_are_upright_and_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (1, 2, 10):
        Image.new("RGB", (48, 32), (number,) * 3).save(tmp_path / f"frame_{number}.png", exif=exif)
    with pytest.warns(InputWarning, match="no frames between frame_2.png and frame_10.png"):
        videos = open_video(tmp_path), Video(np.stack(list(open_footage(tmp_path).frames(48, 32))))
    for video in videos:
        assert video.frames.shape == (3, 48, 32, 3) and video.frames[:, 0, 0, 0].tolist() == [1, 2, 10]
