"""An option costs one declaration and its use: a copy of the package with one more key has it on every face."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kineograph
from kineograph.media.metadata import read_settings

PACKAGE = Path(kineograph.__file__).parent
METHOD = "methods/text2video_zero.py"
OWNER = 'class Text2VideoZeroOptions(TypedDict, total=False):\n    """Options of Text2Video-Zero alone."""\n'
DECLARATION = (
    '    noise_scale: Annotated[Number, option(1.0, "Scale of the noise, from `seed`.", group="Edits", ge=0, le=4)]\n'
)
BEFORE = "noise.independent(plan.seeds, plan.frames, plan.latent_shape).to(device)"
USE = f'plan.read(Text2VideoZeroOptions)["noise_scale"] * {BEFORE}'
SMALL = ("-n", "2", "--steps", "2", "--height", "64", "--width", "64", "--seed", "1", "--device", "cpu")

FROM_PYTHON = """
import inspect, json, typing
import kineograph as kg
from kineograph.generation.check import complete

functions = (kg.generate, kg.animate, kg.edit)
signatures = [str(inspect.signature(each).parameters["noise_scale"]) for each in functions]
hint = typing.get_type_hints(kg.GenerateOptions)["noise_scale"].__name__
documented = [line.strip() for line in kg.generate.__doc__.splitlines() if "noise_scale" in line]
try:
    complete({"noise_scale": 5})
except kg.InputError as error:
    print(json.dumps([signatures, hint, documented, str(error)]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package in which an option is declared and used; the weights are linked."""
    folder = tmp_path_factory.mktemp("copy")
    to = folder / "kineograph"
    shutil.copytree(PACKAGE, to, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    for weights in PACKAGE.rglob("weights"):
        (to / weights.relative_to(PACKAGE)).symlink_to(weights, target_is_directory=True)
    source = (to / METHOD).read_text()
    for text, replaced in ((OWNER, OWNER + "\n" + DECLARATION), (BEFORE, USE)):
        assert source.count(text) == 1, f"{METHOD} has changed: this test looks for {text!r}"
        source = source.replace(text, replaced)
    (to / METHOD).write_text(source)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_option_declared_in_one_place_is_on_every_face(copy: Path) -> None:
    signatures, hint, documented, error = json.loads(_python(copy, "-c", FROM_PYTHON))
    assert all(each.startswith("noise_scale: ") and each.endswith(" = 1.0") for each in signatures), signatures
    assert hint == "float"
    assert documented == ["noise_scale: Scale of the noise, from `seed`. Default: 1.0."]
    assert error == "`noise_scale` is a number from 0 to 4, not 5"

    (line,) = [each for each in _program(copy, "generate", "--help").splitlines() if "--noise-scale" in each]
    assert "Scale of the noise, from --seed." in line and "default: 1" in line

    schema = json.loads(_program(copy, "schema", "generate"))["properties"]["noise_scale"]
    expected = {"type": "number", "default": 1.0, "minimum": 0, "maximum": 4, "group": "Edits"}
    assert {name: schema[name] for name in expected} == expected
    assert schema["readers"] == ["text2video-zero"] and schema["recorded"] is True


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_its_value_is_read_from_a_file_used_and_recorded(copy: Path) -> None:
    for name, scale in (("plain", 1.0), ("weak", 0.9)):
        (copy / f"{name}.yaml").write_text(f"prompt: a red fish\nnoise_scale: {scale}\noutput: {name}\n")
        _program(copy, "generate", "--config", f"{name}.yaml", *SMALL)
        assert read_settings(copy / name)["noise_scale"] == scale
    plain, weak = (read_settings(copy / name) for name in ("plain", "weak"))
    assert plain["frames_sha256"] != weak["frames_sha256"]
    _program(copy, "replay", "weak", "-o", "again")
    assert read_settings(copy / "again") == weak


def _program(copy: Path, *arguments: str) -> str:
    return _python(copy, "-m", "kineograph", *arguments)


def _python(copy: Path, *arguments: str) -> str:
    """Run Python with the copy of the package; return what it prints on stdout."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
