"""A method of another package, registered by the entry point `kineograph.methods`, with an option of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import Run

import kineograph
from kineograph.media.metadata import read_settings

PACKAGES = Path(kineograph.__file__).parents[1]
SMALL = ("-n", "3", "--steps", "2", "--height", "64", "--width", "64", "--seed", "1", "--device", "cpu")
ENTRY_POINTS = "[kineograph.methods]\nstill-life = kineograph_still_life:METHOD\n"
SOURCE = '''
"""Frames of one image model that share part of their noise."""

from typing import Annotated

from typing_extensions import TypedDict

from kineograph import noise
from kineograph.errors import InputError
from kineograph.options import Number, option
from kineograph.plan import Combination, Method, Plan, SamplingRun, bind_model, build_sampler
from kineograph.request import ImageModelOptions


class StillLifeOptions(TypedDict, total=False):
    sameness: Annotated[
        Number, option(3.0, "Ratio of the noise that all frames share, as `seed` says.", group="Video", ge=0, le=100)
    ]


def run(plan: Plan) -> SamplingRun:
    from kineograph.models.unet.frame_attention import first

    sigmas, ratio = plan.sigmas(plan.model.schedule), plan.read(StillLifeOptions)["sameness"]
    own = noise.partly_shared(ratio, plan.seeds, plan.frames, plan.latent_shape, plan.clip)
    initial = plan.continue_noise(own.to(plan.model.device))
    denoise = bind_model(plan, frame_attention=first).guided
    sampler = plan.adapt_sampler(build_sampler(plan, plan.frames), sigmas)
    x = sigmas[0] * plan.start_noise(initial, sigmas[0])
    return SamplingRun(len(sigmas), initial, sampler(denoise, x, sigmas))


def check(combination: Combination) -> None:
    if combination.model.temporal is not None:
        raise InputError(f"a still life needs an image model, and {combination.model.name} is a video model")


METHOD = Method(run, (ImageModelOptions, StillLifeOptions), check)
'''
FROM_PYTHON = """
import json
import kineograph as kg

model = kg.load(device="cpu")
small = {"num_frames": 3, "num_inference_steps": 2, "height": 64, "width": 64, "seed": 1}
own = {"method": "still-life", "sameness": 1.0}
requests = (own, {"method": "still-life"}, {**own, "clips": 2}, {})
videos = [kg.generate(model, "a red fish", **small, **each) for each in requests]
try:
    kg.generate(model, "a red fish", method="still-life", samenes=1.0)
except kg.InputError as error:
    print(json.dumps([[video.settings for video in videos], str(error)]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH, into which the package is installed as pip does it."""
    site = tmp_path_factory.mktemp("site")
    (site / "kineograph_still_life.py").write_text(SOURCE)
    metadata = site / "kineograph_still_life-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kineograph-still-life\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_its_option_is_in_the_help_and_in_the_schema(installed: Path, tmp_path: Path) -> None:
    (line,) = [
        each for each in _program(installed, tmp_path, "generate", "--help").splitlines() if "--sameness" in each
    ]
    assert "Ratio of the noise that all frames share, as --seed says." in line and "default: 3" in line
    properties = json.loads(_program(installed, tmp_path, "schema", "generate"))["properties"]
    expected = {"type": "number", "default": 3.0, "minimum": 0, "maximum": 100, "readers": ["still-life"]}
    assert {name: properties["sameness"][name] for name in expected} == expected
    assert properties["chunk_size"]["readers"] == ["text2video-zero", "video-elevator", "still-life"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "still-life", "--sameness", "-1"], "--sameness is a number from 0 to 100, not -1.0"),
        (["--sameness", "1"], "--sameness does nothing here, with text2video-zero: it is read by still-life"),
        (["--method", "still-life", "--camera", "zoom:1.1"], "--camera does nothing here: with still-life the motion"),
        (["--method", "still-life", "-m", "pocket-video"], "a still life needs an image model, and pocket-video is a"),
        (["--method", "still-lif"], "videocrafter or animatediff or video-elevator or freenoise or still-life"),
    ],
)
def test_its_options_are_checked(
    installed: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.syspath_prepend(installed)
    ended = run("generate", "a red fish", *arguments)
    assert ended.status == 2 and message in ended.err and "Traceback" not in ended.err
    assert not [*Path().iterdir()]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_runs_and_its_videos_are_replayed(installed: Path, tmp_path: Path) -> None:
    own = ("--method", "still-life", "--sameness", "1")
    _program(installed, tmp_path, "generate", "a red fish", *own, *SMALL, "-o", "fish")
    settings = read_settings(tmp_path / "fish")
    assert (settings["method"], settings["sameness"]) == ("still-life", 1.0)
    _program(installed, tmp_path, "replay", "fish", "-o", "again")
    assert read_settings(tmp_path / "again") == settings

    (same, default, long, other), error = json.loads(_python(installed, tmp_path, "-c", FROM_PYTHON))
    assert same == settings
    assert default["sameness"] == long["sameness"] * 3 == 3.0 and "sameness" not in other
    assert len({each["frames_sha256"] for each in (same, default, long, other)}) == 4
    assert error == "there is no option `samenes`; did you mean `sameness`?"

    removed = _program(tmp_path, tmp_path, "replay", "fish", "-o", "never", status=2)
    assert "text2video-zero or videocrafter or animatediff or video-elevator or freenoise, not 'still-life'" in removed


def _program(site: Path, folder: Path, *arguments: str, status: int = 0) -> str:
    """Run `kineograph`; return its stdout, or its stderr if it is to fail."""
    return _python(site, folder, "-m", "kineograph", *arguments, status=status)


def _python(site: Path, folder: Path, *arguments: str, status: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PACKAGES}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stderr if status else ended.stdout
