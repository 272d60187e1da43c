"""`kineograph curate` on real files: what comes out, what is dropped and why, and that being killed changes nothing."""

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
from numbered import movie, numbered, numbers, tar
from PIL import Image
from curation.raw_footage import footage, lettered, scene, told
from curation.conftest import Serve, said
from typer.testing import CliRunner

from kineograph.cli.curate import curate
from kineograph.curation.decoding import frames_at_rate, open_decodable, sample_frames, split_shots
from kineograph.curation.packing import read_dropped, read_manifest
from kineograph.curation.parallel import Work, Workers, ray_map
from kineograph.curation.run import curate_dataset, run_stages
from kineograph.curation.settings import Captions, CurationSettings, Cuts
from kineograph.curation.sources import list_sources
from kineograph.errors import InputError
from kineograph.media.dataset import open_dataset
from kineograph.media.metadata import existing_path
from kineograph.media.seek import BrokenFile
from kineograph.media.shards import FileRange, open_range
from kineograph.media.training_clips import load_clip

KEPT = {"three": 3, "copy": 1, "turned": 1, "wide": 1, "photo1": 1, "photo2": 1}


def made(settings: CurationSettings) -> Path:
    for _ in curate_dataset(settings):
        pass
    return settings.output


def contents(output: Path) -> dict[str, object]:
    """What users see of an output, to the bit; of a shard, what is in it."""
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
    return made(told(raw, tmp_path_factory.mktemp("made") / "out", clips_per_shard=3))


@pytest.fixture
def begun(output: Path, tmp_path: Path) -> Path:
    """The same in a folder to go on in: its files are cut."""
    return shutil.copytree(output, tmp_path / "out")


def test_what_is_kept_is_counted_and_what_is_dropped_is_named(output):
    manifest = read_manifest(output)
    assert manifest["files"] == {"videos": 12, "pictures": 2, "broken": 3, "left_out": 1}
    assert manifest["clips"] == 8 and [shard["clips"] for shard in manifest["shards"]] == [3, 3, 2]
    assert manifest["seconds"] == pytest.approx(3 * 2 + 2 + 30 / 25 + 20 / 15 + 2 * 2, abs=0.01)
    dropped = {drop.file: (drop.why, drop.told) for drop in read_dropped(output)}
    reasons = {Path(file).stem: why for file, (why, _) in dropped.items()}
    assert reasons == {
        "large": "duplicate", "dark": "dark", "still": "still", "short": "short", "text": "text",
        "cut": "broken", "no": "broken", "empty": "broken", "lone": "left out",
    }  # fmt: skip
    assert manifest["dropped"] == {why: [*reasons.values()].count(why) for why in reasons.values()}
    assert dropped["cut.mp4"][1].startswith("is cut short") and dropped["empty.mov"][1] == "is empty"
    assert dropped["lone.txt"][1] == "is a label without a video or picture of its name"


@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")  # five have no caption
def test_the_shards_are_a_dataset_to_train_on(output):
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


def test_a_second_run_finds_all_done(output, raw):
    before = contents(output)
    assert [*curate_dataset(told(raw, output, clips_per_shard=3))] == []
    assert contents(output) == before


def test_the_order_of_work_and_the_size_of_shards_do_not_matter(raw, output, tmp_path):
    def backwards(work: Work, tasks: list[str], crew: Workers) -> Iterator[str]:
        return map(work, tasks[::-1])

    settings = told(raw, tmp_path / "out", clips_per_shard=3)
    assert len([*run_stages(settings, backwards)]) == 14 + 3
    assert contents(settings.output) == contents(output)
    [*curate_dataset(settings.model_copy(update={"clips_per_shard": 100}))]  # packed anew, not cut anew
    assert [file.name for file in settings.output.glob("*.tar")] == ["clips-000000.tar"]
    assert read_manifest(settings.output)["clips"] == 8


def test_new_files_are_added_and_removed_ones_go(tmp_path):
    for number in range(3):
        movie(tmp_path / "in" / f"{number}.mp4", scene(number, 12), rate=10)
    settings = told(tmp_path / "in", tmp_path / "out")
    made(settings)
    (tmp_path / "in" / "0.mp4").unlink()
    movie(tmp_path / "in" / "1.mp4", scene(31, 12), rate=10)
    movie(tmp_path / "in" / "3.mp4", scene(3, 12), rate=10)
    assert [reached.total for reached in curate_dataset(settings) if reached.stage == "cutting"] == [2, 2]
    again = made(told(tmp_path / "in", tmp_path / "again"))
    assert contents(again) == contents(settings.output) and read_manifest(again)["clips"] == 3


@contextmanager
def process(settings: CurationSettings) -> Iterator[subprocess.Popen[bytes]]:
    """A run without the lock that `prepare` holds, and without the seconds in which torch is imported with it."""
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
    """Runs until so many things are done and so much time is gone, and is killed there."""
    with process(settings) as running:
        assert running.stdout is not None
        for _ in range(lines):
            running.stdout.readline()
        time.sleep(seconds)


def test_a_run_that_was_killed_goes_on_to_the_same_shards(raw, output, tmp_path):
    settings = told(raw, tmp_path / "out", clips_per_shard=3)
    kill_within(settings, 5, 0.05)
    assert not (settings.output / "manifest.json").exists()
    left = [reached for reached in curate_dataset(settings) if reached.stage == "cutting"]
    assert 0 < len(left) <= 9
    assert contents(settings.output) == contents(output)
    assert [*settings.output.rglob(".*.part")] == []


@pytest.mark.claims
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments_the_output_is_the_same(raw, output, tmp_path):
    rng = random.Random(0)
    for number in range(10):
        settings = told(raw, tmp_path / str(number) / "out", clips_per_shard=3)
        settings.output.parent.mkdir()
        for _ in range(rng.randint(1, 3)):
            kill_within(settings, rng.randint(0, 16), rng.uniform(0, 0.3))
        assert contents(made(settings)) == contents(output)


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")
def test_on_ray_the_same_comes_out(raw, output, tmp_path):
    ray = pytest.importorskip("ray")
    settings = told(raw, tmp_path / "out", clips_per_shard=3, run="ray")
    with ray_map() as spread:
        assert [*spread(str.upper, [], Workers())] == [] and not ray.is_initialized()  # nothing to do takes no time
        assert sorted(spread(str.upper, ["a", "b", "c"], Workers(processes=1))) == ["A", "B", "C"]
        assert contents(made(settings)) == contents(output) and ray.is_initialized()  # it was there before
        with pytest.raises(InputError, match=r"there is no .*gone"):
            [*spread(existing_path, ["gone"], Workers())]
    assert not ray.is_initialized()


@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_cuts_are_found_to_the_frame_and_long_shots_are_parted(detector):
    lengths = [30, 12, 45]
    film = np.concatenate([scene(seed, count) for seed, count in enumerate(lengths)])
    found = [*split_shots(iter(film), 10.0, Cuts(detector=detector, longest=100))]
    assert [(start, len(part)) for start, part in found] == [(0, 30), (30, 12), (42, 45)]
    assert (np.concatenate([part for _, part in found]) == film).all()
    parted = [*split_shots(iter(film), 10.0, Cuts(detector=detector, longest=2))]
    assert [(start, len(part)) for start, part in parted] == [(0, 20), (20, 10), (30, 12), (42, 20), (62, 20), (82, 5)]
    assert (np.concatenate([part for _, part in parted]) == film).all()


@contextmanager
def reeled(path: Path, fps: float | None = None, side: int | None = None):
    with open_range(FileRange(path)) as part:
        yield open_decodable(part, fps=fps, shorter_side=side)


def test_frames_come_at_a_constant_rate_whatever_the_file_has(tmp_path):
    plain = movie(tmp_path / "a.mp4", numbered(24), rate=24)
    with reeled(plain) as film:
        assert numbers([*frames_at_rate(film)]) == [*range(24)]
    with reeled(plain, fps=8) as film:
        assert numbers([*frames_at_rate(film)]) == [*range(0, 24, 3)]
    times = [0, 1, 2, 6, 7, 8, 9, 10]  # the third frame is shown four times as long
    with reeled(movie(tmp_path / "b.mkv", numbered(8), rate=10, times=times), fps=10) as film:
        shown = numbers([*frames_at_rate(film)])
        assert set(shown) == {*range(8)} and shown == sorted(shown) and shown.count(2) >= 2


def test_frames_are_scaled_down_but_never_up(tmp_path):
    path = movie(tmp_path / "a.mp4", numbered(3, 48, 96))
    for side, size in ((24, (24, 48)), (100, (48, 96)), (None, (48, 96))):
        with reeled(path, side=side) as film:
            assert next(frames_at_rate(film)).shape == (*size, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_glimpses_are_of_the_whole_video(tmp_path, name):
    path = movie(tmp_path / name, numbered(40), rate=10, codec="libx264")
    with reeled(path) as film:
        for count, options in ((3, 3), (16, 16)):
            seen = numbers(sample_frames(film, count))
            assert len(seen) >= options // 2 and seen == sorted({*seen})
        assert max(seen) >= 30 and min(seen) <= 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_what_breaks_off_is_broken(tmp_path, name):
    path = movie(
        tmp_path / name, scene(0, 60), rate=10, container={"movflags": "+faststart"} if "mp4" in name else None
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenFile), reeled(path) as film:
        [*frames_at_rate(film)]


def test_a_mark_on_all_clips_of_a_file_is_painted_over(tmp_path):
    shots = [scene(seed, 12, height=128, width=192) for seed in range(8)]
    film = lettered(np.concatenate(shots), "STOCK", 20, (110, 96))
    movie(tmp_path / "in" / "film.mp4", film, rate=10, options={"crf": "12"})
    kept = made(told(tmp_path / "in", tmp_path / "kept", watermarks={"then": "keep"}))
    clean = made(told(tmp_path / "in", tmp_path / "clean"))
    letters = lettered(np.zeros((1, 128, 192, 3), np.uint8), "STOCK", 20, (110, 96))[0].max(-1) > 128
    assert off(clean, shots, letters) < 0.4 * off(kept, shots, letters)
    assert off(clean, shots, ~letters) < 8
    dropped = made(told(tmp_path / "in", tmp_path / "dropped", watermarks={"then": "drop"}))
    assert read_manifest(dropped)["dropped"] == {"watermark": 8} and read_manifest(dropped)["clips"] == 0


def off(output: Path, shots: list[np.ndarray], where: np.ndarray) -> float:
    """How far the clips' frames are from those before the mark, in grey levels, in a part of the picture."""
    with warnings.catch_warnings(action="ignore"):  # they have no captions
        dataset = open_dataset(output)
    seen = [load_clip(item, np.random.default_rng(0), num_frames=12, height=128, width=192).frames for item in dataset]
    return float(
        np.mean([np.abs(each[:, where].astype(int) - shot[:, where]) for each, shot in zip(seen, shots, strict=True)])
    )


def test_a_mark_on_all_files_of_a_source_is_found_too(tmp_path):
    for seed in range(8):
        shot = lettered(scene(seed, 12, height=128, width=192), "STOCK", 20, (110, 96))
        movie(tmp_path / "in" / f"{seed}.mp4", shot, rate=10)
    alone = made(told(tmp_path / "in", tmp_path / "alone", watermarks={"then": "drop"}))
    together = made(told(tmp_path / "in", tmp_path / "out", watermarks={"then": "drop", "across": "source"}))
    assert read_manifest(alone)["clips"] == 8  # one scene each: there is no telling
    assert read_manifest(together)["dropped"] == {"watermark": 8}


def test_labels_come_from_folders_and_files_from_tars(raw, tmp_path):
    folders = [{"source": str(raw), "labels": "folder"}]
    labels = {unit.name: unit.label for unit in list_sources(told(raw, tmp_path, sources=folders)).units}
    assert labels["riding_a_bike/three.mp4"] == "riding a bike" and labels["photo1.png"] == ""
    inside = {
        name: (raw / name).read_bytes() for name in ("photo1.png", "riding_a_bike/three.mp4", "riding_a_bike/three.txt")
    }
    tar(tmp_path / "s-0.tar", {**inside, "lone.txt": b"alone"})
    output = made(told(str(tmp_path / "s-{0..0}.tar"), tmp_path / "out"))
    assert read_manifest(output)["clips"] == 4
    assert [(Path(drop.file).name, drop.why) for drop in read_dropped(output)] == [("lone.txt", "left out")]


def test_pictures_pan_and_rest(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(scene(0, 1, height=200, width=300)[0]).save(tmp_path / "in" / "a.png")
    stills = {"motions": ["panned", "frozen"], "versions": 2, "num_frames": 6, "fps": 4}
    output = made(told(tmp_path / "in", tmp_path / "out", stills=stills))
    rows = [json.loads(line) for line in (output / "clips.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["frames"], row["fps"]) for row in rows] == [("panned", 6, 4)] * 2 + [("frozen", 6, 4)]
    assert rows[0]["print"] != rows[1]["print"]


def captions(settings: object) -> Captions:
    return Captions(asked=settings, merged_by=settings, questions=("about {label}?", "who?"))


def test_captions_that_fail_are_counted_and_asked_for_again(raw, begun, serve: Serve):
    asked: list[dict] = []

    def reply(body: dict) -> tuple[int, bytes]:
        asked.append(body)
        if isinstance(body["messages"][0]["content"], str):
            return said("a person rides a bike")
        question = body["messages"][0]["content"][-1]["text"]
        return said("...") if question == "who?" and down else said(f"said of {question}")

    settings, down = told(raw, begun, captions=captions(serve(reply))), True
    manifest = read_manifest(made(settings))
    assert manifest["dropped"]["caption"] == 8 and manifest["clips"] == 0
    assert "gave no answer in 3 tries" in next(
        drop.told for drop in read_dropped(settings.output) if drop.why == "caption"
    )
    assert "a person riding a bike" in str(asked) and len(asked) == 3 * (1 + 3) + 5 * 3  # "who?" three times each
    down, asked[:] = False, []
    manifest = read_manifest(made(settings))
    assert manifest["clips"] == 8 and "caption" not in manifest["dropped"] and manifest["without_caption"] == 0
    assert len(asked) == 3 * 3 + 5  # with a label two questions and the merge, else one question
    told_of = {item.caption for item in open_dataset(settings.output)}
    assert told_of == {"a person rides a bike", "said of who?"}
    assert [*curate_dataset(settings)] == [] and len(asked) == 14


def test_an_endpoint_that_refuses_ends_the_run(raw, begun, serve: Serve):
    settings = told(raw, begun, captions=captions(serve(lambda body: (401, b""))))
    with pytest.raises(InputError, match="the key is not accepted"):
        made(settings)
    assert [reached.stage for reached in curate_dataset(settings.model_copy(update={"captions": None}))] == ["packing"]


def test_bad_input_is_refused_before_anything_is_made(raw, output, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text("a label")
    for source in (tmp_path / "none", tmp_path / "gone"):
        with pytest.raises(
            InputError, match=r"there is nothing to make clips of.*(Found: 1 of \.txt|no file or folder)"
        ):
            made(told(source, tmp_path / "out"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "clips-000000.tar").write_bytes(b"someone's")
    with pytest.raises(InputError, match=r"did not make, such as clips-000000\.tar"):
        made(told(raw, tmp_path / "taken"))
    assert (tmp_path / "taken" / "clips-000000.tar").read_bytes() == b"someone's"
    with pytest.raises(InputError, match=r"other settings \(cuts, fps\)"):
        made(told(raw, output, fps=4, cuts={"longest": 3}))


def test_the_command_says_what_it_does(raw, output, tmp_path, monkeypatch):
    app, file = typer.Typer(), tmp_path / "data.yaml"
    app.command()(curate)
    file.write_text(yaml.safe_dump({"sources": str(raw), "output": str(tmp_path / "out"), "run": "alone"}))
    monkeypatch.setenv("COLUMNS", "200")
    dry = CliRunner().invoke(app, [str(file), "--dry-run"])
    assert dry.exit_code == 0 and "12 videos and 2 pictures" in dry.stderr and not (tmp_path / "out").exists()
    assert json.loads(CliRunner().invoke(app, [str(file), "--dry-run", "--json"]).stdout)["labelled"] == 1
    shutil.copytree(output, tmp_path / "out")
    done = CliRunner().invoke(app, [str(file), "clips_per_shard=4"])
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'out'}\n"
    assert "8 clips of" in done.stderr and "in 2 shards" in done.stderr and "3 of which are broken" in done.stderr
    assert "1 dark, 1 duplicate, 1 left out" in done.stderr and "cut.mp4 (is cut short" in done.stderr
    assert json.loads(CliRunner().invoke(app, [str(file), "clips_per_shard=4", "--json"]).stdout)["clips"] == 8
    refused = CliRunner().invoke(app, [str(file), "filters.most_lettering=null"])
    assert "made with other settings (filters)" in str(refused.exception)
