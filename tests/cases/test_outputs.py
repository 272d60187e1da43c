"""Files that the program writes: names are free, contents are the same each time and can be opened again."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from cases.program import run

import kineograph as kg
from kineograph.models.formats import adapter_files

FEW = ("-n", 1, "--steps", 1, "--guidance-scale", 1, "--height", 64, "--width", 64)


def succeed(*arguments: object) -> None:
    """Run a command on which a test builds. Raises RuntimeError where it fails, which is no expected failure."""
    ended = run(*arguments)
    if ended.status:
        raise RuntimeError(ended.text)


# case 111
def test_empty_folder_of_the_output_name_is_replaced_or_refused_before_loading(work) -> None:
    succeed("generate", "a red fish", *FEW, "-o", work / "new.mp4")
    (work / "o.mp4").mkdir()
    ended = run("generate", "a red fish", *FEW, "-o", work / "o.mp4")
    assert ended.status == 0 or "loading" not in ended.text, ended.text


# Eight processes that share what is loaded; all have a video before one of them takes a name for it.
EIGHT = """
import multiprocessing, os, sys, threading
import kineograph as kg
from kineograph.cli import main
together, save = multiprocessing.get_context("fork").Barrier(8), kg.Video.save
def save_together(video, path):
    try:
        together.wait(60)
    except threading.BrokenBarrierError:
        pass
    return save(video, path)
kg.Video.save = save_together
kg.load("pocket")
children = []
for _ in range(8):
    child = os.fork()
    if not child:
        try:
            main()
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code or 0)
        finally:
            os._exit(1)
    children.append(child)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


# case 112
@pytest.mark.slow
def test_eight_videos_at_once_get_eight_default_names(work) -> None:
    command = [sys.executable, "-c", EIGHT, "generate", "fish", *map(str, FEW), "--seed", "1"]
    ended = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=110, check=False)
    if ended.returncode == 8:
        raise RuntimeError(ended.stderr)
    assert ended.returncode == 0, ended.stderr[-1000:]


# case 113
@pytest.mark.slow
def test_converted_file_can_be_opened_or_is_refused(work) -> None:
    if run("convert", "pocket-video", work / "folder").status:
        return
    if run("convert", work / "folder", work / "file.safetensors").status:
        return
    few = ("-n", 2, "--steps", 1, "--guidance-scale", 1)
    succeed("generate", "a red fish", "-m", work / "folder", *few, "-o", work / "folder.mp4")
    ended = run("generate", "a red fish", "-m", work / "file.safetensors", *few, "-o", work / "file.mp4")
    assert ended.status == 0, ended.text[-300:]


# case 118
def test_motion_adapter_is_written_with_the_same_bytes_each_time(work) -> None:
    net = kg.load("pocket-video").net
    digests = set()
    for _ in range(8):
        adapter_files.save_motion_adapter(net.motion_adapter, net.temporal, work / "a.safetensors", name="x")
        digests.add(hashlib.sha256((work / "a.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1
