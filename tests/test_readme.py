"""The README's Python snippets run, its commands parse, CI runs its first two, its links exist."""

import re
import shlex
from pathlib import Path

import pytest

from kineograph.cli.commands import build_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
SNIPPETS = re.findall(r"(?<!<!-- needs a checkpoint -->\n)```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for line in LINES]
FASTER = {"num_frames=8": "num_frames=8, num_inference_steps=4", "steps=20": "steps=4"}  # CI generates a whole video


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_each_snippet_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (slow,) = (each for each in FASTER if each in snippet)
    exec(compile(snippet.replace(slow, FASTER[slow]), "README.md", "exec"), {})


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("kineograph ")])
def test_each_command_parses(line: str) -> None:
    _, verb, *arguments = shlex.split(line)
    command = build_command(verb)
    command.make_context(verb, arguments)


@pytest.mark.parametrize("line", COMMANDS[:2])
def test_ci_runs_the_first_two_commands(line: str) -> None:
    assert line.removeprefix("pip install ") in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:\]\(|src=\")(?!https?:|#)([^)\"#]+)", README))))
def test_each_link_exists(target: str) -> None:
    assert (ROOT / target).exists()
