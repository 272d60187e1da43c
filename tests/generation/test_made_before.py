"""Videos generated at commit 62626b1, whose settings record no version: they are inspected and replayed.

Those in `float32` are replays of the others by the code of that commit, with models in float32. They are what is
compared, since bfloat16 depends on the machine: the same code of 62626b1 generates the other two with frames that
differ by up to 164 and 116 grey levels on a machine with other instructions (oneDNN's `ONEDNN_MAX_CPU_ISA` set to AVX2,
AVX512_CORE or AVX512_CORE_BF16 gives three different videos), where today's code and that of 62626b1 are equal.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Run

import kineograph as kg
from kineograph.errors import InputError
from kineograph.generation.recorded import recorded_request
from kineograph.media.metadata import read_settings
from kineograph.request import SETTINGS_VERSION, migrate_settings

BEFORE = Path(__file__).parents[1] / "data" / "made_before"
NAMES = {"text2video_zero": "euler-ancestral", "elevated": "ddim"}  # and their samplers
GREY_LEVELS = 1  # between instruction sets and numbers of threads in float32, in 39 of 196608 values; else equal


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Set the number of threads that the videos were generated with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "sampler"), NAMES.items())
def test_a_video_of_the_first_version_is_replayed(name: str, sampler: str) -> None:
    path = BEFORE / "float32" / name
    assert "solver" in read_settings(path) and "settings_version" not in read_settings(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions and machines that differ
        again = kg.replay(path)
    before = kg.open_video(path)
    assert again.fps == before.fps and again.frames.shape == before.frames.shape
    assert np.abs(again.frames.astype(int) - before.frames).max() <= GREY_LEVELS
    assert again.settings["sampler"] == sampler and "solver" not in again.settings
    assert again.settings["settings_version"] == SETTINGS_VERSION


@pytest.mark.parametrize("name", NAMES)
def test_the_videos_in_float32_were_requested_as_the_others(name: str) -> None:
    assert recorded_request(read_settings(BEFORE / "float32" / name)) == recorded_request(read_settings(BEFORE / name))


def test_a_video_of_the_first_version_is_inspected(run: Run) -> None:
    inspected = run("inspect", BEFORE / "elevated", "--json")
    assert inspected.status == 0, inspected.err
    found = json.loads(inspected.out)
    assert found["settings"]["prompt"] == "a blue cat rising over the sea" and found["settings"]["seed"] == 3


def test_settings_are_migrated_once_and_those_of_a_later_version_are_refused() -> None:
    old = read_settings(BEFORE / "text2video_zero")
    assert recorded_request(old)[1]["sampler"] == "euler-ancestral"
    migrated = migrate_settings(old)
    assert migrate_settings({**migrated, "settings_version": SETTINGS_VERSION}) == migrated
    with pytest.raises(InputError, match=f"settings_version is a whole number from 0 to {SETTINGS_VERSION}, not 99"):
        recorded_request({**old, "settings_version": 99})


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [("ddim", {"spacing": "leading", "steps_offset": 1}), ("lcm", {"spacing": "lcm"})],
)
def test_settings_of_version_2_get_the_sigmas_that_it_had(sampler: str, spacing: dict[str, object]) -> None:
    old = {"settings_version": 2, "sampler": sampler, "method": "videocrafter"}
    assert migrate_settings(old).items() >= {"num_inference_steps": 50, "sampler": sampler, **spacing}.items()
    assert "insert_warp_sigmas" not in migrate_settings(old)
    assert migrate_settings({**old, "method": "text2video-zero"})["insert_warp_sigmas"]  # also for a single frame
