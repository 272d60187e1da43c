"""Kill runs of all commands at random moments, and check that nothing is lost, half-written or different afterwards.

    OMP_NUM_THREADS=1 python tools/kill_runs.py --seconds 120 --seed 0

Each command runs twice undisturbed; files that differ between the two, but for recorded times, are not compared. Then,
again and again: it is killed (SIGKILL) one to three times after a random delay, each time all files under their final
names are read, and it runs to its end, where all files must be those of the undisturbed run and no temporary one is
left. A run is a fork of this process, which has imported everything. Prints a JSON summary; exits 1 after a failure.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

SMALL = ("--steps", "2", "--guidance-scale", "1", "--height", "64", "--width", "64", "--seed", "1")
TIMES = ("seconds", "sha256")  # of state.json: its own digest covers the times
PRIVATE = (".lock", "run.lock", "run.owner")
MOST_KILLS = 3  # in one trial


class Command(NamedTuple):
    """A command line. result: the file that a finished run has; the command refuses to write it again."""

    arguments: Sequence[str]
    result: str | None = None


class Ended(NamedTuple):
    """End of a run. status: None if it was killed."""

    status: int | None
    seconds: float
    text: str


def write_inputs(folder: Path) -> dict[str, Command]:
    """Write models, videos, images and settings into a folder, and return the commands that read them."""
    import yaml
    from cases import tiny_models
    from cases.small_media import movie, moving_square
    from tiny_video_customising import OF_VIDEO, pictures, save_waves
    from tiny_video_training import both, told

    import kineograph as kg

    image_model = folder / "sd"
    tiny_models.sd().save_pretrained(image_model)
    waves = save_waves(kg.load(image_model, device="cpu", dtype="float32"), folder / "waves")
    (folder / "footage").mkdir()
    for number, grey in enumerate((60, 130)):
        movie(folder / "footage" / f"{number}.mp4", moving_square(grey, height=96, width=96))
    photos = pictures(folder / "photos")
    training = told(image_model, both(folder), Path("trained")).model_dump(mode="json")
    training["training"] |= {"checkpointing_steps": 1}
    curation = {
        "sources": [str(folder / "footage")],
        "output": "curated",
        "run": "alone",
        "shorter_side": 64,
        "cuts": {"shortest": 0.2, "longest": 1},
    }
    for name, settings in (("train.yaml", training), ("curate.yaml", curation)):
        (folder / name).write_text(yaml.safe_dump(settings))
    film, photo = str(folder / "footage" / "0.mp4"), str(photos / "0.png")
    taught = [word for name, value in _flat(OF_VIDEO) for word in ("--set", f"{name}={json.dumps(value)}")]
    clips = ["-m", "pocket-vidrd", "-n", "2", "--clips", "3", "--keep-clips", "kept"]
    return {
        "generate": Command(["generate", "a red fish", "-n", "2", *SMALL, "-o", "o.mp4"], "o.mp4"),
        "generate folder": Command(["generate", "a red fish", "-n", "4", *SMALL, "-o", "frames"], "frames"),
        "keep-clips": Command(["generate", "a red fish", *clips, *SMALL, "-o", "o.mp4"], "o.mp4"),
        "edit": Command(["edit", film, "make it snow", "-n", "2", *SMALL, "-o", "o.mp4"], "o.mp4"),
        "animate": Command(["animate", photo, "a fish", "-n", "2", *SMALL, "-o", "o.webp"], "o.webp"),
        "convert": Command(["convert", str(waves), "out"], "out"),
        "curate": Command(["curate", str(folder / "curate.yaml")]),
        "train": Command(["train", str(folder / "train.yaml")]),
        "customise": Command(
            ["customise", str(photos), "--model", str(waves), "--device", "cpu", "--dtype", "float32", "--subject",
             "sks dog", *taught, "-o", "dog.safetensors"]
        ),
    }  # fmt: skip


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return settings as (dotted name, value)."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


def run(arguments: Sequence[str], folder: Path, delay: float | None = None, modules: Path | None = None) -> Ended:
    """Run the command line in a fork, in this folder; kill it after `delay` seconds, if that is given.

    modules: a file that gets the names of the modules that the run imported.
    """
    log = folder.with_suffix(".log")
    started = time.monotonic()
    process = os.fork()
    if not process:
        _run_here(arguments, folder, log, modules)
    killed = False
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        passed = time.monotonic() - started
        if ended:
            break
        if delay is not None and passed >= delay and not killed:
            os.kill(process, signal.SIGKILL)
            killed = True
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(status)
    return Ended(None if code == -signal.SIGKILL else code, passed, log.read_text(errors="replace"))


def _run_here(arguments: Sequence[str], folder: Path, log: Path, modules: Path | None) -> None:
    status = 70
    try:
        os.chdir(folder)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        from kineograph.cli import main

        sys.argv = ["kineograph", *arguments]
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        if status == 70:
            import traceback

            traceback.print_exc()
        if modules is not None:
            modules.write_text("\n".join(sys.modules))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the files by their paths, without locks, and without times in logs and states."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in PRIVATE:
            content = file.read_bytes()
            if file.name in ("state.json", "log.jsonl"):
                with suppress(ValueError):
                    rows = [
                        json.loads(line) for line in ([content] if file.suffix == ".json" else content.splitlines())
                    ]
                    content = json.dumps([{k: v for k, v in row.items() if k not in TIMES} for row in rows]).encode()
            found[str(file.relative_to(folder))] = content
    return found


def _is_temporary(name: str) -> bool:
    return any(part.startswith(".") and part.endswith(".part") for part in Path(name).parts)


def _check_tensors(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (it is no dict)
            opened.get_tensor(name)


def _check_tar(file: Path) -> None:
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            if member.isreg():
                tar.extractfile(member).read()  # type: ignore[union-attr]
    if not file.read_bytes().endswith(bytes(2 * tarfile.BLOCKSIZE)):
        raise ValueError("it has no end mark")


def _check_video(file: Path) -> None:
    import kineograph as kg

    kg.open_video(file)


def _check_json(file: Path) -> None:
    for line in file.read_bytes().splitlines() if file.suffix == ".jsonl" else [file.read_bytes()]:
        json.loads(line)


CHECKS: Mapping[str, Callable[[Path], None]] = {
    ".safetensors": _check_tensors,
    ".tar": _check_tar,
    ".json": _check_json,
    ".jsonl": _check_json,
    ".mp4": _check_video,
    ".webp": _check_video,
    ".png": _check_video,
}


def half_written(folder: Path, whole: Mapping[str, bytes]) -> list[str]:
    """Return the files that have a final name, are not as after an undisturbed run, and cannot be read."""
    bad = []
    for name, content in read_folder(folder).items():
        if _is_temporary(name) or content == whole.get(name):
            continue
        try:
            CHECKS.get(Path(name).suffix, lambda file: None)(folder / name)
        except Exception as error:  # noqa: BLE001 (whatever a reader raises)
            bad.append(f"{name}: {type(error).__name__}: {error}")
    return bad


class Reference(NamedTuple):
    """An undisturbed run. files: those that two such runs have alike."""

    files: Mapping[str, bytes]
    seconds: float
    names: frozenset[str]


def undisturbed(name: str, command: Command, folder: Path) -> Reference:
    """Run a command twice, import what it imported, and return what it wrote."""
    first, second = (folder / f"whole-{number}" for number in (1, 2))
    results = []
    for each in (first, second):
        each.mkdir()
        ended = run(command.arguments, each, modules=folder / "modules")
        if ended.status:
            raise SystemExit(f"{name} ends with {ended.status} undisturbed: {ended.text[-2000:]}")
        results.append(read_folder(each))
        for module in (folder / "modules").read_text().split():
            if module.split(".")[0] in (
                "kineograph",
                "diffusers",
                "transformers",
                "peft",
                "av",
                "PIL",
                "cv2",
                "scenedetect",
            ):
                with suppress(Exception):
                    importlib.import_module(module)
        shutil.rmtree(each)
    one, other = results
    files = {file: content for file, content in one.items() if other.get(file) == content}
    if uncompared := sorted({*one, *other} - {*files}):
        print(f"{name}: not compared, since two undisturbed runs differ: {uncompared}", file=sys.stderr)
    return Reference(files, ended.seconds, frozenset(one))


def trial(command: Command, reference: Reference, folder: Path, dice: random.Random, counts: Counter[str]) -> list[str]:
    """Kill a command a few times, run it to its end, and return what is wrong."""
    folder.mkdir()
    wrong: list[str] = []
    for _ in range(dice.randint(1, MOST_KILLS)):
        ended = run(command.arguments, folder, delay=dice.uniform(0, 0.95 * reference.seconds))
        counts["kills" if ended.status is None else "ended before the kill"] += 1
        wrong += [f"half-written: {each}" for each in half_written(folder, reference.files)]
        if ended.status:
            wrong.append(f"lost: status {ended.status} after a kill: {ended.text[-500:]}")
        if command.result and (folder / command.result).exists():
            break
    if not (command.result and (folder / command.result).exists()):
        ended = run(command.arguments, folder)
        if ended.status:
            wrong.append(f"lost: status {ended.status} at the end: {ended.text[-500:]}")
        wrong += [f"left over: {name}" for name in read_folder(folder) if _is_temporary(name)]
    files = read_folder(folder)
    wrong += [f"lost: {name}" for name in sorted(reference.files.keys() - files.keys())]
    wrong += [f"different: {name}" for name, each in reference.files.items() if name in files and files[name] != each]
    extra = {name for name in files if name not in reference.names and not _is_temporary(name)}
    wrong += [f"different: {name} is in no undisturbed run" for name in sorted(extra)]
    shutil.rmtree(folder)
    return wrong


def main() -> int:
    """Run trials for a time; print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="time for the trials, after the undisturbed runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="commands, by the names in the summary")
    options = parser.parse_args()
    dice, counts, wrong = random.Random(options.seed), {}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "inputs").mkdir()
        if not (writer := os.fork()):  # so that this process does not compute: a fork has one thread of its threads
            commands = write_inputs(folder / "inputs")
            (folder / "commands").write_text(json.dumps(commands))
            os._exit(0)
        os.waitpid(writer, 0)
        commands = {name: Command(*each) for name, each in json.loads((folder / "commands").read_text()).items()}
        commands = {name: each for name, each in commands.items() if not options.only or name in options.only}
        references = {name: undisturbed(name, each, folder) for name, each in commands.items()}
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            for name, command in commands.items():
                found = trial(command, references[name], folder / "trial", dice, counts.setdefault(name, Counter()))
                counts[name].update(each.partition(":")[0] for each in found)
                wrong += [f"{name}: {each}" for each in found]
    total = sum(counts.values(), Counter())
    kinds = ("kills", "ended before the kill", "lost", "half-written", "different", "left over")
    undisturbed_seconds = {name: round(each.seconds, 1) for name, each in references.items()}
    summary = {kind: total[kind] for kind in kinds} | {
        "seed": options.seed, "commands": counts, "undisturbed_seconds": undisturbed_seconds, "wrong": wrong[:50],
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
