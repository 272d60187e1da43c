"""Whole runs of curation: clips, reasons for dropping, and resumption after a kill."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from curation.conftest import Serve, chat_completion
from curation.raw_footage import footage, lettered, scene, settings_for
from numbered import movie, tar
from PIL import Image
from typer.testing import CliRunner

from kineograph.cli.curate import curate
from kineograph.curation.packing import read_dropped, read_manifest
from kineograph.curation.parallel import Work, Workers, ray_map
from kineograph.curation.run import curate_dataset, run_stages
from kineograph.curation.settings import Captions, CurationSettings
from kineograph.curation.sources import list_sources
from kineograph.errors import InputError
from kineograph.media.dataset import open_dataset
from kineograph.media.metadata import existing_path
from kineograph.media.training_clips import load_clip

KEPT = {"three": 3, "copy": 1, "turned": 1, "wide": 1, "photo1": 1, "photo2": 1}


def curate_all(settings: CurationSettings) -> Path:
    for _ in curate_dataset(settings):
        pass
    return settings.output


def contents(output: Path) -> dict[str, object]:
    """Return the content of an output's visible files, and of the members of its shards."""
    files = {file.name: file for file in output.iterdir() if not file.name.startswith(".")}
    shards = {name: members(file) for name, file in files.items() if name.endswith(".tar")}
    return {name: file.read_text() for name, file in files.items() if name not in shards} | shards


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as opened_shard:
        return {each.name: opened_shard.extractfile(each).read() for each in opened_shard}  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return footage(tmp_path_factory.mktemp("raw") / "footage")


@pytest.fixture(scope="session")
def output(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return curate_all(settings_for(raw, tmp_path_factory.mktemp("made") / "out", clips_per_shard=3))


@pytest.fixture
def copied_output(output: Path, tmp_path: Path) -> Path:
    """Return a copy of the output, whose files are cut, to resume in."""
    return shutil.copytree(output, tmp_path / "out")


@pytest.mark.slow
def test_clips_are_counted_and_dropped_files_are_named(output) -> None:
    manifest = read_manifest(output)
    assert manifest["files"] == {"videos": 12, "pictures": 2, "broken": 3, "left_out": 1}
    assert manifest["clips"] == 8 and [shard["clips"] for shard in manifest["shards"]] == [3, 3, 2]
    assert manifest["seconds"] == pytest.approx(3 * 2 + 2 + 30 / 25 + 20 / 15 + 2 * 2, abs=0.01)
    dropped = {drop.file: (drop.reason, drop.detail) for drop in read_dropped(output)}
    reasons = {Path(file).stem: why for file, (why, _) in dropped.items()}
    assert reasons == {
        "large": "duplicate", "dark": "dark", "still": "still", "short": "short", "text": "text",
        "cut": "broken", "no": "broken", "empty": "broken", "lone": "left out",
    }  # fmt: skip
    assert manifest["dropped"] == {why: [*reasons.values()].count(why) for why in reasons.values()}
    assert dropped["cut.mp4"][1].startswith("is cut short") and dropped["empty.mov"][1] == "is empty"
    assert dropped["lone.txt"][1] == "is a label without a video or image of its name"


@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")  # five have no caption
def test_the_shards_are_a_training_dataset(output) -> None:
    dataset = open_dataset(output)
    assert dataset.layout == "webdataset shards"
    rows = [json.loads(line) for line in (output / "clips.jsonl").read_text().splitlines()]
    assert Counter(Path(row["file"]).stem for row in rows) == KEPT
    sizes = {Path(row["file"]).name: (row["width"], row["height"], row["fps"]) for row in rows}
    assert sizes["turned.mov"] == (96, 128, 25) and sizes["wide.mkv"] == (256, 96, 15) and sizes["copy.avi"][2] == 12
    for item, row in zip(dataset, rows, strict=True):
        seen = load_clip(item, np.random.default_rng(0), num_frames=8, height=row["height"], width=row["width"])
        assert seen.fps == row["fps"] and seen.caption == row["label"]
    three = [item for item in dataset if "three" in item.name]
    for item, seed in zip(three, (1, 2, 3), strict=True):
        seen = load_clip(item, np.random.default_rng(0), num_frames=20, height=96, width=128)
        assert np.abs(seen.frames.astype(int) - scene(seed, 20)).mean() < 6
        assert seen.caption == "a person riding a bike"


def test_a_second_run_has_nothing_to_do(output, raw) -> None:
    before = contents(output)
    assert [*curate_dataset(settings_for(raw, output, clips_per_shard=3))] == []
    assert contents(output) == before


@pytest.mark.slow
def test_the_order_of_tasks_and_the_size_of_shards_have_no_effect_on_clips(raw, output, tmp_path: Path) -> None:
    def backwards(work: Work, tasks: list[str], workers: Workers) -> Iterator[str]:
        return map(work, tasks[::-1])

    settings = settings_for(raw, tmp_path / "out", clips_per_shard=3)
    assert len([*run_stages(settings, backwards)]) == 14 + 3
    assert contents(settings.output) == contents(output)
    [*curate_dataset(settings.model_copy(update={"clips_per_shard": 100}))]  # packed anew, not cut anew
    assert [file.name for file in settings.output.glob("*.tar")] == ["clips-000000.tar"]
    assert read_manifest(settings.output)["clips"] == 8


def test_new_files_are_added_and_deleted_ones_removed(tmp_path: Path) -> None:
    for number in range(3):
        movie(tmp_path / "in" / f"{number}.mp4", scene(number, 12), rate=10)
    settings = settings_for(tmp_path / "in", tmp_path / "out")
    curate_all(settings)
    (tmp_path / "in" / "0.mp4").unlink()
    movie(tmp_path / "in" / "1.mp4", scene(31, 12), rate=10)
    movie(tmp_path / "in" / "3.mp4", scene(3, 12), rate=10)
    assert [reached.total for reached in curate_dataset(settings) if reached.stage == "cutting"] == [2, 2]
    again = curate_all(settings_for(tmp_path / "in", tmp_path / "again"))
    assert contents(again) == contents(settings.output) and read_manifest(again)["clips"] == 3


@contextmanager
def process(settings: CurationSettings) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run in a process without the lock that `curate_dataset` holds, so that it starts quickly."""
    file = settings.output.parent / "settings.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    code = (
        "import sys, yaml; from kineograph.curation.run import run_stages; "
        "from kineograph.curation.settings import CurationSettings\n"
        "settings = CurationSettings(**yaml.safe_load(open(sys.argv[1])))\n"
        "for reached in run_stages(settings, lambda work, tasks, _: map(work, tasks)): print(reached.done, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE) as running:
        yield running
        running.kill()


def kill_within(settings: CurationSettings, lines: int, seconds: float) -> None:
    """Start a run, and kill it after a number of finished tasks and some seconds."""
    with process(settings) as running:
        assert running.stdout is not None
        for _ in range(lines):
            running.stdout.readline()
        time.sleep(seconds)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_shards(raw, output, tmp_path: Path) -> None:
    settings = settings_for(raw, tmp_path / "out", clips_per_shard=3)
    kill_within(settings, 5, 0.05)
    assert not (settings.output / "manifest.json").exists()
    left = [reached for reached in curate_dataset(settings) if reached.stage == "cutting"]
    assert 0 < len(left) <= 9
    assert contents(settings.output) == contents(output)
    assert [*settings.output.rglob(".*.part")] == []


@pytest.mark.claims
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments_the_output_is_the_same(raw, output, tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(10):
        settings = settings_for(raw, tmp_path / str(number) / "out", clips_per_shard=3)
        settings.output.parent.mkdir()
        for _ in range(rng.randint(1, 3)):
            kill_within(settings, rng.randint(0, 16), rng.uniform(0, 0.3))
        assert contents(curate_all(settings)) == contents(output)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")
def test_ray_gives_the_same_output(raw, output, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    settings = settings_for(raw, tmp_path / "out", clips_per_shard=3, run="ray")
    with ray_map() as spread:
        assert [*spread(str.upper, [], Workers())] == [] and not ray.is_initialized()  # nothing to do takes no time
        assert sorted(spread(str.upper, ["a", "b", "c"], Workers(processes=1))) == ["A", "B", "C"]
        assert contents(curate_all(settings)) == contents(output) and ray.is_initialized()  # it was there before
        with pytest.raises(InputError, match=r"there is no .*gone"):
            [*spread(existing_path, ["gone"], Workers())]
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_watermark_on_all_clips_of_a_file_is_inpainted(tmp_path: Path) -> None:
    shots = [scene(seed, 12, height=128, width=192) for seed in range(8)]
    frames = lettered(np.concatenate(shots), "STOCK", 20, (110, 96))
    movie(tmp_path / "in" / "video.mp4", frames, rate=10, options={"crf": "12"})
    kept = curate_all(settings_for(tmp_path / "in", tmp_path / "kept", watermarks={"then": "keep"}))
    clean = curate_all(settings_for(tmp_path / "in", tmp_path / "clean"))
    letters = lettered(np.zeros((1, 128, 192, 3), np.uint8), "STOCK", 20, (110, 96))[0].max(-1) > 128
    assert difference(clean, shots, letters) < 0.4 * difference(kept, shots, letters)
    assert difference(clean, shots, ~letters) < 8
    dropped = curate_all(settings_for(tmp_path / "in", tmp_path / "dropped", watermarks={"then": "drop"}))
    assert read_manifest(dropped)["dropped"] == {"watermark": 8} and read_manifest(dropped)["clips"] == 0


def difference(output: Path, shots: list[np.ndarray], where: np.ndarray) -> float:
    """Return the mean difference, in grey levels, of the clips from the originals, in a part of the frame."""
    with warnings.catch_warnings(action="ignore"):  # they have no captions
        dataset = open_dataset(output)
    seen = [load_clip(item, np.random.default_rng(0), num_frames=12, height=128, width=192).frames for item in dataset]
    return float(
        np.mean([np.abs(each[:, where].astype(int) - shot[:, where]) for each, shot in zip(seen, shots, strict=True)])
    )


@pytest.mark.slow
def test_a_watermark_on_all_files_of_a_source_is_found(tmp_path: Path) -> None:
    for seed in range(8):
        shot = lettered(scene(seed, 12, height=128, width=192), "STOCK", 20, (110, 96))
        movie(tmp_path / "in" / f"{seed}.mp4", shot, rate=10)
    alone = curate_all(settings_for(tmp_path / "in", tmp_path / "alone", watermarks={"then": "drop"}))
    together = curate_all(
        settings_for(tmp_path / "in", tmp_path / "out", watermarks={"then": "drop", "across": "source"})
    )
    assert read_manifest(alone)["clips"] == 8  # one scene each: no watermark can be inferred
    assert read_manifest(together)["dropped"] == {"watermark": 8}


def test_labels_come_from_folders_and_files_from_tars(raw, tmp_path: Path) -> None:
    folders = [{"source": str(raw), "labels": "folder"}]
    labels = {file.name: file.label for file in list_sources(settings_for(raw, tmp_path, sources=folders)).files}
    assert labels["riding_a_bike/three.mp4"] == "riding a bike" and labels["photo1.png"] == ""
    inside = {
        name: (raw / name).read_bytes() for name in ("photo1.png", "riding_a_bike/three.mp4", "riding_a_bike/three.txt")
    }
    tar(tmp_path / "s-0.tar", {**inside, "lone.txt": b"alone"})
    output = curate_all(settings_for(str(tmp_path / "s-{0..0}.tar"), tmp_path / "out"))
    assert read_manifest(output)["clips"] == 4
    assert [(Path(drop.file).name, drop.reason) for drop in read_dropped(output)] == [("lone.txt", "left out")]


def test_images_become_panned_and_frozen_clips(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(scene(0, 1, height=200, width=300)[0]).save(tmp_path / "in" / "a.png")
    stills = {"motions": ["panned", "frozen"], "versions": 2, "num_frames": 6, "fps": 4}
    output = curate_all(settings_for(tmp_path / "in", tmp_path / "out", stills=stills))
    rows = [json.loads(line) for line in (output / "clips.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["frames"], row["fps"]) for row in rows] == [("panned", 6, 4)] * 2 + [("frozen", 6, 4)]
    assert rows[0]["perceptual_hash"] != rows[1]["perceptual_hash"]


def captions(settings: object) -> Captions:
    return Captions(asked=settings, merged_by=settings, questions=("about {label}?", "who?"))


def test_failed_captions_are_counted_and_requested_again(raw, copied_output, serve: Serve) -> None:
    asked: list[dict] = []

    def reply(body: dict) -> tuple[int, bytes]:
        asked.append(body)
        if isinstance(body["messages"][0]["content"], str):
            return chat_completion("a person rides a bike")
        question = body["messages"][0]["content"][-1]["text"]
        return chat_completion("...") if question == "who?" and down else chat_completion(f"said of {question}")

    settings, down = settings_for(raw, copied_output, captions=captions(serve(reply))), True
    manifest = read_manifest(curate_all(settings))
    assert manifest["dropped"]["caption"] == 8 and manifest["clips"] == 0
    assert "gave no answer in 3 tries" in next(
        drop.detail for drop in read_dropped(settings.output) if drop.reason == "caption"
    )
    assert "a person riding a bike" in str(asked) and len(asked) == 3 * (1 + 3) + 5 * 3  # "who?" three times each
    down, asked[:] = False, []
    manifest = read_manifest(curate_all(settings))
    assert manifest["clips"] == 8 and "caption" not in manifest["dropped"] and manifest["without_caption"] == 0
    assert len(asked) == 3 * 3 + 5  # with a label two questions and the merge, else one question
    texts = {item.caption for item in open_dataset(settings.output)}
    assert texts == {"a person rides a bike", "said of who?"}
    assert [*curate_dataset(settings)] == [] and len(asked) == 14


def test_an_endpoint_that_refuses_ends_the_run(raw, copied_output, serve: Serve) -> None:
    settings = settings_for(raw, copied_output, captions=captions(serve(lambda body: (401, b""))))
    with pytest.raises(InputError, match="the key is not accepted"):
        curate_all(settings)
    assert [reached.stage for reached in curate_dataset(settings.model_copy(update={"captions": None}))] == ["packing"]


def test_invalid_input_is_refused_before_anything_is_written(raw, output, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("a label")
    for source in (tmp_path / "none", tmp_path / "gone"):
        with pytest.raises(
            InputError, match=r"there is nothing to make clips of.*(Found: 1 of \.txt|no file or folder)"
        ):
            curate_all(settings_for(source, tmp_path / "out"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "clips-000000.tar").write_bytes(b"someone's")
    with pytest.raises(InputError, match=r"did not make, such as clips-000000\.tar"):
        curate_all(settings_for(raw, tmp_path / "taken"))
    assert (tmp_path / "taken" / "clips-000000.tar").read_bytes() == b"someone's"
    with pytest.raises(InputError, match=r"other settings \(cuts, fps\)"):
        curate_all(settings_for(raw, output, fps=4, cuts={"longest": 3}))


def test_the_command_reports_its_results(raw, output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, file = typer.Typer(), tmp_path / "data.yaml"
    app.command()(curate)
    file.write_text(yaml.safe_dump({"sources": str(raw), "output": str(tmp_path / "out"), "run": "alone"}))
    monkeypatch.setenv("COLUMNS", "200")
    dry = CliRunner().invoke(app, [str(file), "--dry-run"])
    assert dry.exit_code == 0 and "12 videos and 2 images" in dry.stderr and not (tmp_path / "out").exists()
    assert json.loads(CliRunner().invoke(app, [str(file), "--dry-run", "--json"]).stdout)["labelled"] == 1
    shutil.copytree(output, tmp_path / "out")
    done = CliRunner().invoke(app, [str(file), "clips_per_shard=4"])
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'out'}\n"
    assert "8 clips of" in done.stderr and "in 2 shards" in done.stderr and "of which 3 are broken" in done.stderr
    assert "1 dark, 1 duplicate, 1 left out" in done.stderr and "cut.mp4 (is cut short" in done.stderr
    assert json.loads(CliRunner().invoke(app, [str(file), "clips_per_shard=4", "--json"]).stdout)["clips"] == 8
    refused = CliRunner().invoke(app, [str(file), "filters.most_lettering=null"])
    assert "made with other settings (filters)" in str(refused.exception)
