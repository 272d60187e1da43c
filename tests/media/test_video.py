"""Saving and opening videos: frames and settings survive, and writes are atomic."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import av
import numpy as np
import PIL.Image
import pytest

from kineograph.errors import InputError
from kineograph.media import codecs
from kineograph.media.files import _rename_over, slug, write_new, write_to_unused_path
from kineograph.media.frames import check_held
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video, open_video

SETTINGS = {"prompt": 'a red fish, «swimming» "over" the sea 🐟', "seed": 7, "weights": {"unet": "ab" * 32}}
KINDS = ["fish.mp4", "fish.webm", "fish.gif", "fish.webp", "fish"]


def clip(count: int = 5, height: int = 48, width: int = 64) -> Video:
    """Return a red square on a colour gradient, moving to the right."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 1] = np.linspace(0, 255, width)
    frames[..., 2] = np.linspace(0, 255, height)[:, None]
    for number, frame in enumerate(frames):
        frame[10:26, 4 + 6 * number : 20 + 6 * number] = (220, 30, 40)
    return Video(frames, fps=4, settings=SETTINGS)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2))))


def left_behind(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", KINDS)
def test_frames_rate_and_settings_survive(tmp_path: Path, name: str) -> None:
    video = clip()
    path = video.save(tmp_path / name)
    back = open_video(path)
    assert (back.frames.shape, back.fps, back.settings) == (video.frames.shape, 4, SETTINGS)
    assert read_settings(str(path)) == SETTINGS
    assert psnr(video.frames, back.frames) > 30
    assert back.digest == video.digest or name != "fish"  # pngs lose nothing


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("height", "width", "count"), [(33, 47, 3), (16, 18, 1), (8, 8, 40)])
def test_odd_sizes_and_lengths_survive(tmp_path: Path, name: str, height: int, width: int, count: int) -> None:
    video = Video(np.full((count, height, width, 3), (200, 60, 20), np.uint8), fps=8)
    back = open_video(video.save(tmp_path / name))
    assert back.frames.shape == video.frames.shape
    assert psnr(video.frames, back.frames) > 30


@pytest.mark.parametrize("name", ["fish.gif", "fish.webp"])
def test_equal_neighbouring_frames_survive(tmp_path: Path, name: str) -> None:
    frames = clip(4).frames[[0, 0, 1, 1, 1, 2, 3, 3]]
    back = open_video(Video(frames, fps=7).save(tmp_path / name))
    assert back.frames.shape == frames.shape
    assert psnr(frames, back.frames) > 30


def test_mp4_plays_everywhere(tmp_path: Path) -> None:
    path = clip().save(tmp_path / "fish.mp4")
    whole = path.read_bytes()
    assert whole.find(b"moov") < whole.find(b"mdat")  # starts to play before it is loaded
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 4)
        assert json.loads(container.metadata["comment"])["settings"] == SETTINGS


@pytest.mark.slow
@pytest.mark.parametrize("width", [128, 130, 200])
def test_the_same_frames_give_the_same_mp4(tmp_path: Path, width: int) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    wide = np.asarray(noise.resize((50, 33)).resize((300, 200)))
    video = Video(np.stack([wide[number : number + 96, number : number + width] for number in range(40)]))
    assert len({video.save(tmp_path / f"{number}.mp4").read_bytes() for number in range(5)}) == 1


def test_frames_as_pillow_images_and_tensor() -> None:
    video = clip()
    assert [image.size for image in video.pil] == [(64, 48)] * 5
    assert video.tensor.shape == (5, 3, 48, 64)
    assert float(video.tensor.max()) == 1.0
    assert np.array_equal((video.tensor * 255).round().byte().permute(0, 2, 3, 1).numpy(), video.frames)


def test_contact_sheet_shows_first_and_last() -> None:
    video = clip(40)
    sheet = np.asarray(video.contact_sheet())
    assert np.array_equal(sheet[:48, :64], video.frames[0])
    assert np.array_equal(sheet[-48:, -64:], video.frames[-1])
    assert video.contact_sheet(columns=8).size == (8 * 65 - 1, 2 * 49 - 1)


def test_notebook_shows_a_movie_and_escapes_the_prompt() -> None:
    page = Video(clip().frames, settings={"prompt": "<script>"})._repr_html_()
    assert "data:video/mp4;base64," in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "frames",
    [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)],
)
def test_arrays_of_another_type_or_shape_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8 array"):
        Video(frames)


@pytest.mark.parametrize("name", KINDS)
def test_save_overwrites_nothing(tmp_path: Path, name: str) -> None:
    first, second = clip(3), clip(6)
    path = first.save(tmp_path / name)
    with pytest.raises(FileExistsError, match=name):
        second.save(path)
    assert len(open_video(path)) == 3
    second.overwrite(path)
    assert len(open_video(path)) == 6
    first.overwrite(path)  # no frame of the longer one stays in the folder
    assert len(open_video(path)) == 3
    assert not [file for file in left_behind(tmp_path) if file.startswith(".")]


def test_a_file_that_appears_while_writing_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "fish.mp4"
    with pytest.raises(FileExistsError, match="fish"), write_new(path) as temporary:  # noqa: PT012
        temporary.write_text("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert left_behind(tmp_path) == ["fish.mp4"]


def test_a_folder_of_other_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for write in (clip().save, clip().overwrite):
        with pytest.raises(FileExistsError, match="folder"):
            write(tmp_path / "home")
    assert left_behind(tmp_path) == ["home/letter.txt"]


def test_suffixes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.mp4, \.webm, \.gif or \.webp"):
        clip().save(tmp_path / "fish.avi")
    with pytest.raises(InputError, match="one image"):
        clip().save(tmp_path / "fish.png")
    still = clip(1)
    assert open_video(still.save(tmp_path / "fish.PNG")).digest == still.digest


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, name: str, end: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = clip(3).save(tmp_path / name)
    before = left_behind(tmp_path)

    def stop(*_: object, format: str = "") -> None:
        raise end

    monkeypatch.setattr(codecs.av, "VideoFrame", SimpleNamespace(from_ndarray=stop))
    monkeypatch.setattr(Path, "write_bytes", stop)
    for write, path in ((clip().overwrite, kept), (clip().save, tmp_path / f"new_{name}")):
        with pytest.raises(type(end)):
            write(path)
    monkeypatch.undo()
    assert left_behind(tmp_path) == before
    assert len(open_video(kept)) == 3


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str) -> None:
    """The kernel itself stops the file at one kilobyte, as a full disk would."""
    program = f"""
import resource
import numpy as np
from kineograph.media.video import Video
frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
try:
    Video(frames).save({str(tmp_path / name)!r})
except OSError as error:
    print(error.filename, error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / name))
    assert left_behind(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1024


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        clip().save(tmp_path / "file" / "fish.mp4")


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = clip(30).save(tmp_path / name)
    file = path / "frame_0003.png" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(InputError, match="fish"):
        open_video(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        open_video(tmp_path / "nothing.mp4")
    (tmp_path / "words.mp4").write_text("words")
    (tmp_path / "words.gif").write_text("words")
    for name in ("words.mp4", "words.gif"):
        with pytest.raises(InputError, match="cannot read"):
            open_video(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without frames"):
        open_video(tmp_path / "empty")


def test_a_file_without_settings_opens_but_has_no_settings_to_read(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert len(open_video(tmp_path / "plain.png")) == 1
    with pytest.raises(InputError, match="carries no settings"):
        read_settings(tmp_path / "plain.png")


def test_unused_paths_are_new_and_short(tmp_path: Path) -> None:
    def write(text: str, between: Callable[[], object] = list) -> str:
        def save(path: Path) -> None:
            clip(1).save(path)
            between()

        return write_to_unused_path(tmp_path, text, 7, ".mp4", save).name

    text = "A red fish, over the sea!"
    assert write(text) == "a-red-fish-over-the-sea_7.mp4"
    assert write(text, lambda: write(text)) == "a-red-fish-over-the-sea_7_3.mp4"  # another process takes 2 meanwhile
    assert write("../..") == "video_7.mp4"
    long = write("fish " * 99)
    assert slug("fish " * 99) in long and len(long) < 60
    assert len([*tmp_path.iterdir()]) == 5
    assert len(slug("möwe " * 100).encode()) <= 48
    assert slug("../../etc/passwd") == "etc-passwd"


@pytest.mark.parametrize("fps", [1, 2.5, 12, 23.976, 60])
def test_the_rate_is_kept(tmp_path: Path, fps: float) -> None:
    for name in KINDS:
        assert open_video(Video(clip().frames, fps=fps).save(tmp_path / f"{int(fps)}_{name}")).fps == fps
    assert float(codecs.frame_rate_fraction(23.976)) == pytest.approx(23.976, abs=1e-3)


def test_save_and_overwrite_take_another_rate(tmp_path: Path) -> None:
    video = clip()
    for name in KINDS:
        path = video.save(tmp_path / name, fps=12)
        back = open_video(path)
        assert (back.fps, len(back), back.settings) == (12, len(video), SETTINGS)
        assert open_video(video.overwrite(path, fps=2.5)).fps == 2.5
    with av.open(tmp_path / "fish.mp4") as container:
        assert container.streams.video[0].average_rate == 2.5
    assert video.fps == 4
    for fps in (0, -1, float("inf")):
        with pytest.raises(InputError, match="fps is above 0"):
            video.save(tmp_path / "new.mp4", fps=fps)
    assert "new.mp4" not in left_behind(tmp_path)


def test_webm_is_vp9_and_its_encoder_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(clip().save(tmp_path / "fish.webm")) as container:
        assert (container.streams.video[0].codec_context.name, container.format.name) == ("vp9", "matroska,webm")
    monkeypatch.setattr(codecs.av, "codecs_available", {"libx264"})
    with pytest.raises(InputError, match="needs the encoder libvpx-vp9"):
        clip().save(tmp_path / "other.webm")
    assert left_behind(tmp_path) == ["fish.webm"]


# --- marks of generated media

SOURCE_TYPE = b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def content(path: Path) -> bytes:
    """Return the bytes of a file, or of a folder's files."""
    return b"".join(file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path]))


@pytest.mark.parametrize("name", KINDS)
def test_results_carry_the_digital_source_type_beside_the_settings(tmp_path: Path, name: str) -> None:
    video = clip(3)
    path = video.save(tmp_path / name)
    opened = open_video(path)
    assert opened.settings == video.settings and len(opened) == 3
    assert content(path).count(SOURCE_TYPE) == {"fish.webm": 0, "fish": 3}.get(name, 1)
    bare = video.save(tmp_path / f"bare-{name}", metadata=False)
    assert SOURCE_TYPE not in content(bare) and b"prompt" not in content(bare)
    assert not open_video(bare).settings and len(open_video(bare)) == 3
    found = Video(clip(3).frames, 10).save(tmp_path / f"found-{name}")  # not generated, as far as one knows
    assert SOURCE_TYPE not in content(found)


def test_other_programs_find_the_digital_source_type(tmp_path: Path) -> None:
    video = clip(2)
    for name in ("a.webp", "a.png"):
        saved = Video(video.frames[:1], 10, video.settings) if name == "a.png" else video
        with PIL.Image.open(saved.save(tmp_path / name)) as image:
            image.seek(image.n_frames - 1)
            found = image.info["xmp"]
        packet = ElementTree.fromstring(found if isinstance(found, str) else found.decode())
        (description,) = packet.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
        key = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
        assert description.attrib[key].encode() == SOURCE_TYPE
    extension = video.save(tmp_path / "a.gif").read_bytes().partition(b"\x21\xff\x0bXMP DataXMP")[2]
    assert extension.startswith(b"<?xpacket") and extension.endswith(bytes([1, *range(255, -1, -1), 0]) + b";")
    boxes, rest = [], video.save(tmp_path / "a.mp4").read_bytes()
    while rest:
        size = int.from_bytes(rest[:4], "big")
        boxes.append((rest[4:8], rest[8:size]))
        rest = rest[size:]
    assert [kind for kind, _ in boxes] == [b"ftyp", b"moov", b"free", b"mdat", b"uuid"]
    assert boxes[-1][1][:16].hex() == "be7acfcb97a942e89c71999491e3afac" and boxes[-1][1][16:].startswith(b"<?xpacket")
    with av.open(tmp_path / "a.mp4", options={"export_xmp": "1"}) as container:
        assert SOURCE_TYPE.decode() in container.metadata["xmp"]


def test_one_frame_of_a_folder_is_opened_as_one_frame(tmp_path: Path) -> None:
    folder = Video(np.zeros((3, 8, 8, 3), np.uint8), settings={"seed": 1}).save(tmp_path / "clip")
    assert len(open_video(sorted(folder.iterdir())[1])) == 1


def test_frames_that_memory_does_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINEOGRAPH_MAX_PIXELS", raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 18}.__getitem__)  # 1 GB
    check_held(Path("a.mp4"), 86, 1080, 1920)
    with pytest.raises(InputError, match="expected at most 65536 frames, and 178956970 pixels in all"):
        check_held(Path("a.mp4"), 87, 1080, 1920)
    monkeypatch.setenv("KINEOGRAPH_MAX_PIXELS", "4000000000")
    check_held(Path("a.mp4"), 87, 1080, 1920)


def test_a_budget_of_pixels_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Video(np.zeros((3, 8, 8, 3), np.uint8)).save(tmp_path / "clip.mp4")
    monkeypatch.setenv("KINEOGRAPH_MAX_PIXELS", "4e9")
    with pytest.raises(InputError, match="KINEOGRAPH_MAX_PIXELS is a number of pixels, not '4e9'"):
        open_video(path)


def test_a_folder_stays_if_its_successor_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, temporary = tmp_path / "clip", tmp_path / "new"
    folder.mkdir()
    (folder / "frame.png").touch()
    with pytest.raises(FileNotFoundError):
        _rename_over(temporary, folder)
    assert (folder / "frame.png").exists()
