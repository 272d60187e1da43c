"""Input videos: selected frames, frame rate, size, and errors for unsuitable files."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numbered import movie, numbered, numbers
from PIL import Image

from kineograph.errors import InputError, InputWarning, is_memory_label
from kineograph.media.footage import Footage, open_footage, output_size, stack_in_chunks
from kineograph.media.images import center_crop_resize
from kineograph.media.video import Video


def shown(footage: Footage) -> list[int]:
    """Return the numbers of the frames."""
    return numbers(np.stack(list(footage.frames(footage.height, footage.width))))


def wide(path: str) -> Footage:
    """Return footage of one frame of 1920 x 1080, which cannot be read."""
    return Footage(path, (0,), 1, 1080, 1920, lambda: iter(()), lambda: "")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.webp", "a.gif", "folder"])
def test_by_default_all_frames_are_read_at_the_files_rate(tmp_path: Path, name) -> None:
    frames = numbered(6)
    path = movie(tmp_path / name, frames) if name.endswith("mkv") else Video(frames, 10).save(tmp_path / name)
    footage = open_footage(path)
    assert (len(footage), footage.fps, footage.height, footage.width) == (6, 10, 32, 48)
    assert shown(footage) == list(range(6))
    assert shown(open_footage(path, num_frames=2)) == [0, 1]


def test_resampling_takes_the_frame_shown_at_each_time(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(10))
    assert shown(open_footage(path, fps=5)) == [0, 2, 4, 6, 8]
    assert shown(open_footage(path, fps=4)) == [0, 2, 5, 7]
    assert shown(open_footage(path, fps=20, num_frames=5)) == [0, 0, 1, 1, 2]
    uneven = movie(tmp_path / "b.mp4", numbered(4), times=[0, 1, 6, 8])
    assert shown(open_footage(uneven, fps=5)) == [0, 1, 1, 2, 3]


def test_frames_are_scaled_to_cover_and_cropped_at_the_center() -> None:
    frame = np.zeros((10, 30, 3), np.uint8)
    frame[:, 10:20] = 200
    assert (center_crop_resize(frame, 10, 10) == 200).all()
    assert center_crop_resize(frame, 20, 60).shape == (20, 60, 3)
    assert center_crop_resize(frame, 10, 30) is not None and (center_crop_resize(frame, 10, 30) == frame).all()


@pytest.mark.parametrize(
    ("asked", "got"),
    [((None, None), (288, 512)), ((None, 256), (144, 256)), ((144, None), (144, 256)), ((152, 256), (152, 256))],
)
def test_output_size_follows_the_footages_aspect_ratio(asked, got) -> None:
    assert output_size(wide("a"), *asked, side=512, factor=8) == got


def test_another_aspect_ratio_is_refused() -> None:
    with pytest.raises(InputError, match=r"1920 x 1080, and a video of 512 x 512 .* another shape"):
        output_size(wide("a.mp4"), 512, 512, side=512, factor=8)


def test_unsuitable_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", numbered(5))
    with pytest.raises(InputError, match="has 5 frames, and 8 are asked for: ask for 5 or fewer"):
        open_footage(path, num_frames=8)
    with pytest.raises(InputError, match="has 1 frames at 2 a second, and 3 are asked for"):
        open_footage(path, num_frames=3, fps=2)
    with pytest.raises(InputError, match="there is no file"):
        open_footage(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(InputError, match="damaged, or not an image or video"):
        open_footage(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without frames"):
        open_footage(tmp_path / "empty")


def test_a_file_without_a_video_stream_is_refused(tmp_path: Path) -> None:
    with av.open(tmp_path / "silent.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video stream: it is damaged, or has only audio"):
        open_footage(tmp_path / "silent.mp4")


def test_a_truncated_file_names_the_frame(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    path = movie(tmp_path / "a.mkv", grain)
    whole = path.read_bytes()
    footage = open_footage(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.mkv (breaks off after|cannot be read beyond) frame \d+"):
        list(footage.frames(64, 64))
    ours = Video(grain, 10).save(tmp_path / "ours.mp4")
    ours.write_bytes(ours.read_bytes()[: ours.stat().st_size // 2])
    with pytest.raises(InputError, match=r"(breaks off|cannot be read beyond|cut short)"):
        list(open_footage(ours).frames(64, 64))


def test_chunks_are_read_lazily(tmp_path: Path) -> None:
    read = []

    def frames():
        for number in range(5):
            read.append(number)
            yield np.zeros((2, 2, 3), np.uint8)

    chunks = stack_in_chunks(frames(), 2)
    assert len(next(chunks)) == 2 and read == [0, 1]
    assert [len(chunk) for chunk in chunks] == [2, 1]


def test_the_digest_depends_on_the_content(tmp_path: Path) -> None:
    one, same, other = (Video(numbered(n)).save(tmp_path / f"{k}.mp4") for k, n in enumerate((3, 3, 4)))
    assert open_footage(one).digest == open_footage(same).digest != open_footage(other).digest


def test_resampling_a_matroska_file_to_its_own_rate_repeats_no_frame(tmp_path: Path) -> None:
    frames = np.stack([np.full((16, 16, 3), 8 * number, np.uint8) for number in range(20)])
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 16
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert open_footage(path, fps=30).indices == tuple(range(20))


# --- frames in memory


def in_memory(frames: np.ndarray) -> dict[str, object]:
    """Return the same frames as every object that is accepted."""
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return {
        "Video": Video(frames, 10),
        "images": [Image.fromarray(frame) for frame in frames],
        "arrays": list(frames),
        "tuple": tuple(frames),
        "array": frames,
        "floats": frames / 255,
        "half": (frames / 255).astype(np.float16),
        "batch of arrays": frames[None],
        "tensor": tensor / 255,
        "bytes": tensor,
        "batch of tensors": tensor[None] / 255,
        "tensors": list(tensor / 255),
    }


@pytest.mark.parametrize("kind", in_memory(numbered(2)))
def test_frames_in_memory_are_read_like_a_file(kind: str) -> None:
    frames = numbered(6)
    footage = open_footage(in_memory(frames)[kind])
    rate = 10 if kind == "Video" else 8
    assert (len(footage), footage.fps, footage.height, footage.width) == (6, rate, 32, 48)
    assert np.array_equal(np.stack(list(footage.frames(32, 48))), frames)
    assert np.array_equal(np.stack(list(footage.frames(32, 48))), frames)  # a second time too
    assert next(footage.frames(16, 16)).shape == (16, 16, 3)
    assert footage.digest == Video(frames).digest
    assert footage.path == f"video in memory (6 frames of 48 x 32, sha256 {footage.digest[:16]})"
    assert is_memory_label(footage.path)


def test_a_rate_resamples_a_video_and_is_that_of_frames_without_one() -> None:
    frames = numbered(10)
    assert shown(open_footage(Video(frames, 10), fps=5)) == [0, 2, 4, 6, 8]
    assert shown(open_footage(Video(frames, 10), fps=5, num_frames=2)) == [0, 2]
    slow = open_footage(frames, fps=5, num_frames=4)
    assert (shown(slow), slow.fps) == ([0, 1, 2, 3], 5)
    with pytest.raises(InputError, match=r"video in memory \(.*\) has 10 frames, and 11 are asked for"):
        open_footage(frames, num_frames=11)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "`video` holds no frames"),
        (np.zeros((0, 8, 8, 3)), "`video` holds no frames"),
        (5, "`video` is a path, a kineograph.Video, .*, not an object of type int"),
        ({"a": 1}, "not an object of type dict"),
        (Image.new("RGB", (8, 6)), "not one PIL image of 8 x 6"),
        (np.zeros((6, 8, 3), np.uint8), r"not an array \[6 8 3\] of uint8"),
        (np.zeros((2, 3, 6, 8)), r"not an array \[3 6 8\] of float64"),
        (torch.zeros(3, 6, 8), r"not a tensor \[3 6 8\] of float32"),
        (torch.zeros(2, 6, 8, 3), r"not a tensor \[6 8 3\] of float32"),
        (np.zeros((2, 6, 8, 3), int), "the values of `video` are uint8 .* or floats from 0 to 1, not int64"),
        (np.full((2, 6, 8, 3), 255.0), "these floats are from 255 to 255"),
        (-torch.ones(2, 3, 6, 8), "these floats are from -1 to -1"),
        (np.full((2, 6, 8, 3), np.nan), "these floats are from nan to nan"),
        (["a.png"], "is a list, of which each is a PIL image, .*, not an object of type str"),
        ([Image.new("RGB", (8, 6)), Image.new("RGB", (6, 8))], r"different sizes \(8 x 6, 6 x 8\): expected one size"),
        ("make it snow", "there is no file make it snow"),
        ("make it snow " * 500, "there is no file make it snow"),
    ],
)
def test_other_objects_are_refused_in_one_line(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_footage(given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_folder_that_lacks_frames_is_read_with_a_warning(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"frame_{number:04}.png")
    with pytest.warns(InputWarning, match=r"has no frames between frame_0001\.png and frame_0003\.png"):
        assert len(open_footage(tmp_path)) == 3
