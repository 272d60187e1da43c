"""Compare the frames of the README's commands, by hash, with those that another checkout generates.

    git worktree add ../before 62626b1
    python tools/same_frames.py ../before

Both run in this Python environment, one after the other, offline, on one thread. Each command of `COMMANDS` is run by
the other checkout and by this one with the same seed; the hash of the frames is the one recorded in the file. Fails if
any differs. The second form of a command is given where an option was renamed since; the spacing of sigmas that earlier
versions always had is asked for.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPACING = "--spacing leading --steps-offset 1"
# (name of the file, arguments before, arguments now if they differ); earlier files are inputs of later commands.
COMMANDS: tuple[tuple[str, str, str | None], ...] = (
    ("fish.mp4", 'generate "a red fish swimming over the sea"', None),
    (
        "car.gif",
        'generate "a blue car in the desert" --motion zoom:1.02 --num-frames 16',
        'generate "a blue car in the desert" --camera zoom:1.02 --num-frames 16',
    ),
    ("follow.mp4", 'generate "a purple fish in a city" --control canny=fish.mp4 --guidance-scale 3', None),
    ("snow.mp4", 'edit fish.mp4 "make it snow" --guidance-scale 3', None),
    ("smooth.mp4", 'generate "a red fish over the sea" --smooth-background 0.6', None),
    (
        "video.mp4",
        'generate "a red fish swimming to the right over the sea" --model pocket-video --guidance-scale 5',
        None,
    ),
    (
        "fish.png",
        'generate "a red fish over the sea" --num-frames 1',
        'generate "a red fish over the sea" --num-frames 1 --insert-warp-sigmas',
    ),
    ("animate.mp4", 'animate fish.png "a red fish swimming to the right over the sea" --guidance-scale 3', None),
    ("elevated.mp4", 'generate "a blue cat rising over the sea" --video-model pocket-video --guidance-scale 3', None),
    (
        "same-noise.mp4",
        'generate "a blue cat rising over the sea" --video-model pocket-video --guidance-scale 3 --back same-noise',
        'generate "a blue cat rising over the sea" --video-model pocket-video --guidance-scale 3 --renoise same-noise',
    ),
    (
        "fox.mp4",
        'generate "a sks cat rising in the desert" --model pocket-video --adapter pocket-fox --guidance-scale 3',
        None,
    ),
    (
        "clips.mp4",
        'generate "a red fish swimming over the sea" --model pocket-vidrd --clips 2 --guidance-scale 5',
        None,
    ),
    ("decoder.mp4", 'generate "a red fish over the sea" --decoder pocket-vidrd', None),
    (
        "calm.mp4",
        'generate "a red fish swimming to the right over the sea" --model pocket-video --motion-scale 0.5',
        'generate "a red fish swimming to the right over the sea" --model pocket-video --motion-strength 0.5',
    ),
    (
        "windows.mp4",
        'generate "a red fish swimming to the right over the sea" --model pocket-video --num-frames 24',
        None,
    ),
    (
        "euler.mp4",
        'generate "a red fish over the sea" --solver euler-ancestral',
        'generate "a red fish over the sea" --sampler euler-ancestral',
    ),
    (
        "dpm.mp4",
        'generate "a red fish over the sea" --solver dpmpp-2m',
        'generate "a red fish over the sea" --sampler dpmpp-2m',
    ),
)
HASH = "import json, sys; from {module} import read_settings; print(read_settings(sys.argv[1])['frames_sha256'])"


def python(source: Path, folder: Path, *arguments: str) -> str:
    """Run Python with a checkout's sources in a folder and return what it prints."""
    paths = [str(source / "src"), str(source / "lab")]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{source}: {shlex.join(arguments)} failed:\n{done.stderr}")
    return done.stdout.strip()


def frames_hash(source: Path, folder: Path, file: str, command: str, steps: int) -> str:
    """Generate a file and return the recorded SHA-256 of its frames."""
    options = ["--seed", "7", "--steps", str(steps), "-o", file]
    python(source, folder, "-m", "kineograph", *shlex.split(command), *options)
    old = source / "src" / "kineograph" / "data" / "provenance.py"
    module = "kineograph.data.provenance" if old.exists() else "kineograph.media.metadata"
    return python(source, folder, "-c", HASH.format(module=module), file)


def main() -> int:
    """Run every command in both checkouts; return 1 if the frames of one differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout, such as a git worktree")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of each video")
    parser.add_argument("--only", nargs="*", help="names of files to compare; inputs of theirs are generated too")
    asked = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as work:
        folders = Path(work, "before"), Path(work, "now")
        for folder in folders:
            folder.mkdir()
        for file, before, now in COMMANDS:
            if asked.only and file not in asked.only:
                continue
            hashes = (
                frames_hash(asked.before.resolve(), folders[0], file, before, asked.steps),
                frames_hash(ROOT, folders[1], file, f"{now or before} {SPACING}", asked.steps),
            )
            same = hashes[0] == hashes[1]
            different += not same
            print(
                f"{'same' if same else 'DIFFERENT':9}  {file:16} {hashes[1][:12]}  kineograph {now or before}",
                flush=True,
            )
    print(f"{len(COMMANDS) if not asked.only else len(asked.only)} commands, {different} different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
