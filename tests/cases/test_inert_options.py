"""An option that a request does not use is refused or warned of, if it does not change the frames.

From formats/34-inert-options.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cases.program import SMALL, Said, run

import kineograph as kg

OPTIONS = {
    "--window": "3", "--video-steps": "3", "--clip-overlap": "1", "--foreground-masks": "rembg",
    "--controlnet-conditioning-scale": "0.2", "--clip-anchor": "0.5", "--video-prompt": "a cat",
}  # fmt: skip


@pytest.fixture(scope="module")
def generate(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Said, str]]:
    """A function that generates a video of one image model, and returns what was printed and the frames' hash."""

    def generate(*options: str) -> tuple[Said, str]:
        file = tmp_path_factory.mktemp("videos") / "s.mp4"
        said = run("generate", "a red fish", "--model", sd_folder, *SMALL, "--seed", 1, "-o", file, *options)
        return said, str(kg.open_video(file).settings["frames_sha256"]) if said.status == 0 else ""

    return generate


@pytest.fixture(scope="module")
def plain(generate: Callable[..., tuple[Said, str]]) -> str:
    """The hash of the frames without any of the options."""
    said, frames = generate()
    assert said.status == 0 and "warning" not in said.text
    return frames


@pytest.mark.slow
@pytest.mark.parametrize(("option", "value"), OPTIONS.items(), ids=OPTIONS)
def test_option_that_is_not_used_is_refused_or_warned_of(
    generate: Callable[..., tuple[Said, str]], plain: str, option: str, value: str
) -> None:
    said, frames = generate(option, value)
    assert said.status != 0 or "warning" in said.text or frames != plain
    assert not said.crashed
