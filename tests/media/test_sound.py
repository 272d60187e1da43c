"""Sound of videos that are edited or guide others: read from the first frame on, cut or padded, in mp4 and webm."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from cases.program import run
from numbered import numbered

import kineograph as kg
from kineograph.errors import InputError
from kineograph.media.codecs import SOUND_RATE, Sound, read_sound
from kineograph.media.footage import open_footage
from kineograph.media.video import Video, open_video

pytestmark = pytest.mark.slow


def beeps(seconds: float, rate: int = 44100) -> np.ndarray:
    """Return a tone in every second half second: int16 [n]."""
    times = np.arange(round(seconds * rate)) / rate
    return (12000 * np.sin(2 * np.pi * 440 * times) * (times % 1 >= 0.5)).astype(np.int16)


def talkie(path: Path, seconds: float = 2, delay: float = 0, codec: str = "aac", layout: str = "stereo") -> Path:
    """Write a video of 8 frames a second with `beeps`, which begin `delay` seconds after the first frame."""
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=8)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        audio = container.add_stream(codec, rate=44100, layout=layout)
        for pixels in numbered(16):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        samples = beeps(seconds)
        planes = np.repeat(samples[:, None], 2 if layout == "stereo" else 1, 1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(planes, format="s16", layout=layout)
        frame.rate, frame.pts, frame.time_base = 44100, round(delay * 44100), Fraction(1, 44100)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
        container.mux(video.encode(None))
    return path


def loudness(sound: Sound, step: float = 0.25) -> list[bool]:
    """Return for each quarter of a second whether there is a tone."""
    size = round(step * sound.rate)
    parts = [sound.samples[:, start : start + size] for start in range(0, sound.samples.shape[1] - size + 1, size)]
    return [bool(np.abs(part[:, size // 4 : -size // 4].astype(int)).mean() > 1000) for part in parts]


def test_sound_is_read_from_the_first_frame_on(tmp_path: Path) -> None:
    sound = read_sound(talkie(tmp_path / "a.mp4"), 2)
    assert sound is not None and sound.samples.shape == (2, 2 * SOUND_RATE)
    assert loudness(sound) == [False, False, True, True] * 2
    late = read_sound(talkie(tmp_path / "b.mkv", delay=0.5, layout="mono"), 2)
    assert late is not None and late.samples.shape == (1, 2 * SOUND_RATE)
    assert loudness(late) == [False, False, False, False, True, True, False, False]


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_saved_video_keeps_its_sound_cut_or_padded(tmp_path: Path, name: str) -> None:
    source = open_video(talkie(tmp_path / "in.mp4", seconds=1))
    assert source.sound is not None and loudness(source.sound) == [False, False, True, True] + 4 * [False]
    shorter = Video(source.frames[:6], 8, sound=source.sound)  # 0.75 of 2 seconds
    path = shorter.save(tmp_path / name)
    with av.open(path) as container:
        (stream,) = container.streams.audio
        assert stream.codec_context.name == {"a.mp4": "aac", "a.webm": "opus"}[name]
        length = sum(frame.samples for frame in container.decode(stream)) / stream.codec_context.sample_rate
    assert length == pytest.approx(0.75, abs=0.07)
    saved = open_video(path)
    assert len(saved) == 6 and saved.sound is not None and loudness(saved.sound) == [False, False, True]
    longer = Video(np.concatenate([source.frames] * 2), 8, sound=source.sound).save(tmp_path / f"long-{name}")
    padded = open_video(longer).sound
    assert padded is not None and loudness(padded) == [False, False, True, True] + 12 * [False]


def test_sound_is_dropped_on_request_at_another_rate_and_where_no_format_has_it(tmp_path: Path) -> None:
    video = open_video(talkie(tmp_path / "in.mp4"))
    assert open_video(video.save(tmp_path / "a.mp4", audio="drop")).sound is None
    assert open_video(video.save(tmp_path / "b.mp4", fps=4)).sound is None
    assert open_video(video.save(tmp_path / "c.mp4", fps=8)).sound is not None
    assert open_video(video.save(tmp_path / "d.gif")).sound is None
    with pytest.raises(InputError, match="`audio` is keep or drop"):
        video.save(tmp_path / "e.mp4", audio="mute")  # type: ignore[arg-type]


def test_footage_has_the_sound_of_its_frames(tmp_path: Path) -> None:
    path = talkie(tmp_path / "in.mp4")
    for footage in (open_footage(path, num_frames=4, fps=4), open_footage(open_video(path), num_frames=8)):
        sound = footage.sound()
        assert sound is not None and loudness(sound)[:4] == [False, False, True, True]
    assert open_footage(Video(numbered(3)).save(tmp_path / "folder")).sound() is None
    assert open_footage(numbered(3)).sound() is None


def test_damaged_sound_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = talkie(tmp_path / "in.mp4")
    footage = open_footage(path)
    path.write_bytes(b"gone")
    with pytest.warns(kg.InputWarning, match="the sound of .* cannot be read"):
        assert footage.sound() is None


@pytest.mark.parametrize("audio", ["keep", "drop"])
def test_the_command_keeps_or_drops_the_sound_of_the_source(tmp_path: Path, audio: str) -> None:
    path, out = talkie(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    few = ("-n", "8", "--steps", "1", "--height", "32", "--width", "48", "--seed", "1")
    metadata = ["--no-metadata"] if audio == "drop" else []
    ended = run("edit", path, "make it snow", *few, "-o", out, "--audio", audio, *metadata)
    assert ended.status == 0, ended.text
    sound = open_video(out).sound
    assert (sound is not None and loudness(sound) == [False, False, True, True]) if audio == "keep" else sound is None
    assert bool(open_video(out).settings) == (audio == "keep")
