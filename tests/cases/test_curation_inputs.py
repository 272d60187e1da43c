"""Inputs of data curation as people have them: odd footage, odd captions, and caption endpoints that misbehave."""

from __future__ import annotations

import gzip
import http.server
import json
import tarfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from cases.program import Said, run
from cases.small_media import movie, moving_square
from numbered import tar

from kineograph.curation.captions import connect_endpoint
from kineograph.curation.settings import Endpoint
from kineograph.errors import InputError
from kineograph.media.dataset import open_dataset

CURLY = "Anna\u2019s dog \u2013 \u201ccaf\u00e9\u201d"  # not ASCII, and other bytes in Windows-1252 than in UTF-8
PICTURES = [np.zeros((8, 8, 3), np.uint8)]


def curated(folder: Path, settings: str) -> Said:
    """Run curation on the videos in `folder / "s"` in this process."""
    file = folder / "d.yaml"
    file.write_text(f"sources: [{folder / 's'}]\noutput: {folder / 'out'}\nrun: alone\n{settings}\n")
    return run("curate", file)


SHORT = "shorter_side: 64\ncuts: {shortest: 0.2}"


# --- files and captions of a dataset


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return movie(tmp_path_factory.mktemp("video") / "a.mp4", [np.zeros((16, 16, 3), np.uint8)] * 4).read_bytes()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(source: Path) -> tuple[list[tuple[str, str]], str]:
    """Return names and captions of a dataset, and the warnings or the error with which it was opened."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            items = sorted((item.name.split("/")[-1], item.caption) for item in open_dataset(source))
        except InputError as error:
            return [], str(error)
    return items, " ".join(str(each.message) for each in told)


# case 52
def test_dots_in_names_do_not_part_a_video_from_its_caption(work: Path, video) -> None:
    names = {"235342 Track 2.0 (Clean)": "two", "v1.5": "one"}
    endings = [(".mp4", ".txt"), (".MP4", ".TXT")]
    files = {}
    for (name, caption), (movie_ending, text_ending) in zip(names.items(), endings, strict=True):
        files |= {name + movie_ending: video, name + text_ending: caption.encode()}
    assert read(put(work, files)) == ([("235342 Track 2.0 (Clean).mp4", "two"), ("v1.5.MP4", "one")], "")


# case 52
def test_dots_in_names_of_a_shard_do_not_part_a_video_from_its_caption(work: Path, video) -> None:
    inner = {"0001.a.mp4": video, "0001.a.txt": b"cap", "0002.json": b'{"caption": "x"}', "0002.mp4": video}
    tar(work / "s.tar", {f"./train.v1/{name}": content for name, content in inner.items()})
    assert read(work / "s.tar") == ([("0001.a.mp4", "cap"), ("0002.mp4", "x")], "")


# case 52
@pytest.mark.parametrize(
    ("files", "caption"),
    [
        pytest.param({"a.txt": CURLY.encode("cp1252")}, CURLY, id="windows-1252"),
        pytest.param({"a.txt": "a dog".encode("utf-16")}, "a dog", id="utf-16"),
        pytest.param({"metadata.csv": b"\xef\xbb\xbffile_name,text\r\na.mp4,a dog\r\n"}, "a dog", id="byte-order-mark"),
        pytest.param({"metadata.csv": b"file_name;text\r\na.mp4;a dog\r\n"}, "a dog", id="semicolons"),
    ],
)
def test_captions_in_other_encodings_are_read_or_named(work: Path, video, files, caption) -> None:
    got, told = read(put(work, {"a.mp4": video, **files}))
    assert got == [("a.mp4", caption)] or "cannot be read" in told or "has none of the columns" in told, (got, told)


# case 52
def test_backslashes_in_metadata_are_read_as_folders_or_named(work: Path, video) -> None:
    rows = b"file_name,text\nsub\\a.mp4,a dog\n"
    got, told = read(put(work, {"sub/a.mp4": video, "metadata.csv": rows}))
    assert got == [("a.mp4", "a dog")] or "is not there" in told, (got, told)


# case 116
def test_rows_that_name_files_outside_the_dataset_are_refused_or_named(work: Path) -> None:
    outside = put(work, {"private/a.mp4": b"x"}) / "private" / "a.mp4"
    rows = [{"file_name": "../private/a.mp4", "caption": "x"}, {"file_name": str(outside), "caption": "y"}]
    put(work, {"set/metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    got, told = read(work / "set")
    assert not got or told


# --- whole runs


# case 53
@pytest.mark.slow
def test_curation_of_odd_footage_ends_well(work: Path) -> None:
    random = np.random.default_rng(0)

    def shot(colour: tuple[int, int, int]) -> list[np.ndarray]:
        noise = (random.integers(-25, 25, (96, 160, 3)) for _ in range(24))
        return [np.clip(np.add(colour, each) + 4 * n, 0, 255).astype(np.uint8) for n, each in enumerate(noise)]

    film, folder = shot((200, 60, 40)) + shot((30, 90, 200)), work / "s"
    folder.mkdir()
    movie(folder / "plain.mp4", film, rate=12)
    times = np.cumsum([0, *(40 if number % 3 else 170 for number in range(47))]).tolist()
    movie(folder / "phone vfr ü.mkv", film, rate=1000, options={"bf": "0"}, milliseconds=times)
    x265 = {"x265-params": "log-level=none"}
    movie(folder / "ten.mp4", film, rate=12, codec="libx265", pix_fmt="yuv420p10le", options=x265)
    movie(folder / "one.mp4", film[:1])
    movie(folder / "dv.mpg", film, rate=25, codec="mpeg2video")
    movie(folder / "odd.mkv", [frame[:95, :159] for frame in film], rate=12, pix_fmt="yuv444p")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "half.mp4").write_bytes((folder / "plain.mp4").read_bytes()[:4000])
    with av.open(folder / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(9):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.rate = 44100
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    ended = curated(work, "filters: {least_movement: 0, least_brightness: 0}")
    assert ended.status == 0 and not ended.crashed, ended.text
    with tarfile.open(next((work / "out").glob("*.tar"))) as clips:
        assert any(name.endswith(".mp4") for name in clips.getnames())


# case 104
def test_caption_with_a_lone_surrogate_does_not_end_the_run(work: Path) -> None:
    put(work, {"s/a.json": rb'{"caption":"fish \ud800"}', "s/b.txt": b"good"})
    movie(work / "s" / "a.mp4", moving_square(60))
    movie(work / "s" / "b.mp4", moving_square(130))
    ended = curated(work, SHORT)
    assert ended.status == 0 and (work / "out" / "manifest.json").exists(), ended.text


# case 123
def test_damaged_video_without_a_codec_does_not_end_the_run(work: Path) -> None:
    put(work, {"s/good.txt": b"good"})
    movie(work / "s" / "good.mp4", moving_square(130))
    raw = movie(work / "s" / "damaged.mp4", moving_square(60)).read_bytes()
    codec = raw.index(b"avc1", raw.index(b"stsd"))
    put(work, {"s/damaged.mp4": raw[:codec] + b"zzzz" + raw[codec + 4 :]})
    ended = curated(work, SHORT)
    assert (work / "out" / "manifest.json").exists(), ended.text


# case 123. The same run without the damaged file
def test_good_video_alone_ends_the_run_well(work: Path) -> None:
    put(work, {"s/good.txt": b"good"})
    movie(work / "s" / "good.mp4", moving_square(130))
    assert curated(work, SHORT).status == 0
    assert (work / "out" / "manifest.json").exists()


# --- endpoints that write captions

Serve = Callable[[type[http.server.BaseHTTPRequestHandler]], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that serves requests on 127.0.0.1 by a handler, and returns the port."""
    servers = []

    def start(handler: type[http.server.BaseHTTPRequestHandler]) -> int:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Quiet(http.server.BaseHTTPRequestHandler):
    """A handler that reads what it is sent and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def begin(self, status: int, **headers: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def complain(port: int, **settings: object) -> str:
    """Return the error with which an endpoint gives no answer."""
    endpoint = Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m", **{"tries": 1, "timeout": 5, **settings})
    with pytest.raises(InputError) as caught:
        connect_endpoint(endpoint)(PICTURES, "q")
    return str(caught.value)


# case 101
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_api_key_is_not_sent_to_a_redirect_target(serve, monkeypatch: pytest.MonkeyPatch, status, host) -> None:
    monkeypatch.setenv("K", "sk-SECRET")
    requests = []

    class Other(Quiet):
        def do_POST(self) -> None:
            requests.append(self.headers)
            self.begin(200)
            self.wfile.write(json.dumps({"choices": [{"message": {"content": "a fish"}}]}).encode())

        do_GET = do_POST

    target = serve(Other)

    class Redirecting(Quiet):
        def do_POST(self) -> None:
            self.begin(status, Location=f"http://{host}:{target}/")

    text = complain(serve(Redirecting), key="K")
    assert not requests
    assert f"{status}" in text and "redirects" in text and "\n" not in text


# case 101
def test_key_that_no_header_can_hold_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a\r\nX-Other: b", "sk-\u00e9"):
        monkeypatch.setenv("K", key)
        with pytest.raises(InputError, match=r"ASCII") as caught:
            connect_endpoint(Endpoint(url="http://127.0.0.1:9/v1", model="m", key="K"))
        assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/v1",
        "http:///v1",
        "http://a b/v1",
        "http://127.0.0.1:x/v1",
        "http://127.0.0.1/\u00e9",
        "http://a..b/",
    ],
)
def test_address_that_cannot_be_asked_is_named_in_one_line(url) -> None:
    with pytest.raises(InputError) as caught:
        connect_endpoint(Endpoint(url=url, model="m", tries=1))([], "q")
    assert "\n" not in str(caught.value)


# case 102
@pytest.mark.parametrize(
    ("head", "part"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b" ", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", id="chunks"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n", id="trailers"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="continue"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"a", id="header"),
        pytest.param(b"", b"H", id="status-line"),
    ],
)
def test_endpoint_that_sends_a_byte_now_and_then_is_given_up_after_the_timeout(serve, head, part) -> None:
    class Slow(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(head)
            for _ in range(40):
                try:
                    self.wfile.write(part)
                except OSError:
                    return
                time.sleep(0.05)

    began = time.monotonic()
    assert "0.3 s" in complain(serve(Slow), timeout=0.3)
    assert time.monotonic() - began <= 3 * 0.3


# case 102
@pytest.mark.parametrize(
    ("head", "part"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (1 << 20), id="body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"x" * (1 << 20), id="negative-chunk"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 15 + b"\r\n", b"x" * (1 << 20), id="chunk"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\n", b"x" * (1 << 20), id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"a: " + b"x" * (1 << 20), id="long-header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * (1 << 18), id="many-headers"),
        pytest.param(b"", b"x" * (1 << 20), id="status-line"),
        pytest.param(b"HTTP/1.1 500 \x1b[2J\r\n\r\n", b"x" * (1 << 20), id="error-page"),
    ],
)
def test_endpoint_that_sends_without_end_is_given_up_before_100_mb(serve, head, part) -> None:
    sent = []

    class Endless(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(head)
            for _ in range(120):
                try:
                    self.wfile.write(part)
                except OSError:
                    return
                sent.append(1)

    text = complain(serve(Endless), timeout=30)
    assert len(sent) <= 100
    assert text.isprintable() and len(text) < 400


# case 102
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="html"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"choices": ' * 50_000, id="deep-objects"),
        pytest.param(gzip.compress(b" " * (200 << 20)), id="gzip"),
        pytest.param(b'{"choices": 3}', id="number"),
        pytest.param(b'{"choices": []}', id="empty-list"),
        pytest.param(b'{"choices": {"0": 1}}', id="object"),
        pytest.param(b"9" * 100_000, id="digits"),
        pytest.param(b"\xff\xfe{", id="not-utf-8"),
        pytest.param(b'{"choices": [{"message": {"content": ' + b"[" * 300 + b"]" * 300 + b"}}]}", id="list"),
        pytest.param(b'{"choices": [{"message": {"content": "a \\ud800 fish"}}]}', id="surrogate"),
    ],
)
def test_response_that_is_no_chat_completion_is_named_in_one_line(serve, body) -> None:
    asked = []

    class Wrong(Quiet):
        def do_POST(self) -> None:
            asked.append(1)
            self.begin(200, **{"Content-Encoding": "gzip", "Content-Length": str(len(body))})
            self.wfile.write(body)

    text = complain(serve(Wrong), tries=2, pause=0)
    assert len(asked) == 2
    assert text.isprintable() and len(text) < 400
