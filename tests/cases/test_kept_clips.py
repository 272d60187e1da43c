"""Clips that are kept in a folder (keep_clips) are taken up again, whatever happened before.

From formats/18-keep-clips.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.torch import load_file

import kineograph as kg

STEPS, CLIPS, FRAMES = 2, 3, 3


class InterruptError(Exception):
    """An interruption in the middle of a generation, in place of a signal."""


@pytest.fixture(scope="module")
def model() -> kg.Model:
    return kg.load("pocket-vidrd", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def whole(model: kg.Model) -> np.ndarray:
    """The frames of all clips, generated without keeping any."""
    return generate(model).frames


def generate(model: kg.Model, seed: int | None = 5, clips: int = CLIPS, **options: object) -> kg.Video:
    return kg.generate(
        model, "a red fish swimming over the sea", num_frames=FRAMES, num_inference_steps=STEPS, guidance_scale=1,
        height=32, width=32, clips=clips, seed=seed, **options,
    )  # fmt: skip


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def folders(folder: Path) -> set[Path]:
    """Return the folders that hold kept clips."""
    return {file.parent for file in files(folder)}


def once_a_clip_is_kept(folder: Path, act: Callable[[], None]) -> Callable[[object], None]:
    """Return a callback for every step that acts once, at the first step after the first clip was written."""
    acted = []

    def on_step(_: object) -> None:
        if files(folder) and not acted:
            acted.append(True)
            act()

    return on_step


def interrupt() -> None:
    raise InterruptError


def generate_interrupted(model: kg.Model, folder: Path, seed: int | None = 5) -> None:
    with pytest.raises(InterruptError):
        generate(model, seed, keep_clips=folder, on_step=once_a_clip_is_kept(folder, interrupt))
    assert len(files(folder)) == 1


def test_interrupted_video_is_resumed_to_the_same_frames(model: kg.Model, whole: np.ndarray, work: Path) -> None:
    generate_interrupted(model, work)
    steps = []
    video = generate(model, keep_clips=work, on_step=steps.append)
    assert len(steps) < CLIPS * (STEPS + 1)
    assert np.array_equal(video.frames, whole)


@pytest.mark.slow
def test_interrupted_video_without_a_seed_is_resumed_by_the_same_call(model: kg.Model, work: Path) -> None:
    generate_interrupted(model, work, seed=None)
    generate(model, seed=None, keep_clips=work)
    assert len(folders(work)) == 1


@pytest.mark.slow
def test_more_clips_extend_those_that_are_kept(model: kg.Model, work: Path) -> None:
    generate(model, clips=2, keep_clips=work)
    generate(model, clips=3, keep_clips=work)
    assert len(folders(work)) == 1


@pytest.mark.slow
def test_longer_video_begins_with_the_frames_of_the_shorter(model: kg.Model, whole: np.ndarray) -> None:
    shorter = generate(model, clips=2).frames
    assert np.array_equal(shorter, whole[: len(shorter)])


@pytest.mark.slow
def test_two_processes_in_one_folder_both_give_the_whole_video(model: kg.Model, whole: np.ndarray, work: Path) -> None:
    """The second begins and ends while the first is in its second clip."""
    second = []
    act = once_a_clip_is_kept(work, lambda: second.append(generate(model, keep_clips=work)))
    first = generate(model, keep_clips=work, on_step=act)
    assert np.array_equal(first.frames, whole)
    assert np.array_equal(second[0].frames, whole)


def test_only_the_last_file_holds_a_state(model: kg.Model, work: Path) -> None:
    generate(model, keep_clips=work)
    assert [set(load_file(file)) == {"frames"} for file in files(work)] == [True, True, False]


@pytest.mark.slow
def test_clips_behind_a_missing_file_are_not_used(model: kg.Model, whole: np.ndarray, work: Path) -> None:
    generate(model, keep_clips=work)
    files(work)[0].unlink()
    assert np.array_equal(generate(model, keep_clips=work).frames, whole)
    assert len(files(work)) == CLIPS


@pytest.mark.slow
def test_a_file_in_the_place_of_another_is_refused(model: kg.Model, work: Path) -> None:
    generate(model, keep_clips=work)
    first, second, _ = files(work)
    second.write_bytes(first.read_bytes())
    with pytest.raises(kg.InputError, match="0001.safetensors is damaged, or of another version: delete"):
        generate(model, keep_clips=work)


def damage(file: Path) -> None:
    """Change one bit in the middle of a file, which stays as long as it was."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_damaged_clips_are_generated_again(model: kg.Model, whole: np.ndarray, work: Path) -> None:
    generate(model, keep_clips=work)
    damage(files(work)[1])
    with pytest.warns(kg.InputWarning, match="0001.safetensors is damaged: it is not used"):
        assert np.array_equal(generate(model, keep_clips=work).frames, whole)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [Path.unlink, damage, lambda file: file.write_bytes(file.read_bytes()[:500])])
def test_seed_of_a_video_outlives_its_first_clip(
    model: kg.Model, work: Path, harm: Callable[[Path], object], recwarn: pytest.WarningsRecorder
) -> None:
    before = generate(model, seed=None, clips=2, keep_clips=work)
    harm(files(work)[0])
    again = generate(model, seed=None, clips=2, keep_clips=work)
    assert again.settings["seed"] == before.settings["seed"] and again.digest == before.digest


def test_video_without_a_seed_whose_clips_are_all_damaged_is_refused(
    model: kg.Model, work: Path, recwarn: pytest.WarningsRecorder
) -> None:
    generate(model, seed=None, clips=1, keep_clips=work)
    damage(files(work)[0])
    with pytest.raises(kg.InputError, match="all clips in .* are damaged, and the seed"):
        generate(model, seed=None, clips=1, keep_clips=work)


@pytest.mark.slow
def test_a_locked_folder_is_left_as_it_is(
    model: kg.Model, whole: np.ndarray, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate(model, clips=1, keep_clips=work)
    (folder,) = folders(work)
    with FileLock(folder / ".lock"):
        assert np.array_equal(generate(model, keep_clips=work).frames, whole)
    assert len(files(work)) == 1 and "in use by another process" in caplog.text


@pytest.mark.slow
def test_equal_prompts_of_a_list_are_different_videos(model: kg.Model, work: Path) -> None:
    few = {"num_frames": 3, "num_inference_steps": 2, "guidance_scale": 1, "height": 32, "width": 32, "clips": 2}
    first, second = kg.generate(model, ["a red fish", "a red fish"], keep_clips=work, **few)
    assert not np.array_equal(first.frames, second.frames)
    again = kg.generate(model, ["a red fish", "a red fish"], keep_clips=work, **few)
    assert [each.digest for each in again] == [first.digest, second.digest]


def test_the_state_that_a_kill_left_behind_is_removed(
    model: kg.Model, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by tools/kill_runs.py: killed after a clip is written, before its predecessor's state is removed."""
    with monkeypatch.context() as patch:
        patch.setattr("kineograph.generation.clip_files.ClipFiles._remove_state", lambda *_: None)
        generate(model, clips=2, keep_clips=work)
    assert len(load_file(files(work)[0])) > 1
    generate(model, keep_clips=work)
    assert [len(load_file(each)) > 1 for each in files(work)] == [False, False, True]
