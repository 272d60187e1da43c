"""Checkpoints of runs that are killed, fill the disk, start twice, change settings or use several processes."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import begin, free_port, load_batch, loss, tiny_net, train, train_as_one_of, train_with_small_files
from torch import nn

from kineograph.errors import InputError, InputWarning
from kineograph.training import Log, TrainingSettings, fit, latest_checkpoint, load_weights
from kineograph.training.logs import open_log

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and limits processes")
CHOSEN = TrainingSettings(
    max_train_steps=12, train_batch_size=4, learning_rate=0.01, checkpointing_steps=1, log_every=4, optimizer="muon"
)
KILLS = 6


def changed(**given: object) -> TrainingSettings:
    return TrainingSettings.model_validate(CHOSEN.model_dump() | given)


LONG = changed(max_train_steps=20)


def run(folder: Path, chosen: TrainingSettings, net: nn.Module | None = None, **given: object) -> list[int]:
    """Return the steps that a run in this folder does."""
    return [
        step.step for step in fit(net or tiny_net(), chosen, folder, **{"load_batch": load_batch, "loss": loss} | given)
    ]


def content(folder: Path) -> dict[str, object]:
    """Return a run's results without times: the bytes of the newest checkpoint's tensors, and the log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    return {"log": log} | {file.name: file.read_bytes() for file in latest_checkpoint(folder).glob("*.safetensors")}


def kill_when(condition: Callable[[], bool], folder: Path, delay: float) -> None:
    """Start a run in the folder, and kill it `delay` seconds after the condition holds."""
    process = begin(train, folder, LONG, 2)
    while process.is_alive() and not condition():
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights_and_log(tmp_path: Path) -> None:
    begin(train, tmp_path / "whole", LONG, 2).join()
    folder, dice = tmp_path / "killed", random.Random(0)
    for number in range(KILLS):
        before = latest_checkpoint(folder)

        def writing_again(before: Path | None = before) -> bool:
            return latest_checkpoint(folder) != before and any(folder.glob("checkpoints/.*.part"))

        # at its start; while it writes a checkpoint; a random time after
        kill_when(writing_again if number else (folder / "run.lock").exists, folder, number % 2 * dice.random() / 10)
    partial = list(folder.glob("checkpoints/.*.part"))
    begin(train, folder, LONG, 2).join()
    whole, killed = content(tmp_path / "whole"), content(folder)
    assert latest_checkpoint(folder).name == "step-000020"
    assert whole["log"] == killed["log"]
    assert whole == killed
    assert not any(part.exists() for part in partial)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    two, port = changed(train_batch_size=2, optimizer="adamw"), free_port()
    both = [begin(train_as_one_of, rank, 2, port, tmp_path / "two", two) for rank in range(2)]
    run(tmp_path / "one", changed(optimizer="adamw"))
    for process in both:
        process.join()
    one, other = load_weights(tmp_path / "one"), load_weights(tmp_path / "two")
    assert all(torch.allclose(one[name], other[name], atol=1e-5, rtol=1e-4) for name in one)
    logs = [[line["loss"] for line in content(tmp_path / folder)["log"]] for folder in ("one", "two")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def test_a_full_disk_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, changed(max_train_steps=3))
    before = content(tmp_path)
    begin(train_with_small_files, tmp_path, changed(max_train_steps=5), 20_000).join()
    message = (tmp_path / "message").read_text()
    assert "step-000004 cannot be written: it takes 0.1 MB, and " in message and "File too large" in message
    assert content(tmp_path) | {"log": before["log"]} == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"step-00000{n}" for n in (1, 2, 3)]
    assert run(tmp_path, changed(max_train_steps=5)) == [4, 5]


def test_a_disk_without_room_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9_000))
    with pytest.raises(InputError, match=r"it takes 0.1 MB, and 0.0 MB are free. Nothing is left of it"):
        run(tmp_path, CHOSEN)
    assert [*(tmp_path / "checkpoints").iterdir()] == []


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    first = fit(tiny_net(), CHOSEN, tmp_path, load_batch=load_batch, loss=loss)
    next(first)
    with pytest.raises(InputError, match=rf"in use by another run \(process {os.getpid()} on "):
        run(tmp_path, CHOSEN)
    first.close()
    assert run(tmp_path, CHOSEN)[0] == 2


def test_leaving_the_loop_saves_a_checkpoint(tmp_path: Path) -> None:
    for progress in fit(tiny_net(), changed(checkpointing_steps=100), tmp_path, load_batch=load_batch, loss=loss):
        if progress.step == 5:
            break
    assert latest_checkpoint(tmp_path).name == "step-000005"
    assert run(tmp_path, changed(checkpointing_steps=100)) == list(range(6, 13))


def test_changed_settings_are_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path, changed(max_train_steps=2))
    with pytest.raises(
        InputError, match=r"seed was 0 and is 1; learning_rate was 0.01 and is 0.02\. Use the same settings"
    ):
        run(tmp_path, changed(seed=1, learning_rate=0.02))
    with pytest.raises(InputError, match=r"samples_per_step was 4 and is 8"):
        run(tmp_path, changed(gradient_accumulation_steps=2))
    with pytest.raises(InputError, match=r"data was None and is 'films'"):
        run(tmp_path, CHOSEN, facts={"data": "films"})
    net = tiny_net()
    net[2].weight.requires_grad_(requires_grad=False)
    with pytest.raises(InputError, match=r"2.weight was \[16, 16, 3, 3\] and is not trained"):
        run(tmp_path, CHOSEN, net)
    free = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "log_every": 1, "max_train_steps": 3}
    assert run(tmp_path, changed(**free)) == [3]


def test_facts_may_be_any_json(tmp_path: Path) -> None:
    facts = {"sizes": (1, 2), "data": {"folder": "films"}}
    run(tmp_path, changed(max_train_steps=1), facts=facts)
    assert run(tmp_path, changed(max_train_steps=2), facts=facts) == [2]


def flip_bit(file: Path, place: float) -> None:
    """Change a bit of a file, at this fraction of its length."""
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "weights.safetensors", 100),
        lambda folder: flip_bit(folder / "weights.safetensors", 0.001),  # its header
        lambda folder: flip_bit(folder / "optimiser.safetensors", 0.9),
        lambda folder: flip_bit(folder / "state.json", 0.2),
        lambda folder: (folder / "state.json").write_text("[1]"),
        lambda folder: (folder / "optimiser.safetensors").unlink(),
    ],
    ids=["cut", "header", "tensor", "state", "list", "gone"],
)
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    run(tmp_path, changed(max_train_steps=3))
    whole = content(tmp_path)
    damage(latest_checkpoint(tmp_path))
    with pytest.warns(InputWarning, match="step-000003 is damaged and skipped"):
        assert run(tmp_path, changed(max_train_steps=3)) == [3]
    assert content(tmp_path) == whole


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew(tmp_path: Path) -> None:
    run(tmp_path, changed(max_train_steps=2))
    whole = content(tmp_path)
    for number in (1, 2):
        flip_bit(tmp_path / "checkpoints" / f"step-00000{number}" / "weights.safetensors", 0.5)
    with pytest.warns(InputWarning) as warned:
        assert run(tmp_path, changed(max_train_steps=2)) == [1, 2]
    second, first = (str(each.message) for each in warned)
    assert "the one before it is used" in second and "step-000001 is damaged and skipped: there is none" in first
    assert content(tmp_path) == whole


def test_the_oldest_checkpoints_are_removed(tmp_path: Path) -> None:
    run(tmp_path, changed(checkpoints_total_limit=2, checkpointing_steps=5))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000010", "step-000012"]


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_weights(tmp_path)


def test_a_finished_run_does_no_more_steps(tmp_path: Path) -> None:
    run(tmp_path, CHOSEN)
    net = tiny_net()
    assert run(tmp_path, CHOSEN, net) == []
    assert not torch.equal(net[2].weight, tiny_net()[2].weight), "its weights are the trained ones"


def test_a_log_without_files_writes_nothing() -> None:
    Log().write(1, {"loss": 1.0})
    Log().write_image(1, "a fish", np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"step": ' + "1" * 5000 + "}", '{"step": [1]}', '{"step": null}', "["]
)
def test_a_damaged_line_of_the_log_is_dropped(tmp_path: Path, line: str) -> None:
    """Found by tools/fuzz.py: deep nesting, long numbers and other types ended a training that was resumed."""
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with open_log(tmp_path, 2):
        pass
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'
