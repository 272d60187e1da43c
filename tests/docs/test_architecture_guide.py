"""The examples of docs/architecture.md run as they are written."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import kineograph as kg
from kineograph import plugins

GUIDE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def execute(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "kineograph_correlated"}
    exec(compile(code, "architecture.md", "exec"), names)
    return names


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Any:
    (code,) = (each for each in BLOCKS if "METHOD" in each)
    method = execute(code)["METHOD"]
    point = metadata.EntryPoint("correlated-noise", "kineograph_correlated:METHOD", "kineograph.methods")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: method)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == "kineograph.methods" else [])
    return method


@pytest.mark.slow
@pytest.mark.usefixtures("method")
def test_a_method_of_another_package_samples_clips() -> None:
    model = kg.load()
    options: Any = {"correlation": 3.0, "method": "correlated-noise", "clips": 2, "num_frames": 3}
    video = kg.generate(model, "a red fish over the sea", num_inference_steps=2, seed=3, **options)
    assert len(video.frames) == 6
    assert video.settings["correlation"] == 3.0
    with pytest.raises(kg.InputError, match="`correlation` is a number at least 0"):
        kg.generate(model, "a red fish", **{**options, "correlation": -1.0})


def test_the_declaration_of_an_option_is_complete() -> None:
    (code,) = (each for each in BLOCKS if "SmoothingOptions" in each)
    names = execute(
        "from typing import Annotated\nfrom typing_extensions import TypedDict\n"
        f"from kineograph.options import Number, option, validate\n{code}"
    )
    assert names["validate"]({"strength": 0.7}, names["SmoothingOptions"]) == {"strength": 0.7}
