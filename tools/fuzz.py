"""Mutate small valid inputs of every reader of the library, and count what becomes of them.

    python tools/fuzz.py --inputs 1000 --seed 0                       # in process, spread over all readers
    python tools/fuzz.py --inputs 1000 --seed 0 --readers images loras
    python tools/fuzz.py --inputs 100 --seed 0 --command              # the same inputs, through the program
    python tools/fuzz.py --readers loras --input FILE                 # one input again, with its traceback
    python tools/fuzz.py --valid                                      # the inputs without mutations: all are fine

Each reader runs in a process that is forked once everything is imported, with limits on time and memory, and is
started anew when it dies. An input is fine, or refused: by InputError, or by an OSError that names its file, of one
line. All else is a failure: a traceback, a message of several lines, a native crash, a hang, too much memory, a
half-written file. Failing inputs are kept in --failures. Prints a JSON summary on stdout, with --markdown a table; the
status is 1 if there are failures. Input i of a reader is the same for a seed whatever else runs. POSIX only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fuzz_readers import Reader

ROOT = Path(__file__).parents[1]
FINE, REFUSED = "fine", "refused"
FAILURES = ("traceback", "several lines", "crash", "hang", "memory", "half-written")
OUTCOMES = (FINE, REFUSED, *FAILURES)
BATCH = 200  # inputs of a process
MAX_MESSAGE = 3000  # characters of an error
NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")
INVALID_INPUT = 2  # the program's exit status


class Limits(NamedTuple):
    """Limits of one input: seconds, and bytes of memory."""

    seconds: float
    memory: int


class Result(NamedTuple):
    """What became of an input. text: an error's last line, and its traceback; seconds and megabytes that it took."""

    reader: str
    index: int
    outcome: str
    text: str = ""
    mutated: str = ""
    input: str = ""
    seconds: float = 0.0
    megabytes: int = 0


class Run(NamedTuple):
    """A run over the inputs of one reader. inputs: indices; given: an input that is read as it is."""

    reader: Reader
    seeds: Path
    seed: int
    limits: Limits
    failures: Path
    through_command: bool
    given: Path | None = None


# --- one input, in a process of its own


def read_input(run: Run, index: int, work: Path) -> Result:
    """Mutate an input and read it."""
    rng = Random(f"{run.seed}/{run.reader.name}/{index}")
    source = run.given or rng.choice(sorted(run.seeds.iterdir()))
    target, out = work / "in" / source.name, work / "out"
    for folder in (target.parent, out, work / "extra"):
        folder.mkdir(parents=True)
    if run.given:
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        mutated = source.name
    else:
        mutated = importlib.import_module("fuzz_mutations").mutate_copy(source, target, rng)
    os.chdir(out)
    reset_peak()
    started = time.monotonic()
    outcome, text = (run_command if run.through_command else call_reader)(run, target, out)
    seconds, megabytes = time.monotonic() - started, peak_megabytes()
    if outcome in (FINE, REFUSED):
        if left := [file for file in out.rglob("*") if ".part" in file.name]:
            outcome, text = "half-written", f"{left[0].name} is left"
        elif megabytes > run.limits.memory >> 20:
            outcome, text = "memory", f"{megabytes} MB"
        elif run.through_command and (problem := broken_output(out)):
            outcome, text = "half-written", problem
    kept = keep_input(run, index, outcome, target, text) if outcome in FAILURES else ""
    return Result(run.reader.name, index, outcome, text, f"{source.name}: {mutated}", kept, seconds, megabytes)


def call_reader(run: Run, target: Path, out: Path) -> tuple[str, str]:
    """Call a reader; return the outcome and the error."""
    from kineograph.errors import InputError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run.reader.read(target, out)
        except BaseException as error:  # noqa: BLE001 (of Rust's panics too)
            text = traceback.format_exc()
            if isinstance(error, MemoryError) or any(each in str(error) for each in NO_MEMORY):
                return "memory", text
            if isinstance(error, InputError) or (isinstance(error, OSError) and error.filename):
                one_line = "\n" not in str(error) and len(str(error)) < MAX_MESSAGE
                return (REFUSED if one_line else "several lines"), text
            return "traceback", text
    return FINE, ""


def run_command(run: Run, target: Path, out: Path) -> tuple[str, str]:
    """Run the program in this process; return the outcome and what it printed."""
    from kineograph.cli import main

    assert run.reader.command is not None
    arguments = [str(each) for each in run.reader.command(target, out)]
    printed = out.parent / "printed"
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.argv, status = ["kineograph", *arguments], 0
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    text = printed.read_text(errors="replace")
    if "Traceback (most recent call last)" in text:
        return ("memory" if any(each in text for each in NO_MEMORY) else "traceback"), f"{arguments}\n{text}"
    if status == INVALID_INPUT:
        if "out of memory" in text:
            return "memory", text
        lines = text[text.find("error:") :].strip().splitlines()
        usage = text.lstrip().startswith("Usage:")  # of typer, in a frame
        return (REFUSED if len(lines) == 1 or usage else "several lines"), f"{arguments}\n{text}"
    return FINE, text


def broken_output(out: Path) -> str:
    """Return the defect of a video that was written; empty where there is none."""
    from kineograph.errors import InputError
    from kineograph.media.video import open_video

    for file in out.glob("*.mp4"):
        try:
            open_video(file)
        except InputError as error:
            return str(error)
    return ""


def keep_input(run: Run, index: int, outcome: str, target: Path, text: str) -> str:
    """Copy a failing input, and write its traceback beside it."""
    kind = "-command" if run.through_command else ""
    folder = run.failures / f"{run.reader.name}{kind}" / f"{index:06}-{outcome.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kept = folder / target.name
    (shutil.copytree if target.is_dir() else shutil.copyfile)(target, kept)
    (folder / "traceback").write_text(text, encoding="utf-8", errors="replace")
    return str(kept)


def reset_peak() -> None:
    """Reset the peak of this process's resident memory, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> int:
    """Return the peak of this process's resident memory."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


# --- processes


def limit_memory(limits: Limits) -> None:
    """Limit the address space to what it is now and as much again as the limit."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def serve(run: Run, indices: range, write: int) -> None:
    """Read inputs in a forked process: for each, a line with its index, and a line with its result."""
    with Path(os.devnull).open("w") as quiet:
        for descriptor in (1, 2):
            os.dup2(quiet.fileno(), descriptor)
    limit_memory(run.limits)
    for index in indices:
        os.write(write, f"{json.dumps(index)}\n".encode())
        work = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            result = read_input(run, index, work)
        finally:
            os.chdir(ROOT)
            shutil.rmtree(work, ignore_errors=True)
        os.write(write, f"{json.dumps(result)}\n".encode())


def fork(work: Any, *arguments: Any) -> int:
    """Run a function in a forked process, and return its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        work(*arguments)
        status = 0
    except BaseException:  # noqa: BLE001 (a process that was forked must not go on)
        traceback.print_exc()
    finally:
        os._exit(status)


def read_all(run: Run, count: int) -> Iterator[Result]:
    """Read all inputs of a reader, in processes that are started anew after a batch, a crash and a hang."""
    at = 0
    while at < count:
        indices = range(at, min(count, at + (1 if run.through_command else BATCH)))
        read, write = os.pipe()
        pid = fork(serve, run, indices, write)
        os.close(write)
        with os.fdopen(read) as lines:
            for result in follow(run, pid, lines):
                at = result.index + 1
                yield result
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def follow(run: Run, pid: int, lines: Any) -> Iterator[Result]:
    """Yield the results that a process sends; the last one is of a hang or a crash, if it ends so."""
    name, index, pending = run.reader.name, None, b""
    started = time.monotonic()
    while True:
        left = run.limits.seconds - (time.monotonic() - started)
        ready = select.select([lines], [], [], max(0, left))[0]
        part = os.read(lines.fileno(), 1 << 20) if ready else None
        if part is None:
            if index is None:  # between two inputs: the process was not given the processor, or was suspended
                started = time.monotonic()
                continue
            os.kill(pid, signal.SIGKILL)
            yield repeat(run, index, "hang", f"no end after {run.limits.seconds:g} s")
            return
        pending += part
        *complete, pending = pending.split(b"\n")
        for line in complete:
            content = json.loads(line)
            if isinstance(content, int):
                index, started = content, time.monotonic()
            else:
                index = None
                yield Result(*content)
        if not part:
            _, status = os.waitpid(pid, 0)
            if index is not None:
                how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
                yield repeat(run, index, "crash", f"{name} ended with {how}")
            return


def repeat(run: Run, index: int, outcome: str, text: str) -> Result:
    """Return the result of an input whose process did not end well, and keep the input: it is made once more."""
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    rng = Random(f"{run.seed}/{run.reader.name}/{index}")
    source = run.given or rng.choice(sorted(run.seeds.iterdir()))
    target = work / source.name
    mutated = source.name
    if run.given:
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    else:
        mutated = importlib.import_module("fuzz_mutations").mutate_copy(source, target, rng)
    kept = keep_input(run, index, outcome, target, text)
    shutil.rmtree(work)
    seconds = run.limits.seconds if outcome == "hang" else 0.0
    return Result(run.reader.name, index, outcome, text, f"{source.name}: {mutated}", kept, seconds)


# --- the whole


def shares(readers: list[Reader], count: int) -> dict[str, int]:
    """Return the number of inputs of each reader, by weight."""
    total = sum(each.weight for each in readers)
    ends, weight = [0], 0.0
    for each in readers:
        weight += each.weight
        ends.append(round(count * weight / total))
    return {each.name: ends[number + 1] - ends[number] for number, each in enumerate(readers)}


def build(reader: Reader, folder: Path) -> Path:
    """Write the valid inputs of a reader, in another process: they need threads, and a fork should have none."""
    seeds = folder / reader.name
    seeds.mkdir()
    _, status = os.waitpid(fork(reader.build, seeds), 0)
    if status:
        raise SystemExit(f"the valid inputs of {reader.name} could not be built")
    return seeds


def summarise(results: list[Result], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return the summary that is printed."""
    readers = {}
    for name in dict.fromkeys(each.reader for each in results):
        own = [each for each in results if each.reader == name]
        counts = Counter(each.outcome for each in own)
        readers[name] = {"inputs": len(own), **{outcome: counts[outcome] for outcome in OUTCOMES}}
        readers[name] |= {"longest": round(max(each.seconds for each in own), 2)}
        readers[name] |= {"peak_mb": max(each.megabytes for each in own)}
    return {
        "seed": arguments.seed,
        "through": "the program" if arguments.command else "the library",
        "inputs": len(results),
        "seconds": round(seconds, 1),
        **{outcome: sum(each.outcome == outcome for each in results) for outcome in OUTCOMES},
        "readers": readers,
        "failures": [as_failure(each, arguments) for each in results if each.outcome in FAILURES],
    }


def as_failure(result: Result, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a failure for the summary, with the last line of its traceback."""
    last = result.text.strip().splitlines()[-1:]
    kept = {
        name: value for name, value in result._asdict().items() if name in ("reader", "index", "outcome", "mutated")
    }
    return {**kept, "error": "".join(last)[:300], "again": again(result, arguments)}


def again(result: Result, arguments: argparse.Namespace) -> str:
    """Return the command that reads an input again."""
    command = " --command" if arguments.command else ""
    return f"python tools/fuzz.py{command} --readers {result.reader} --input '{result.input}'"


def markdown(summary: dict[str, Any]) -> str:
    """Return the summary as a table."""
    columns = ("inputs", *OUTCOMES, "longest", "peak_mb")
    rows = [*summary["readers"].items()]
    totals = {name: sum(row[name] for _, row in rows) for name in columns[:-2]}
    totals |= {name: max(row[name] for _, row in rows) for name in columns[-2:]}
    lines = [f"| reader | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [
        f"| {name} | {' | '.join(str(row[each]) for each in columns)} |" for name, row in [*rows, ("all", totals)]
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the program, and return its status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="number of inputs, spread over the readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", metavar="NAME", help="by default all")
    parser.add_argument("--command", action="store_true", help="through the command-line program")
    parser.add_argument("--input", type=Path, help="read this one input, as it is")
    parser.add_argument("--valid", action="store_true", help="read all inputs without mutations")
    parser.add_argument("--seconds", type=float, default=60, help="limit of an input")
    parser.add_argument("--memory", type=int, default=2048, help="limit of an input, in MB")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder of failing inputs")
    parser.add_argument("--json", type=Path, help="write the summary to a file too")
    parser.add_argument("--markdown", action="store_true", help="print a table in place of JSON")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(ROOT / "tests"))
    from kineograph.cli import terminal

    terminal.quiet_libraries()
    import fuzz_readers

    known = {each.name: each for each in fuzz_readers.READERS}
    if unknown := {*(arguments.readers or ())} - {*known}:
        parser.error(f"no reader {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    readers = [known[name] for name in arguments.readers or known]
    readers = [each for each in readers if each.command or not arguments.command]
    limits, started, results = Limits(arguments.seconds, arguments.memory << 20), time.monotonic(), list[Result]()
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as folder:
        fuzz_readers.BASE = Path(folder) / "base"
        fuzz_readers.BASE.mkdir()
        os.waitpid(fork(fuzz_readers.build_base, fuzz_readers.BASE), 0)
        fuzz_readers.warm_up()
        given = arguments.input.absolute() if arguments.input else None
        for name, count in shares(readers, 1 if given else arguments.inputs).items():
            seeds = Path() if given else build(known[name], Path(folder))
            failures = arguments.failures.absolute()
            run = Run(known[name], seeds, arguments.seed, limits, failures, arguments.command, given)
            began, own = time.monotonic(), list[Result]()
            if arguments.valid:
                for each in sorted(seeds.iterdir()):
                    own += [result._replace(mutated=each.name) for result in read_all(run._replace(given=each), 1)]
            else:
                own += read_all(run, count)
            results += own
            if refused := [each for each in own if arguments.valid and each.outcome != FINE]:
                print(*(f"{name}: {each.mutated}: {each.text}" for each in refused), sep="\n", file=sys.stderr)
            counts = Counter(each.outcome for each in own)
            shown = ", ".join(f"{counts[each]} {each}" for each in OUTCOMES if counts[each])
            print(f"{name}: {shown} in {time.monotonic() - began:.1f} s", file=sys.stderr)
    summary = summarise(results, arguments, time.monotonic() - started)
    text = json.dumps(summary, indent=1)
    if given:
        print(results[0].outcome, results[0].text, sep="\n", file=sys.stderr)
    print(markdown(summary) if arguments.markdown else text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return int(bool(summary["failures"]))


if __name__ == "__main__":
    sys.exit(main())
