"""The guide to Python runs, and the API page is what its tool writes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "python.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.slow
def test_the_guide_to_python_runs_as_one_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, "python.md", "exec"), namespace)
    assert {path.name for path in tmp_path.iterdir()} == {"fish.mp4", "fish.jpg", "half.jpg"}


@pytest.mark.slow
def test_the_api_page_is_that_of_the_code() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "api_page.py"), "--check"]
    assert subprocess.run(tool).returncode == 0, "run python tools/api_page.py"
