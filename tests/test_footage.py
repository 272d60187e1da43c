"""Videos to work from: which frames are read, at which rate and size, and what is said of those that cannot serve."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kineograph.errors import InputError
from kineograph.media.footage import Footage, center_crop_resize, open_footage, output_size, stack_in_chunks
from kineograph.media.video import Video


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames whose grey says which they are."""
    return np.broadcast_to(
        (10 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, height, width, 3)
    ).copy()


def movie(
    path: Path, frames: np.ndarray, rate: int = 10, codec: str = "libx264", times: list[int] | None = None
) -> Path:
    """A file of another program's, with a variable rate if `times` (in ticks of 1 / rate) are given."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def greys(footage: Footage) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in footage.frames(footage.height, footage.width)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webp", "a.gif", "folder"])
def test_all_frames_at_their_own_rate_unless_asked(tmp_path, name):
    frames = numbered(6)
    path = movie(tmp_path / name, frames) if name.endswith("mkv") else Video(frames, 10).save(tmp_path / name)
    footage = open_footage(path)
    assert (len(footage), footage.fps, footage.height, footage.width) == (6, 10, 32, 48)
    assert greys(footage) == list(range(6))
    assert greys(open_footage(path, num_frames=2)) == [0, 1]


def test_a_rate_takes_the_frame_that_is_on_show(tmp_path):
    path = movie(tmp_path / "a.mp4", numbered(10))
    assert greys(open_footage(path, fps=5)) == [0, 2, 4, 6, 8]
    assert greys(open_footage(path, fps=4)) == [0, 2, 5, 7]
    assert greys(open_footage(path, fps=20, num_frames=5)) == [0, 0, 1, 1, 2]
    uneven = movie(tmp_path / "b.mp4", numbered(4), times=[0, 1, 6, 8])
    assert greys(open_footage(uneven, fps=5)) == [0, 1, 1, 2, 3]


def test_frames_are_scaled_to_cover_and_cut_alike_at_both_sides():
    frame = np.zeros((10, 30, 3), np.uint8)
    frame[:, 10:20] = 200
    assert (center_crop_resize(frame, 10, 10) == 200).all()
    assert center_crop_resize(frame, 20, 60).shape == (20, 60, 3)
    assert center_crop_resize(frame, 10, 30) is not None and (center_crop_resize(frame, 10, 30) == frame).all()


@pytest.mark.parametrize(
    ("asked", "got"),
    [((None, None), (288, 512)), ((None, 256), (144, 256)), ((144, None), (144, 256)), ((152, 256), (152, 256))],
)
def test_the_size_follows_the_footage(asked, got):
    assert output_size(Footage(Path("a"), (0,), 1, 1080, 1920), *asked, side=512, factor=8) == got


def test_another_shape_is_refused():
    with pytest.raises(InputError, match=r"1920 x 1080, and a video of 512 x 512 .* another shape"):
        output_size(Footage(Path("a.mp4"), (0,), 1, 1080, 1920), 512, 512, side=512, factor=8)


def test_what_cannot_serve_is_said(tmp_path):
    path = movie(tmp_path / "a.mp4", numbered(5))
    with pytest.raises(InputError, match="has 5 frames, and 8 are asked for: ask for 5 or fewer"):
        open_footage(path, num_frames=8)
    with pytest.raises(InputError, match="has 1 frames at 2 a second, and 3 are asked for"):
        open_footage(path, num_frames=3, fps=2)
    with pytest.raises(InputError, match="there is no file"):
        open_footage(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(InputError, match="damaged, or no picture or video"):
        open_footage(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without frames"):
        open_footage(tmp_path / "empty")


def test_a_video_without_frames_is_refused(tmp_path):
    with av.open(tmp_path / "silent.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no picture, only sound"):
        open_footage(tmp_path / "silent.mp4")


def test_a_file_that_breaks_off_half_way_names_the_frame(tmp_path):
    grain = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    path = movie(tmp_path / "a.mkv", grain)
    whole = path.read_bytes()
    footage = open_footage(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.mkv (breaks off after|cannot be read beyond) frame \d+"):
        list(footage.frames(64, 64))
    ours = Video(grain, 10).save(tmp_path / "ours.mp4")
    ours.write_bytes(ours.read_bytes()[: len(whole) // 2])
    with pytest.raises(InputError, match=r"(breaks off|cannot be read beyond|cut short)"):
        list(open_footage(ours).frames(64, 64))


def test_frames_come_in_chunks_and_not_before_they_are_asked_for(tmp_path):
    read = []

    def frames():
        for number in range(5):
            read.append(number)
            yield np.zeros((2, 2, 3), np.uint8)

    chunks = stack_in_chunks(frames(), 2)
    assert len(next(chunks)) == 2 and read == [0, 1]
    assert [len(chunk) for chunk in chunks] == [2, 1]


def test_the_digest_is_of_the_file(tmp_path):
    one, same, other = (Video(numbered(n)).save(tmp_path / f"{k}.mp4") for k, n in enumerate((3, 3, 4)))
    assert open_footage(one).digest == open_footage(same).digest != open_footage(other).digest


def test_at_its_own_rate_a_matroska_file_gives_each_frame_once(tmp_path):
    frames = np.stack([np.full((16, 16, 3), 8 * number, np.uint8) for number in range(20)])
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 16
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert open_footage(path, fps=30).chosen == tuple(range(20))
