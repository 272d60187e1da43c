"""The guide to the service: its program runs, and its tables have what the code has."""

import re
import sqlite3
from contextlib import closing
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from moved_clock import MovedClock

from kineograph.service.api.access import PUBLIC_FOLDER, PUBLIC_PATHS
from kineograph.service.api.settings import ServeSettings
from kineograph.service.database import MIGRATIONS
from kineograph.service.files import FOLDERS
from kineograph.service.jobs import STATES, JobRequest, QueueLimits
from kineograph.service.queue import JobQueue

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/service.md").read_text()


def test_the_program_submits_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(program, {})
    (job,) = JobQueue.open("service").list_jobs("ann")
    assert capsys.readouterr().out == f"queued service/results/{job.id}/video.mp4\n"


def test_every_state_limit_folder_and_code_is_named() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src/kineograph/service").glob("*.py"))
    names = {*STATES, *FOLDERS, *(each.name for each in fields(QueueLimits))}
    names |= {"invalid_request", "out_of_memory", "disk_full", "file_error", "worker_lost", "internal_error"}
    for name in names:
        assert f'"{name}"' in code or f"{name}:" in code, name
        assert re.search(rf"`(\w+`, `|results/)?{name}[`/]", GUIDE), name
    assert str(QueueLimits().lease_seconds).removesuffix(".0") in GUIDE
    assert len(MIGRATIONS) == 2


def test_every_setting_is_in_the_table() -> None:
    table = GUIDE.partition("## Settings")[2].partition("## Security")[0]
    named = {name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {each.name for each in fields(ServeSettings)}
    for path in (*PUBLIC_PATHS, PUBLIC_FOLDER):
        assert f"`{path}`" in GUIDE.partition("Without a token answer")[2].partition("##")[0]


def test_the_reference_is_that_of_the_schema() -> None:
    spec = spec_from_file_location("rest_page", ROOT / "tools" / "rest_page.py")
    assert spec is not None and spec.loader is not None
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = tool.rest_page(tool.read_schema())
    assert page == tool.PAGE.read_text(), "run python tools/rest_page.py"
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links <= {each.lower() for each in re.findall(r"^### (\w+)$", page, re.MULTILINE)}


def test_a_copy_of_the_queue_that_was_made_while_it_is_in_use(tmp_path: Path) -> None:
    """What `.backup` does, by the same function of SQLite."""
    queue = JobQueue.open(tmp_path / "service")
    jobs = [queue.submit("ann", JobRequest("generate", "pocket", {})) for _ in range(3)]
    running = queue.claim("worker")
    assert running is not None
    copied = tmp_path / "copy"
    copied.mkdir()
    with (
        closing(sqlite3.connect(queue.database.path)) as source,
        closing(sqlite3.connect(copied / "queue.sqlite3")) as to,
    ):
        source.backup(to)
    queue.delete(jobs[2].id)  # after the copy
    restored = JobQueue.open(copied, clock=MovedClock(uptime=1e9))
    assert [each.id for each in restored.list_jobs(order="asc")] == [each.id for each in jobs]
    again = restored.claim("worker")  # its lease has ended
    assert again is not None and (again.id, again.attempt) == (running.id, 2)
