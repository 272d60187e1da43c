"""Files made to crash, exhaust or mislead the program: refused in one line, at little cost, and printed harmlessly."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from cases.program import Said, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kineograph as kg
from kineograph.media.metadata import read_settings

GB = 1 << 30
# A traceback, an exhausted memory and a long wait are all wrong; the last line says how much memory it took, in MB.
LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
sys.argv[:2] = ["kineograph"]
from kineograph.cli import main
try:
    main()
finally:
    # not getrusage's ru_maxrss, which a child inherits from its parent
    (peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    print(int(peak) // 1024, file=sys.stderr)
"""


def limited(*arguments: object, memory: int, seconds: float) -> subprocess.CompletedProcess | None:
    """Run `kineograph` in a process with so much address space; None where it does not end in time."""
    command = [sys.executable, "-c", LIMITED, str(memory), *map(str, arguments)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return None


def labelled(path: Path, text: str) -> Path:
    """Write a png whose comment is this text, where Kineograph keeps its label."""
    info = PngInfo()
    info.add_text("Comment", text)
    Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    return path


def label(**changes: Any) -> str:
    """Return the label of one frame of 16 x 16 with these fields instead."""
    return json.dumps({"frames": 1, "height": 16, "width": 16, "fps": 4.0, "settings": {"prompt": "x"}, **changes})


# case 103
def test_inspect_prints_no_escape_sequence_from_the_names_of_settings(work: Path) -> None:
    text = label(settings={"prompt": "x", "a\x1b]0;pwned\x07": 1})
    assert "\x1b]0;pwned" not in run("inspect", labelled(work / "x.png", text)).text


# case 103
def test_errors_print_no_escape_sequence_from_paths() -> None:
    assert "\x1b[2J" not in run("inspect", "\x1b[2Jnot-there.mp4").text


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict[str, Any]:
    """The settings of a generated video, except that its frames were others: replay says what has changed since."""
    video = kg.generate(
        kg.load(), "a red fish", num_frames=1, num_inference_steps=1, guidance_scale=1.0, height=64, width=64, seed=1
    )
    path = video.save(tmp_path_factory.mktemp("recorded") / "fish.mp4")
    return {**read_settings(path), "frames_sha256": "0" * 64}


def without(name: str) -> Callable[[dict], dict]:
    return lambda settings: {**settings, "model": {k: v for k, v in settings["model"].items() if k != name}}


def set_to(**changes: Any) -> Callable[[dict], dict]:
    return lambda settings: {**settings, **changes}


# case 105
@pytest.mark.parametrize(
    "edited",
    [
        pytest.param(set_to(model=3), id="model"),
        pytest.param(without("load"), id="load"),
        pytest.param(without("device"), id="device"),
        pytest.param(lambda settings: {**settings, "model": {**settings["model"], "device": "x"}}, id="device-name"),
        pytest.param(set_to(control=3), id="control"),
        pytest.param(set_to(settings_version=1, elevation=1.0), id="elevation"),
        pytest.param(set_to(then=1.5), id="then"),
        pytest.param(set_to(machine=1), id="machine"),
        pytest.param(set_to(versions=[1]), id="versions"),
    ],
)
def test_replay_of_edited_settings_ends_without_a_traceback(work: Path, recorded, edited) -> None:
    text = label(settings=edited(copy.deepcopy(recorded)))
    ended = run("replay", labelled(work / "edited.png", text), "-o", work / "again.png")
    assert not ended.crashed, ended.text[-300:]


# case 105
def test_replay_of_a_deeply_nested_label_ends_without_a_traceback(work: Path) -> None:
    ended = run("replay", labelled(work / "deep.png", "[" * 100_000), "-o", work / "again.png")
    assert not ended.crashed, ended.text[-300:]


# case 105
def test_inspect_of_a_frame_rate_that_is_no_number_ends_without_a_traceback(work: Path) -> None:
    ended = run("inspect", labelled(work / "fps.png", label(fps="x")))
    assert not ended.crashed, ended.text[-300:]


# case 105. Without an edit there is no traceback
def test_unedited_settings_can_be_replayed(work: Path, recorded) -> None:
    ended = run("replay", labelled(work / "same.png", label(settings=recorded)), "-o", work / "again.png")
    assert ended.status == 1 and "not identical" in ended.text
    assert np.asarray(Image.open(work / "again.png")).shape == (64, 64, 3)


def gif(path: Path, side: int, frames: int) -> Path:
    """Write a gif with a wide canvas and frames of one pixel, 23 bytes each."""
    frame = b"\x21\xf9\x04\x00\x05\x00\x00\x00\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0\0\0\0\xff\xff\xff"
    path.write_bytes(head + frame * frames + b"\x3b")
    return path


# case 106
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda folder: labelled(folder / "claims.png", label(frames=3_000_000)), id="claimed-frames"),
        pytest.param(lambda folder: gif(folder / "wide.gif", 13_000, 30), id="wide-gif"),
        pytest.param(lambda folder: gif(folder / "many.gif", 1, 1_000_000), id="gif-of-many-frames"),
    ],
)
def test_inspect_of_a_small_file_takes_less_than_1_gb(work: Path, write) -> None:
    ended = limited("inspect", "--json", write(work), memory=2 * GB, seconds=20)
    assert ended is not None, "no answer in 20 s"
    assert int(ended.stderr.splitlines()[-1]) <= 1000
    assert "out of memory" not in ended.stderr
    assert "Traceback" not in ended.stderr


def png(path: Path, side: int, extra: bytes = b"") -> Path:
    """Write a png that claims this side and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(b"\0" * 600)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + (chunk(b"zTXt", extra) if extra else b"") + rest)
    return path


# case 107
@pytest.mark.parametrize("arguments", [("inspect",), ("edit", "make it snow")], ids=["inspect", "edit"])
def test_png_of_2_500_megapixels_ends_without_a_traceback(work: Path, arguments) -> None:
    command, *prompt = arguments
    ended = run(command, png(work / "bomb.png", 50_000), *prompt)
    assert not ended.crashed, ended.text[-300:]


# case 107
def test_png_whose_text_unpacks_to_200_mb_ends_without_a_traceback(work: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(b"A" * (200 << 20), 9)
    ended = run("inspect", png(work / "text.png", 64, text))
    assert not ended.crashed, ended.text[-300:]


# case 108
def test_deeply_nested_settings_end_without_a_traceback(work: Path) -> None:
    (work / "deep.yaml").write_text("[" * 20_000)
    ended = run("curate", work / "deep.yaml")
    assert not ended.crashed, ended.text[-300:]


def anchors() -> str:
    """Return YAML whose nine anchors unfold to 9 ** 9 texts."""
    names = "abcdefghi"
    lists = [f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in pairwise(names)]
    return "\n".join(["a: &a [x,x,x,x,x,x,x,x,x]", *lists]) + "\n"


# case 108
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(anchors(), id="anchors"),
        pytest.param("sources: ['x-{0..99999999}.tar']\noutput: o\nrun: alone\n", id="braces"),
    ],
)
def test_settings_that_unfold_without_end_are_refused_soon(work: Path, settings) -> None:
    (work / "wide.yaml").write_text(settings)
    ended = limited("curate", work / "wide.yaml", "--dry-run", memory=12 * GB, seconds=12)
    assert ended is not None, "no answer in 12 s"
    assert ended.returncode == 2, ended.stderr[-300:]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "video"
    return kg.save(kg.load("pocket-video"), folder)


def generated(model: Path, output: Path) -> Said:
    few = ("-n", 1, "--steps", 1, "--guidance-scale", 1, "--height", 64, "--width", 64)
    return run("generate", "a red fish", "-m", model, *few, "-o", output)


# case 109
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param("model_index.json", lambda _: "[" * 100_000, id="deep-index"),
        pytest.param("model_index.json", lambda old: {**old, "unet": 3}, id="index"),
        pytest.param("unet/config.json", lambda old: {**old, "block_out_channels": 3}, id="unet"),
        pytest.param("text_encoder/config.json", lambda old: {**old, "hidden_act": 1e308}, id="text-encoder"),
        pytest.param("tokenizer/tokenizer.json", lambda old: {**old, "normalizer": 3}, id="tokenizer"),
        pytest.param("vocabulary.json", lambda old: [[1], *old], id="vocabulary"),
        pytest.param("scheduler/scheduler_config.json", lambda old: {**old, "beta_start": {}}, id="scheduler"),
    ],
)
def test_model_folder_with_a_damaged_settings_file_ends_without_a_traceback(
    work: Path, model_folder, file, damage
) -> None:
    shutil.copytree(model_folder, work / "model", copy_function=os.link)
    damaged = damage(json.loads((model_folder / file).read_text()))
    (work / "model" / file).unlink()  # a hard link: the fixture's own file stays as it is
    (work / "model" / file).write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    ended = generated(work / "model", work / "fish.mp4")
    assert not ended.crashed, ended.text[-300:]


# case 109. Without damage there is no traceback
def test_undamaged_model_folder_generates(work: Path, model_folder) -> None:
    assert generated(model_folder, work / "fish.mp4").status == 0


# --- relatives of the cases


SEQUENCES = "\x1b[2J\x07\x7f\x9b31m\u202e\u2066\r\n"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "named.png"),
        ("inspect", "named.png", "--json"),
        ("inspect", f"{SEQUENCES}.mp4"),
        ("replay", "named.png"),
        ("edit", f"{SEQUENCES}.mp4", "snow"),
        ("generate", "x", "-m", f"{SEQUENCES}/x"),
        ("generate", "x", "--set", f"{SEQUENCES}=1"),
        ("generate", "x", "--config", f"{SEQUENCES}.yaml"),
        ("curate", f"{SEQUENCES}.yaml"),
        ("curate", "named.yaml"),
        ("evaluate", SEQUENCES),
        (SEQUENCES,),
        ("inspect", f"--{SEQUENCES}"),
        ("inspect", "named.png", SEQUENCES),
    ],
    ids=lambda arguments: "-".join(arguments).encode("unicode_escape").decode()[:40],
)
def test_no_output_holds_a_control_character(work: Path, monkeypatch, arguments) -> None:
    monkeypatch.chdir(work)
    settings = {SEQUENCES: SEQUENCES, "prompt": SEQUENCES, "model": {SEQUENCES: [SEQUENCES]}}
    labelled(work / "named.png", label(settings=settings))
    (work / "named.yaml").write_text(json.dumps({"sources": [SEQUENCES], "output": "o", SEQUENCES: SEQUENCES}))
    ended = run(*arguments)
    assert not CONTROL.search(ended.text), repr(ended.text[-300:])
    assert not ended.crashed


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a {x: 1}\n<<: [*a, *a]\nsources: !!python/object/apply:os.system [ls]",
        "sources: [x]\nseed: 0x" + "f" * 5000,
        "sources: [x]\nseed: " + "9" * 5000,
        "sources: [x]\nseed: 1" + ":59" * 300_000,
        "sources: [x]\noutput: 2001-99-99",
        'sources: [x]\noutput: "\\0"',
        'sources: ["\\ud800"]\noutput: o',
        "sources: [x]\noutput: o\nseed: .nan",
        "sources: [x]\noutput: o\nclips_per_shard: 1" + "0" * 18,
        "? {a: b}\n: c",
        "- " * 20_000,
        "{a: " * 20_000,
        "a" * (1 << 21),
        "- a\n" * 100_000,
        "sources: ['{" + "a,b}{" * 20 + "c}.tar']\noutput: o\nrun: alone",
        "sources: ['{0..9999}{0..9999}.tar']\noutput: o\nrun: alone",
        "sources: ['{0.." + "9" * 20 + "}.tar']\noutput: o\nrun: alone",
    ],
    ids=lambda text: text[:30].encode("unicode_escape").decode(),
)
def test_settings_beyond_the_limits_are_refused_in_one_line(work: Path, text: str) -> None:
    (work / "sly.yaml").write_text(text)
    ended = run("curate", work / "sly.yaml", "--dry-run")
    assert ended.status == 2 and ended.text.count("\n") == 1 and len(ended.text) < 2000, ended.text[-300:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda folder: gif(folder / "wide.gif", 8_000, 30), id="less-wide-gif"),
        pytest.param(lambda folder: claiming(folder / "still.gif", 60_000), id="still-gif"),
        pytest.param(lambda folder: claiming(folder / "still.webp", 60_000), id="still-webp"),
        pytest.param(lambda folder: black(folder / "black.mp4"), id="black-video"),
    ],
)
def test_inspect_of_a_small_file_of_any_kind_takes_less_than_1_gb(work: Path, write) -> None:
    ended = limited("inspect", "--json", write(work), memory=3 * GB, seconds=20)
    assert ended is not None, "no answer in 20 s"
    assert int(ended.stderr.splitlines()[-1]) <= 1000
    assert "out of memory" not in ended.stderr and "Traceback" not in ended.stderr


def claiming(path: Path, frames: int) -> Path:
    """Write a still of 1024 x 1024 whose label claims so many frames."""
    text = label(frames=frames, height=1024, width=1024)
    exif = Image.Exif()
    exif[0x010E] = text
    still: dict[str, Any] = {"comment": text} if path.suffix == ".gif" else {"exif": exif}
    Image.new("RGB", (1024, 1024)).save(path, **still)
    return path


def black(path: Path) -> Path:
    """Write a small mp4 of 200 black frames of 1920 x 1080."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((1620, 1920), 128, np.uint8), format="yuv420p")
        for number in range(200):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        ";FFMETADATA1\ntitle=x\n",
    ],
    ids=["hls", "local-hls", "concat", "sdp", "ffmetadata"],
)
def test_a_playlist_is_no_video(work: Path, text: str) -> None:
    kg.Video(np.zeros((2, 16, 16, 3), np.uint8)).save(work / "secret.mp4")
    (work / "list.mp4").write_text(text)
    for arguments in (("inspect", work / "list.mp4"), ("edit", work / "list.mp4", "snow")):
        ended = run(*arguments)
        assert ended.status == 2 and "cannot read" in ended.text, ended.text[-300:]


def test_postscript_is_no_image_whatever_its_name(work: Path, monkeypatch) -> None:
    """Pillow would run Ghostscript, `gs`, for it."""
    (work / "bin").mkdir()
    (work / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {work / 'ran'}\n")
    (work / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(work / "bin"), prepend=os.pathsep)
    Image.new("RGB", (16, 16)).save(work / "photo.eps")
    (work / "photo.eps").rename(work / "photo.png")
    for arguments in (("inspect", work / "photo.png"), ("animate", work / "photo.png", "x", "--first-frame", "pinned")):
        ended = run(*arguments)
        assert ended.status == 2 and not ended.crashed, ended.text[-300:]
    assert not (work / "ran").exists()
