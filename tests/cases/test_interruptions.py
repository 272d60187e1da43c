"""Work that is cut short, and what it left behind: full disks, no memory, Ctrl-C, damaged state."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from cases.program import run
from cases.small_media import movie, moving_square
from tiny_video_training import both, told

from kineograph.training.temporal_layers.latent_cache import read_whole, write_whole

FEW = ("-n", 2, "--steps", 1, "--guidance-scale", 1, "--height", 64, "--width", 64)


def succeed(*arguments: object) -> None:
    """Run a command on which a test builds. Raises RuntimeError where it fails, which is no expected failure."""
    ended = run(*arguments)
    if ended.status:
        raise RuntimeError(ended.text)


@contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    """Lower one of this process's limits for a while."""
    before, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (before, hard))


# --- no room on the disk, no memory


# case 110. A limit of the file size stands for a full disk, which only root can mount
@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        pytest.param(
            20_000,
            ("generate", "a red fish", "-m", "pocket-vidrd", *FEW, "--clips", 2, "--keep-clips", "kept", "-o", "a.mp4"),
            id="keep-clips",
        ),
        pytest.param(3_000_000, ("convert", "pocket", "out"), id="convert"),
    ],
)
@pytest.mark.slow
def test_full_disk_ends_without_a_traceback(
    work: Path, monkeypatch: pytest.MonkeyPatch, clips, size, arguments
) -> None:
    monkeypatch.chdir(work)
    with limited(resource.RLIMIT_FSIZE, size):
        ended = run(*arguments)
    assert ended.status and not ended.crashed, ended.text[-300:]


# case 117
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the size of the address space is read from /proc")
def test_cpu_without_memory_ends_without_a_traceback(work: Path) -> None:
    succeed("generate", "a red fish", *FEW, "-o", work / "small.mp4")  # all is imported and loaded by now
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    large = ("-n", 64, "--chunk-size", 64, "--height", 1024, "--width", 1024, "--steps", 1, "--guidance-scale", 1)
    with limited(resource.RLIMIT_AS, taken + (200 << 20)):
        ended = run("generate", "a red fish", *large, "-o", work / "large.mp4")
    assert ended.status and not ended.crashed, ended.text[-300:]


# --- Ctrl-C

INTERRUPTED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == awaited:
            sys.meta_path.remove(self)
            print("interrupted", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
awaited = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


# case 122. Ctrl-C comes when a module begins to be imported, instead of after 0.3 to 1.2 seconds
@pytest.mark.slow
@pytest.mark.parametrize("module", ["kineograph.cli.terminal", "typer", "torch", "numpy", "diffusers"])
def test_ctrl_c_while_starting_ends_without_a_traceback(work: Path, module) -> None:
    script = shutil.which("kineograph", path=Path(sys.executable).parent)
    arguments = [module, script, "generate", "a red fish", "-n", "1", "--steps", "1", "-o", "o.mp4"]
    command = [sys.executable, "-c", INTERRUPTED, *arguments]
    ended = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=60, check=False)
    if "interrupted" not in ended.stdout:
        raise RuntimeError(f"{module} is not imported")
    assert ended.returncode == 130 and "Traceback" not in ended.stderr


# --- damaged clips, records and checkpoints


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder with a video of four clips, a.mp4, and its kept clips."""
    folder = tmp_path_factory.mktemp("clips")
    succeed(*four_clips(folder, "a.mp4"))
    return folder


def four_clips(folder: Path, output: str) -> list[object]:
    """Return the command that generates a video of four clips and keeps them."""
    few = [*FEW, "--clips", 4, "--seed", 1]
    return [
        "generate",
        "a red fish",
        "-m",
        "pocket-vidrd",
        *few,
        "--keep-clips",
        folder / "kept",
        "-o",
        folder / output,
    ]


def kept(folder: Path, number: int) -> Path:
    (file,) = (folder / "kept").glob(f"*/{number:04}.safetensors")
    return file


# case 120
@pytest.mark.slow
def test_video_is_the_same_after_a_kept_clip_was_removed(work: Path, clips) -> None:
    shutil.copytree(clips, work, dirs_exist_ok=True)
    kept(work, 1).unlink()
    succeed(*four_clips(work, "b.mp4"))
    assert (work / "a.mp4").read_bytes() == (work / "b.mp4").read_bytes()


# case 120
@pytest.mark.slow
def test_damaged_kept_clip_ends_without_a_traceback(work: Path, clips) -> None:
    shutil.copytree(clips, work, dirs_exist_ok=True)
    file = kept(work, 0)
    file.write_bytes(file.read_bytes()[:500])
    ended = run(*four_clips(work, "c.mp4"))
    assert not ended.crashed, ended.text[-300:]


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:10])


def change_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def curated(work: Path) -> Path:
    """A folder with two videos, the settings d.yaml, and the curated data set, out."""
    (work / "s").mkdir()
    movie(work / "s" / "a.mp4", moving_square(60))
    movie(work / "s" / "b.mp4", moving_square(130))
    settings = {
        "sources": [str(work / "s")],
        "output": str(work / "out"),
        "run": "alone",
        "shorter_side": 64,
        "cuts": {"shortest": 0.2, "longest": 1},
    }
    (work / "d.yaml").write_text(yaml.safe_dump(settings))
    succeed("curate", work / "d.yaml")
    return work


# case 121
@pytest.mark.parametrize(
    ("damaged", "damage"),
    [
        (".work/units/*/*.json", cut_short),
        pytest.param(".work/units/*/*.json", change_bit, marks=pytest.mark.slow),
        pytest.param(".work/units/*/*.tar", cut_short, marks=pytest.mark.slow),
        pytest.param(".work/units/*/*.tar", Path.unlink, marks=pytest.mark.slow),
        pytest.param(".work/settings.json", cut_short, marks=pytest.mark.slow),
        pytest.param(".work/shards/*.done", change_bit, marks=pytest.mark.slow),
        pytest.param("clips-*.tar", cut_short, marks=pytest.mark.slow),
    ],
)
def test_damaged_work_of_curation_is_done_again(curated: Path, damaged: str, damage) -> None:
    output = curated / "out"
    before = {file.name: file.read_bytes() for file in output.glob("clips*")}
    assert len(before) == 2
    damage(next(output.glob(damaged)))
    for shard in output.glob("clips-*") if damaged.startswith(".") else []:
        shard.unlink()
    succeed("curate", curated / "d.yaml")
    assert {file.name: file.read_bytes() for file in output.glob("clips*")} == before


# a relative of case 110
@pytest.mark.slow
@pytest.mark.parametrize("pattern", [".work/units/*/*", "clips-*"])
def test_full_disk_ends_a_curation_which_resumes_to_the_same_shards(curated: Path, pattern: str) -> None:
    output = curated / "out"
    shard = next(output.glob("clips-*"))
    before = shard.read_bytes()
    for file in output.glob(pattern):
        file.unlink()
    shard.unlink(missing_ok=True)
    with limited(resource.RLIMIT_FSIZE, 5_000 if pattern.startswith(".") else len(before) - 1):
        ended = run("curate", curated / "d.yaml")
    assert ended.status == 2 and "File too large: write to" in ended.text and not list(output.rglob(".*.part"))
    succeed("curate", curated / "d.yaml")
    assert shard.read_bytes() == before


# case 121
@pytest.mark.slow
def test_clips_that_a_bit_changed_are_never_packed(curated: Path) -> None:
    shard = next((curated / "out").glob("clips-*"))
    before = shard.read_bytes()
    shard.unlink()
    change_bit(next((curated / "out").glob(".work/units/*/*.tar")))
    ended = run("curate", curated / "d.yaml")
    assert ended.status == 2 and "is damaged: run the same command again" in ended.text
    succeed("curate", curated / "d.yaml")
    assert shard.read_bytes() == before


# case 121
@pytest.mark.slow
def test_damaged_checkpoint_of_equal_size_ends_without_a_traceback(work: Path, sd_folder: Path) -> None:
    stage = {"height": 16, "width": 16, "num_frames": 3, "fps": [5]}
    stages = [{**stage, "steps": 2}, {**stage, "steps": 1}]
    settings = told(sd_folder, both(work), work / "t", stages=stages).model_dump(mode="json")
    for name, count in (("one.yaml", 1), ("two.yaml", 2)):
        (work / name).write_text(yaml.safe_dump({**settings, "stages": settings["stages"][:count]}))
    succeed("train", work / "one.yaml")
    *_, weights = sorted((work / "t" / "stage-1" / "checkpoints").glob("step-*/weights.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:8] + b"X" + whole[9:])
    ended = run("train", work / "two.yaml")
    assert not ended.crashed, ended.text[-300:]


# a relative of case 121
def test_damaged_latents_of_a_cache_are_not_used(tmp_path: Path) -> None:
    file, tensors = tmp_path / "clip.safetensors", {"latents": torch.arange(64.0)}
    write_whole(file, tensors)
    assert torch.equal(read_whole(file)["latents"], tensors["latents"])
    whole = file.read_bytes()
    for place in (4, len(whole) - 200, len(whole) - 20):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not read_whole(file)
    file.unlink()
    assert not read_whole(file)
