"""Scores with their protocols, reports, and the command `kineograph evaluate`."""

import csv
import json
import sys

import numpy as np
import pytest
from tiny_metrics import folder_of, noise

from kineograph import plugins
from kineograph.errors import InputError, InputWarning
from kineograph.media.video import Video
from kineograph.metrics.collection import collect_videos, decode_video, read_clusters
from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.evaluate import evaluate, write_reports
from kineograph.metrics.extractors import load_extractor, load_extractors
from kineograph.metrics.report import compare_reports
from kineograph.metrics.scores import compute_scores, measure_videos
from kineograph.metrics.statistics import mean
from kineograph.metrics.video_metrics import flow_metric
from kineograph_lab.world.world import ShotSpec, Subject, render_clip

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),  # deprecated, and still what released extractors are
    pytest.mark.filterwarnings("ignore:FVD .c3d. is of 20 against 20 videos. below 1000"),
    pytest.mark.filterwarnings("ignore:.VD .c3d. is of the real videos against themselves"),
]
REAL = {"FVD, real against real (c3d)", "KVD, real against real (c3d)"}
FISH = "a red fish over the sea moving to the right"


@pytest.fixture(scope="module")
def sets(tmp_path_factory, network):
    """Two folders of 20 different videos, and an extractor."""
    root = tmp_path_factory.mktemp("sets")
    extractors = load_extractors([f"torchscript:{network}"])
    return folder_of(root / "ours", 20, frames=2), folder_of(root / "theirs", 20, first=100, frames=2), extractors


@pytest.fixture(scope="module")
def reported(sets, tmp_path_factory):
    ours, theirs, extractors = sets
    out = tmp_path_factory.mktemp("report")
    found = evaluate([ours, theirs], extractors=extractors, metrics=[flow_metric()], against=theirs)
    return write_reports(found, out), found


@pytest.mark.slow
def test_scores_have_values_errors_counts_and_protocols(sets, reported) -> None:
    (ours, theirs, extractors), (_, (found, _)) = sets, reported
    named = {score.name: score for score in found.scores}
    assert set(named) == {"motion", "followed", "warp error", "IS (c3d)", "FVD (c3d)", "KVD (c3d)", *REAL}
    assert all(score.count == (10 if score.name in REAL else 20) and score.value.error > 0 for score in found.scores)
    assert {score.name for score in found.scores if score.doubt} == {"FVD (c3d)", "FVD, real against real (c3d)"}
    features = [
        np.stack(
            [extractors[0].extract(decode_video(entry).frames).features for entry in collect_videos(folder).entries]
        )
        for folder in (ours, theirs)
    ]
    assert named["FVD (c3d)"].value.value == pytest.approx(frechet_distance(*map(moments, features)))
    sample = named["FVD (c3d)"].settings["sample"]
    assert (sample["videos"], sample["frames"], sample["fps"]) == (20, [2, 2], [8, 8])


@pytest.mark.slow
def test_fvd_of_a_set_against_itself_is_0(sets) -> None:
    ours, _, extractors = sets
    (found,) = evaluate([ours], extractors=extractors, metrics=[], against=ours)
    named = {score.name: score for score in found.scores}
    assert named["FVD (c3d)"].value.value == pytest.approx(0, abs=1e-9) and np.isnan(named["FVD (c3d)"].value.error)
    assert all("against themselves" in named[f"{name} (c3d)"].doubt for name in ("FVD", "KVD"))


@pytest.mark.slow
def test_distances_stand_beside_those_of_the_real_videos_and_their_doubts(sets, tmp_path) -> None:
    ours, theirs, extractors = sets
    (found,) = evaluate([ours], extractors=extractors, metrics=[], against=theirs)
    named = {score.name: score for score in found.scores}
    features = found.against.features(0)
    halves = moments(features[::2]), moments(features[1::2])
    assert named["FVD, real against real (c3d)"].value.value == pytest.approx(frechet_distance(*halves))
    write_reports([found], tmp_path)
    doubts = {
        score["name"]: score.get("doubt", "") for score in json.loads((tmp_path / "ours.json").read_text())["scores"]
    }
    assert "below 1000 it is too large" in doubts["FVD (c3d)"] and not doubts["KVD (c3d)"]
    for report in ("report.md", "index.html"):
        text = (tmp_path / report).read_text()
        assert "ours: FVD (c3d) is of 20 against 20 videos: below 1000" in text and "FVD, real against real" in text


@pytest.mark.slow
def test_every_part_of_a_protocol_changes_its_id(sets, tmp_path, network) -> None:
    ours, theirs, extractors = sets
    measured, real = (measure_videos(collect_videos(folder), extractors) for folder in (ours, theirs))

    def fvd(ours=measured, against=real, extractor=extractors[0]):
        (found,) = [s for s in compute_scores(ours, [extractor], [], against) if s.name == "FVD (c3d)"]
        return found.protocol

    fewer = measure_videos(collect_videos(ours), extractors)
    prompts = {f"{number}.mp4": "another" for number in range(20)}
    ids = [
        fvd(),
        fvd(extractor=extractors[0]._replace(weights="other")),
        fvd(extractor=extractors[0]._replace(resize="to 8 x 8")),
        fvd(extractor=extractors[0]._replace(num_frames=1)),
        fvd(ours=measure_videos(collect_videos(ours, prompts), extractors)),
        fvd(ours=measure_videos(collect_videos(ours, fps=8.5), extractors)),
        fvd(against=measured),
    ]
    assert fvd() == fvd(ours=fewer) == ids[0] and len({*ids}) == len(ids)
    with pytest.warns(InputWarning, match=r"FVD \(c3d\) is of 20 against 19 videos: below 1000"):
        less = fvd(against=measure_videos(collect_some(theirs, 19), extractors))
    assert less not in ids


def collect_some(folder, count):
    from dataclasses import replace

    found = collect_videos(folder)
    return replace(found, entries=found.entries[:count])


def real_videos(folder, extractors):
    return measure_videos(collect_videos(folder), extractors)


@pytest.mark.slow
def test_errors_are_those_of_clusters(sets, tmp_path) -> None:
    ours, theirs, extractors = sets
    table = tmp_path / "videos.csv"
    with table.open("w") as file:
        csv.writer(file).writerows([["file", "LoRA"], *([f"{number}.mp4", number % 5] for number in range(20))])
    clusters = read_clusters(table, "lora")
    with pytest.warns(InputWarning, match="IS|Inception Score is left out: its 10 splits need 20 videos of different"):
        (found,) = evaluate([ours], extractors=extractors, metrics=[flow_metric()], against=theirs, clusters=clusters)
    named = {score.name: score.value for score in found.scores}
    values = np.array([video.values["motion"] for video in found.measurements.videos])
    numbers = [int(video.name.removesuffix(".mp4")) % 5 for video in found.measurements.videos]
    assert named["motion"] == mean(values, numbers) and (named["motion"].clusters, named["motion"].degrees) == (5, 4)
    assert (named["FVD (c3d)"].clusters, named["KVD (c3d)"].degrees) == (5, 4)
    written = {score["name"]: score for score in found.as_json()["scores"]}["motion"]
    assert (written["low"], written["clusters"]) == (named["motion"].low, 5)
    with pytest.raises(InputError, match=r"0.mp4 in .* has no cluster"):
        collect_videos(ours, clusters={"1.mp4": "a"})
    with pytest.raises(InputError, match=r"line 2: expected a cluster \(adapter\)"):
        read_clusters(table, "adapter")


@pytest.mark.slow
def test_few_videos_cause_warnings(sets) -> None:
    ours, theirs, extractors = sets
    with pytest.warns(InputWarning, match="20 against 20 videos: below 1000 it is too large"):
        compute_scores(
            measure_videos(collect_videos(ours), extractors), extractors, [], real_videos(theirs, extractors)
        )
    few, one = (measure_videos(collect_some(ours, count), extractors) for count in (4, 1))
    real = real_videos(theirs, extractors)
    singular = "4 against 20 videos with 4 features: the covariance of so few"
    with pytest.warns(InputWarning, match="20 videos, got 4"), pytest.warns(InputWarning, match=singular):
        named = {score.name for score in compute_scores(few, extractors, [], real)}
    assert named == {"FVD (c3d)", "KVD (c3d)", *REAL}
    with pytest.warns(InputWarning, match="FVD is left out"), pytest.warns(InputWarning, match="Inception"):
        assert compute_scores(one, extractors, [], real) == []


@pytest.mark.slow
def test_truncated_videos_are_left_out(tmp_path, network) -> None:
    folder = folder_of(tmp_path / "set", 3, frames=30)
    found, extractors = collect_videos(folder), load_extractors([f"torchscript:{network}"])
    whole = (folder / "1.mp4").read_bytes()
    (folder / "1.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(InputWarning, match=r"1.mp4 is left out"):
        seen = measure_videos(found, extractors)
    assert [video.name for video in seen.videos] == ["0.mp4", "2.mp4"]
    assert [problem.name for problem in seen.problems] == ["1.mp4"]


@pytest.mark.slow
def test_equal_videos_give_equal_reports(reported, sets) -> None:
    path, _ = reported
    ours, theirs, extractors = sets
    (again,) = evaluate([ours], extractors=extractors, metrics=[flow_metric()], against=theirs)
    assert json.loads((path.parent / "ours.json").read_text()) == again.as_json()
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "index.html",
        "ours.json",
        "report.md",
        "theirs.json",
    ]


def test_table_has_a_row_per_score_and_protocol(reported) -> None:
    path, found = reported
    text = (path.parent / "report.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len({(score.name, score.protocol) for each in found for score in each.scores})
    assert "motion quality" in text and "±" in text


def test_page_is_self_contained(reported) -> None:
    path, _ = reported
    text = path.read_text()
    assert text.count("<video") == 12 * 3 and text.count("data:video/mp4;base64,") == 12 * 3
    assert 'src="http' not in text and "<script" not in text
    assert "prompt 1<" in text and "<th>against</th>" in text


def test_prompts_are_escaped_in_the_page(tmp_path, network) -> None:
    folder = tmp_path / "set"
    Video(noise(0), 8, {"prompt": "<script>alert(1)</script>"}).save(folder / "a<b>.mp4")
    extractors = load_extractors([f"torchscript:{network}"])
    with pytest.warns(InputWarning, match="Inception"):
        found = evaluate([folder], extractors=extractors, metrics=[])
    assert "<script" not in write_reports(found, tmp_path / "out").read_text()


def test_scores_of_different_protocols_are_not_compared(reported, tmp_path) -> None:
    path, _ = reported
    ours, theirs = path.parent / "ours.json", tmp_path / "other.json"
    content = json.loads(ours.read_text())
    same = {row.name: row for row in compare_reports(ours, ours)}
    assert same["motion"].difference.value == 0
    assert same["motion"].difference.error == pytest.approx(same["motion"].ours.error * 2**0.5)
    for score in content["scores"]:
        if score["name"] == "FVD (c3d)":
            score["settings"]["extractor"]["resize"] = "to 8 x 8"
            score["protocol"] = "another"
    theirs.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"FVD \(c3d\) was measured by protocol .* extractor.resize is bicubic.* to 8 x 8"
    ):
        compare_reports(ours, theirs)
    assert len(compare_reports(ours, theirs, ignore_protocol=["FVD (c3d)"])) == len(same)
    with pytest.raises(InputError, match="there is no score FID on both sides"):
        compare_reports(ours, theirs, ignore_protocol=["FID"])
    theirs.write_text('{"scores": 3}')
    with pytest.raises(InputError, match="is no report"):
        compare_reports(ours, theirs)
    with pytest.raises(InputError, match="there is no file"):
        compare_reports(ours, tmp_path / "gone.json")


def test_folders_of_one_name_are_numbered(tmp_path, sets, network) -> None:
    extractors = sets[2]
    with pytest.raises(InputError, match="give each once"):
        evaluate([sets[0], sets[0]], extractors=extractors, metrics=[])
    one, other = tmp_path / "one" / "set", tmp_path / "other" / "set"
    for folder in (one, other):
        folder.parent.mkdir()
        folder_of(folder, 1)
    with pytest.warns(InputWarning, match="Inception"):
        names = [each.name for each in evaluate([one, other], extractors=extractors, metrics=[])]
    assert names == ["set", "set-2"]


def test_built_in_extractors_warn_of_other_videos(tmp_path) -> None:
    folder = folder_of(tmp_path / "set", 1)
    with pytest.warns(InputWarning, match="1 of 1 videos are not 128 x 128"), pytest.warns(InputWarning, match="Incep"):
        evaluate([folder], extractors=[load_extractor("pocket")], metrics=[])


@pytest.mark.slow
def test_evaluate_command(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from kineograph.cli import terminal
    from kineograph.cli.evaluate import evaluate as command

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end, terminal.errors_as_messages():
            app()
        return int(end.value.code or 0), *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    moving = render_clip(ShotSpec("sea", "flat", (Subject("fish", "red", 1, motion="right"),)), 4)
    for number in range(2):
        Video(np.roll(moving, number, axis=2), 8, {"prompt": FISH}).save(tmp_path / "made" / f"{number}.mp4")
    status, out, err = run("made", "--against", "made", "--device", "cpu")
    assert status == 0 and out.strip() == "report/index.html"
    assert "FVD (pocket): 0.000" in err and "protocol" in err and "against themselves" in err
    status, out, err = run("made", "--compare-with", "report/made.json", "-o", "again", "--device", "cpu", "--json")
    assert status == 0 and {score["name"] for score in json.loads(out)["sets"][0]["scores"]} >= {
        "CLIP-T",
        "motion accuracy",
    }
    assert "made and report/made.json  motion" in err
    status, out, err = run("made", "--compare-with", "gone.json")
    assert status == 2 and "there is no file gone.json" in err
    with (tmp_path / "prompts.csv").open("w") as file:
        csv.writer(file).writerows([["file", "prompt"], ["0.mp4", "a blue cat"]])
    status, out, err = run("made", "--prompts", "prompts.csv", "--compare-with", "report/made.json", "--device", "cpu")
    assert status == 2 and "CLIP-T was measured by protocol" in err and "sample.prompts" in err
    with monkeypatch.context() as laboratory:
        laboratory.setattr(plugins, "entry_points", lambda group: ())
        status, out, err = run("made", "--extractor", "pocket", "--device", "cpu")
        assert status == 2 and err.splitlines()[-1].endswith(
            "not installed: pip install kineograph-lab (in a clone: pip install -e lab)"
        )
        status, out, err = run("made", "--device", "cpu", "-o", "alone")
        assert status == 0 and "motion: " in err and "CLIP-T: " in err and "accuracy" not in err
    status, out, err = run("made", "--cluster", "prompt")
    assert status == 2 and "--cluster names a column of the file of --prompts" in err
    status, out, err = run("gone")
    assert status == 2 and "there is no folder gone" in err
