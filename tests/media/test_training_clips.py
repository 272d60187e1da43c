"""Training clips: frames, rate and size of random windows, and errors of broken files."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered import movie, numbered, numbers, tar
from PIL import Image

from kineograph.errors import InputError
from kineograph.media.dataset_layouts import DatasetItem, media_kind
from kineograph.media.frames import BrokenFile
from kineograph.media.images import center_crop_resize
from kineograph.media.seek import _frame_rate, decode_frames_at, read_timing
from kineograph.media.shards import FileRange, FileSlice, list_tar_members, open_range
from kineograph.media.training_clips import Clip, load_clip, random_crop

B_FRAMES = {"bf": "2"}
FILES = {
    "a.mp4": ("libx264", B_FRAMES),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=12"}),
    "intra.mp4": ("mjpeg", {}),
    "a.mov": ("mpeg4", B_FRAMES),
    "a.mkv": ("libx264", B_FRAMES),
    "a.webm": ("libvpx-vp9", {}),
    "a.avi": ("mpeg4", B_FRAMES),  # its first frame is not shown at 0
    "a.ts": ("libx264", B_FRAMES),  # seeks land behind the time asked for
    "a.flv": ("libx264", B_FRAMES),  # cannot seek to its end
    "a.gif": ("gif", {}),  # cannot seek at all
}


def item(path: Path, caption: str = "") -> DatasetItem:
    return DatasetItem(path.name, caption, media_kind(path.name) or "video", FileRange(path))


def cut(path: Path, seed: int = 0, num_frames: int = 4, rates=None, height: int = 32, width: int = 48, **more) -> Clip:
    return load_clip(
        item(path, "grey"),
        np.random.default_rng(seed),
        num_frames=num_frames,
        height=height,
        width=width,
        rates=rates,
        **more,
    )


def starts(path: Path, num_frames: int, rates=None, seeds: int = 60) -> set[int]:
    return {numbers(cut(path, seed, num_frames, rates).frames)[0] for seed in range(seeds)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_window_holds_consecutive_frames(tmp_path: Path, name) -> None:
    codec, options = FILES[name]
    path = movie(tmp_path / name, numbered(30), codec=codec, options=options)
    for seed in range(8):
        found = cut(path, seed, num_frames=5)
        first, *_ = shown = numbers(found.frames)
        assert shown == list(range(first, first + 5))
        assert (found.frames.shape, found.frames.dtype, found.fps) == ((5, 32, 48, 3), np.uint8, 10)
        assert found.caption == "grey"
    assert numbers(cut(path, num_frames=30).frames) == list(range(30))


@pytest.mark.slow
def test_every_window_within_a_video_is_sampled(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(8), options=B_FRAMES)
    assert starts(path, 5) == {0, 1, 2, 3}
    assert starts(path, 8, seeds=3) == {0}
    assert starts(path, 1) == set(range(8))
    assert starts(path, 3, rates=[5]) == {0, 1, 2, 3}
    assert starts(path, 3, rates=[4]) == {0, 1, 2}


def test_frames_are_those_shown_at_the_requested_rate(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(24), options=B_FRAMES)
    for rate, steps in ((5, [0, 2, 4, 6]), (2.5, [0, 4, 8, 12]), (4, [0, 3, 5, 8]), (10, [0, 1, 2, 3])):
        found = cut(path, rates=[rate])
        assert found.fps == rate
        assert [number - numbers(found.frames)[0] for number in numbers(found.frames)] == steps


def test_rates_above_the_videos_own_are_not_sampled(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(24))
    assert {cut(path, seed, rates=[2, 5, 10, 24]).fps for seed in range(30)} == {2, 5, 10}
    with pytest.raises(BrokenFile, match=r"a\.mp4 has 10 frames a second, and at least 24 are asked for"):
        cut(path, rates=[30, 24])


def test_a_short_video_is_sampled_at_rates_it_is_long_enough_for(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(9))
    assert {cut(path, seed, num_frames=5, rates=[2, 4, 5, 10]).fps for seed in range(30)} == {5, 10}
    with pytest.raises(BrokenFile, match=r"a\.mp4 is too short: it has 9 frames at 10 a second, and 5 are asked for"):
        cut(path, num_frames=5, rates=[2, 4])


def test_a_rate_of_23_976_counts_as_24(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24000, 1001), options={"g": "12"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for pixels in numbered(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    for seed in range(10):
        found = cut(path, seed, num_frames=20, rates=[24])
        first = numbers(found.frames)[0]
        assert found.fps == pytest.approx(23.976, abs=1e-3)
        assert numbers(found.frames) == list(range(first, first + 20))  # though a container counts milliseconds


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_variable_rate_is_read_in_real_time(tmp_path: Path, name) -> None:
    times = [0, 1, 2, 3, 20, 21, 22, 50, 51, 52]  # tenths of a second
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = movie(tmp_path / name, numbered(10), times=times, codec=codec)
    with open_range(FileRange(path)) as part:
        whole = read_timing(part)
        assert (whole.start, round(whole.end - 1 / whole.fps, 3)) == (0, 5.2)
        shown = decode_frames_at(
            part, [0.0, 1.0, 1.9, 2.1, 4.5, 5.2], whole, lambda frame: frame.to_ndarray(format="rgb24")
        )
    half = 0.5 / whole.fps
    due = [max(n for n, time in enumerate(times) if time / 10 <= t + half) for t in (0.0, 1.0, 1.9, 2.1, 4.5, 5.2)]
    assert numbers(np.stack(shown)) == due


def test_the_same_generator_gives_the_same_clip(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(30))
    for seed in range(3):
        one, same = (cut(path, seed, rates=[5, 10], height=24, width=24, crop=random_crop) for _ in range(2))
        assert (one.frames == same.frames).all() and one.fps == same.fps


def test_a_clip_from_a_tar_is_the_clip_from_the_file(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(30), options=B_FRAMES)
    shard = tar(tmp_path / "s.tar", {"z.txt": b"x" * 700, "a.mp4": path.read_bytes(), "b.txt": b"y"})
    video = next(found for found in list_tar_members(shard, "s.tar")[0] if found.name == "s.tar/a.mp4")
    for seed in range(4):
        one, other = (
            load_clip(each, np.random.default_rng(seed), num_frames=4, height=32, width=48)
            for each in (item(path), DatasetItem(video.name, "", "video", video.file_range))
        )
        assert (one.frames == other.frames).all()


def test_a_window_in_a_long_video_is_reached_by_seeking(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (400, 64, 64, 3), dtype=np.uint8)
    path = movie(tmp_path / "a.mp4", grain, options={"g": "10"})
    asked = []

    class Recorded(io.FileIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    with Recorded(path) as file:
        part = FileSlice(file, 0, path.stat().st_size)
        whole = read_timing(part)
        decode_frames_at(part, [31.0, 31.1], whole, lambda frame: frame.to_ndarray(format="rgb24"))
    assert sum(asked) < 0.3 * path.stat().st_size


@pytest.mark.parametrize("size", [(33, 47), (31, 80), (90, 50)])
def test_any_size_is_scaled_to_cover_and_cropped(tmp_path: Path, size) -> None:
    frames = numbered(6, *size)
    path = movie(tmp_path / "a.mkv", frames, codec="ffv1")
    found = cut(path, num_frames=6, height=24, width=40)
    assert numbers(found.frames) == list(range(6)) and found.frames.shape == (6, 24, 40, 3)
    assert np.ptp(found.frames.reshape(6, -1).astype(int), axis=1).max() <= 2  # no border


def test_the_crop_is_centered_by_default(tmp_path: Path) -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert (cut(tmp_path / "a.png", num_frames=1, height=20, width=20).frames == 200).all()
    left = cut(tmp_path / "a.png", num_frames=1, height=20, width=20, crop=lambda rng: (0.0, 0.0))
    assert (left.frames == 0).all()
    means = {
        float(cut(tmp_path / "a.png", s, 1, height=20, width=20, crop=random_crop).frames.mean()) for s in range(9)
    }
    assert len(means) > 5


def test_images_are_scaled_like_footage_and_antialiased(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = cut(tmp_path / "a.png", num_frames=1, height=40, width=60).frames[0]
    assert (found == center_crop_resize(picture, 40, 60)).all()
    checks = (255 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "b.png")
    grey = cut(tmp_path / "b.png", num_frames=1, height=16, width=16).frames
    assert abs(grey[0, 2:-2, 2:-2].astype(int) - 127).max() < 8


def test_rotation_and_pixel_aspect_ratio_are_applied(tmp_path: Path) -> None:
    wide = numbered(4, 32, 64)
    wide[:, :, 32:] = 250  # at the right
    turned = movie(tmp_path / "a.mp4", wide, quarters=1)
    found = cut(turned, num_frames=4, height=64, width=32).frames
    with av.open(turned) as container:
        quarters = next(container.decode(video=0)).rotation // 90
    assert quarters % 2
    assert abs(found.astype(int) - np.rot90(wide, quarters, axes=(1, 2)))[:, 8:24, 4:-4].mean() < 3
    narrow = movie(tmp_path / "b.mp4", numbered(4, 32, 32), pixel=Fraction(2))
    with open_range(FileRange(narrow)) as part:
        assert read_timing(part).pixel_aspect == 2
    ring = np.zeros((4, 32, 32, 3), np.uint8)
    ring[:, 8:24, 12:20] = 255  # a square, once its pixels are shown twice as wide
    found = cut(movie(tmp_path / "c.mp4", ring, pixel=Fraction(2)), height=32, width=32).frames[0, :, :, 0] > 127
    assert abs(int(found.any(0).sum()) - int(found.any(1).sum())) <= 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_an_image_is_a_clip_of_one_frame(tmp_path: Path, name) -> None:
    Image.fromarray(numbered(8)[7]).save(tmp_path / name)
    found = cut(tmp_path / name, num_frames=1, rates=[8])
    assert found.frames.shape == (1, 32, 48, 3) and numbers(found.frames) == [7]
    with pytest.raises(BrokenFile, match=f"{name} is an image, which has one frame, and 4 are asked for"):
        cut(tmp_path / name)


def test_images_of_every_mode_look_as_in_a_viewer(tmp_path: Path) -> None:
    def seen(image: Image.Image, name: str = "a.png", **more) -> list[int]:
        image.save(tmp_path / name, **more)
        return cut(tmp_path / name, num_frames=1, height=8, width=8).frames[0, 4, 4].tolist()

    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert seen(clear) == [255, 255, 255] == seen(clear.convert("LA"))
    assert seen(Image.new("RGBA", (8, 8), (200, 0, 0, 255))) == [200, 0, 0]
    assert seen(Image.new("L", (8, 8), 90)) == [90, 90, 90]
    assert seen(Image.fromarray(np.full((8, 8), 90 << 8, np.uint16))) == [90, 90, 90]
    assert seen(Image.new("RGB", (8, 8), (10, 20, 30)).quantize(4)) == [10, 20, 30]
    assert max(seen(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "a.jpg")) < 4
    half = np.zeros((8, 8, 3), np.uint8)
    half[:, 4:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the camera lay on its side
    Image.fromarray(half).save(tmp_path / "b.png", exif=exif)
    found = cut(tmp_path / "b.png", num_frames=1, height=8, width=8).frames[0]
    assert (found[:4] == 0).all() and (found[4:] == 255).all()


def test_a_transparent_animation_is_blended_with_white(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste((200, 0, 0, 255), (4 * number, 0, 4 * number + 4, 16))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    found = cut(tmp_path / "a.gif", num_frames=3, height=16, width=16).frames
    assert (found[1, :, 5:7, 0] > 180).all() and (found[1, :, 5:7, 1] < 40).all() and (found[1, :, 10:] == 255).all()


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
def test_a_video_of_one_frame_gives_one_frame(tmp_path: Path, name, codec) -> None:
    path = movie(tmp_path / name, numbered(1), codec=codec)
    assert numbers(cut(path, num_frames=1, rates=[4, 8]).frames) == [0]
    with pytest.raises(BrokenFile, match="is too short: it has 1 frames"):
        cut(path, num_frames=2)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.flv"])
def test_a_truncated_file_is_reported(tmp_path: Path, name) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (40, 48, 48, 3), dtype=np.uint8)
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = movie(tmp_path / name, grain, codec=codec, container={"movflags": "+faststart"})
    cut(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for seed in range(4):
        with pytest.raises(BrokenFile, match=rf"{name} is cut short: [12]\.\d of its 4\.\d seconds are left"):
            cut(path, seed)


def test_damage_within_a_file_affects_only_its_windows(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (60, 48, 48, 3), dtype=np.uint8)
    path = movie(tmp_path / "a.mp4", grain, container={"movflags": "+faststart"})
    whole = path.read_bytes()
    quarter = len(whole) // 4
    path.write_bytes(whole[: 2 * quarter] + np.random.default_rng(1).bytes(quarter) + whole[3 * quarter :])
    messages = []
    for seed in range(12):
        try:
            cut(path, seed)
        except BrokenFile as error:
            messages.append(str(error))
    assert 0 < len(messages) < 12
    assert all(text.startswith("a.mp4 ") for text in messages)


def test_files_that_are_not_videos_are_reported_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "half.mp4").write_bytes(movie(tmp_path / "a.mp4", numbered(9)).read_bytes()[:600])  # its index is last
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    picture.save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    reasons = {
        "empty.mp4": "is empty",
        "empty.png": "is empty",
        "text.mp4": "cannot be decoded",
        "text.png": "cannot be decoded",
        "half.mp4": "cannot be decoded",
        "half.jpg": "cannot be decoded .*truncated",
        "moving.webp": "is an animated WEBP",
        "sound.mp4": "holds no video stream",
        "gone.mp4": "cannot be decoded .*No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(BrokenFile, match=f"^{name} {reason}") as raised:
            cut(tmp_path / name, num_frames=1)
        assert isinstance(raised.value, InputError)


def test_a_size_beyond_all_memory_is_damage(tmp_path: Path) -> None:
    whole = movie(tmp_path / "a.mp4", numbered(4)).read_bytes()
    count = whole.index(b"stts") + 8  # of the durations
    (tmp_path / "b.mp4").write_bytes(whole[:count] + b"\x7f\xff\xff\xf0" + whole[count + 4 :])
    with pytest.raises(BrokenFile, match=r"^b\.mp4 cannot be decoded \(it states sizes that need too much memory"):
        cut(tmp_path / "b.mp4", num_frames=1)


def test_uneven_steps_have_their_mean_as_frame_rate(tmp_path: Path) -> None:
    assert _frame_rate([0.0, 0.04, 0.2], 0.0) == pytest.approx(10)
    assert _frame_rate([0.0, 0.04, 0.08, 0.2], 0.0) == pytest.approx(25)
