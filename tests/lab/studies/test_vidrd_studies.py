"""VidRD's studies: clips of the front door, metrics and claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generation.test_animate import model  # noqa: F401

from kineograph.errors import InputWarning
from kineograph.metrics import optical_flow
from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.extractors import load_extractor
from kineograph.metrics.features import Extractor
from kineograph.models.model import Model
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig, decoder_blocks
from kineograph_lab.studies import reproduce, set_distances
from kineograph_lab.studies.judges import Judges, load_pocket_judges
from kineograph_lab.studies.protocol import moving_cases
from kineograph_lab.studies.study import NotTrainedError, Study, run_study, summarise_study
from kineograph_lab.studies.vidrd import degraded_videos, long_videos, pan_and_zoom, temporal_decoder
from kineograph_lab.studies.vidrd.long_videos import FRAMES
from kineograph_lab.world.world import render_clip

STAMP = {"protocol": "test", "commit": "none"}


@pytest.fixture(scope="module")
def judges() -> Judges:
    return load_pocket_judges()


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor("pocket")


def run_and_check(study: Study, folder) -> list[dict]:
    """Run a study, check its summary and images, and return its records."""
    records = list(run_study(study, folder, STAMP))
    summary = summarise_study(study.analysis, records, folder)
    assert len(records) == len(study.arms) * len(study.cases)
    assert all(
        (folder / file.rpartition("/")[2]).exists() for each in summary.images.values() for file in each.values()
    )
    assert {row: set(cells) for row, cells in summary.table.items()} == {row: set(study.arms) for row in summary.table}
    return records


@pytest.mark.slow
def test_arms_share_the_first_clip_alone(model: Model):  # noqa: F811
    cases, options = moving_cases(2), {**long_videos.BOTH, **long_videos.THEIRS, **long_videos.WITHOUT}
    records = {name: long_videos.generate_long_videos(model, 4, 2, each, cases) for name, each in options.items()}
    for name in options.keys() - {long_videos.WHOLE}:
        for one, other in zip(records[name], records[long_videos.WHOLE], strict=True):
            assert np.array_equal(one[:FRAMES], other[:FRAMES])
            assert not np.array_equal(one[FRAMES:], other[FRAMES:])
    first, second = records[long_videos.JOINED]
    assert not np.array_equal(first[:FRAMES], second[:FRAMES])


def test_options_are_recorded_as_before(model: Model, judges: Judges):  # noqa: F811
    earlier = json.loads((Path(__file__).parents[3] / "docs" / "results" / "vidrd.json").read_text())["settings"]
    assert long_videos.long_videos_study(model, judges, 1, None).settings == earlier["long-videos"]


def test_frame_changes_at_seams_and_inside_clips():
    frames = np.zeros((3 * FRAMES, 32, 32, 3), np.uint8)
    frames[FRAMES : 2 * FRAMES] = 60
    found = long_videos.frame_changes(frames)
    assert found["pixels, seam"] == 60 and found["pixels, inside"] == 0
    assert found["flow, inside"] == pytest.approx(0, abs=1e-3)
    seams = long_videos.seam_frames(frames)
    assert [len(seams), seams[1].max(), seams[2].min()] == [6, 0, 60]


def test_clips_that_freeze_at_seams_are_no_better_than_clips_that_jump():
    changes = {long_videos.WHOLE: 0.0, long_videos.JOINED: 1.8, **dict.fromkeys(long_videos.WITHOUT, 1.8)}

    def held(inside: float) -> list[str]:
        records = [
            {"arm": arm, "case": case}
            | {f"{name}, seam": seam + 0.01 * (case % 3) for name in long_videos.CHANGES}
            | {f"{name}, inside": inside for name in long_videos.CHANGES}
            for arm, seam in changes.items()
            for case in range(20)
        ]
        stated = [*long_videos._state_claims(records), *long_videos._state_ablation_claims(records)]
        return [each.name for each in stated if each.holds and long_videos.DEPARTURE in each.name]

    assert not held(inside=1.0)  # standing still departs further than 1.8 times the change
    assert len(held(inside=0.1)) == 8


def test_motion_per_frame_of_a_panned_image():
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(255, size=(16, 40, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    frames = np.stack([wide[:, left : left + 256] for left in (0, 8, 16)])
    assert optical_flow.motion_per_frame(frames) == pytest.approx([8 / 256] * 2, rel=0.2)


@pytest.mark.slow
def test_long_videos_study_and_ablation(model: Model, judges: Judges, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(long_videos, "CLIPS", 3)
    monkeypatch.setattr(long_videos, "ABLATED_CASES", 1)
    records = run_and_check(long_videos.long_videos_study(model, judges, 2, 1), tmp_path)
    claims = long_videos._state_claims(records)
    assert len(claims) == 7 and {claim.count for claim in claims} == {2}
    study = long_videos.long_videos_ablation(model, judges, 2, 1)
    assert len(study.cases) == len(study.analysis.cases(2, "test")) == 1
    parts = run_and_check(study, tmp_path)
    assert {each["arm"] for each in parts} == {*long_videos.BOTH, *long_videos.THEIRS, *long_videos.WITHOUT}
    assert len(long_videos._state_ablation_claims(parts)) == 10


def use_few_degradations(monkeypatch) -> dict:
    degrees = {name: degraded_videos.DEGREES[name] for name in ("blur 0", "blur 8", "noise 0", "noise 64")}
    monkeypatch.setattr(degraded_videos, "VIDEOS", 2)
    monkeypatch.setattr(degraded_videos, "DEGREES", degrees)
    return degrees


@pytest.mark.slow
def test_fvd_study(judges: Judges, model: Model, tmp_path, monkeypatch):  # noqa: F811
    degrees = use_few_degradations(monkeypatch)
    study = degraded_videos.fvd_study(model, judges, 1, None)
    records = run_and_check(study, tmp_path)
    assert len(records) == degraded_videos.MIN_SETS and len(degraded_videos._state_claims(records)) == 4
    assert all(record["blur 0"] == record["noise 0"] for record in records)
    assert records[0]["blur 0"] != records[1]["blur 0"]
    assert len({record[name] for record in records for name in degrees}) == 6
    assert len({record[f"KVD, {name}"] for record in records for name in degrees}) == 6
    sharp = [[record[degraded_videos.SHARP + name] for name in degrees] for record in records]
    assert all(same == clean == 1 and blurred < 0.5 and noisy > 2 for same, blurred, clean, noisy in sharp)
    claims = degraded_videos._state_claims(records)
    assert [each.name[:3] for each in claims if each.measured] == ["KVD", "KVD"]  # FVD of 2 videos is no claim
    large = [{**each, "videos": 1000} for each in records]
    assert all(each.measured for each in degraded_videos._state_claims(large))
    assert len(study.arms["FVD"](study.cases[:1])[0]) == len(degrees)


@pytest.mark.slow
def test_set_distances_equal_those_of_the_features(extractor: Extractor, monkeypatch):
    clips = [render_clip(case.shot, 4) for case in moving_cases(4)]
    records = [
        {"arm": arm, "case": k, **set_distances.extract_set_features(extractor, change(frames))}
        for arm, change in (("same", np.copy), ("blank", np.zeros_like), ("real", np.copy))
        for k, frames in enumerate(clips)
    ]
    records = json.loads(json.dumps(records))
    assert {row[:3] for row in set_distances.tabulate_set_distances(records, "real")} == {"KVD"}  # of few videos
    with monkeypatch.context() as patch:
        patch.setattr(set_distances, "FEW_VIDEOS", 2)
        table = set_distances.tabulate_set_distances(records, "real")
    same_prompts = table["FVD against real of the same prompts (4 videos)"]
    kvd = table["KVD against real of other prompts (2 videos)"]
    features = [
        np.stack([extractor.extract(change(each)).features for each in clips]) for change in (np.zeros_like, np.copy)
    ]
    wanted = frechet_distance(*(moments(each) for each in features))
    assert same_prompts["blank"].value == pytest.approx(wanted, rel=1e-3)
    assert same_prompts["same"].value == pytest.approx(0, abs=1e-4 * wanted)
    assert np.isnan(same_prompts["real"].value) and kvd["real"] == kvd["same"]  # of real videos against themselves
    fvd, kvd_claim = set_distances.claim_lower_distances("x", records, "same", "blank", "real")
    assert kvd_claim.holds and not fvd.measured and fvd.bar == "> 0, of 1,000 videos"  # these are 4
    monkeypatch.setattr(set_distances, "FEW_VIDEOS", 4)
    assert all(each.holds for each in set_distances.claim_lower_distances("x", records, "same", "blank", "real"))
    assert not any(each.holds for each in set_distances.claim_lower_distances("x", records, "blank", "same", "real"))
    scores = set_distances.tabulate_inception_scores(records)["IS (the judge's subjects)"]
    assert np.isnan(scores["same"].value)
    one = records[:1] + records[4:5] + records[8:9]
    assert not set_distances.claim_lower_distance("FVD", one, "same", "blank", "real").holds


@pytest.fixture
def with_decoder(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A tiny model with an untrained temporal decoder in place of the pocket one, and clips of its size."""
    decoder = TemporalDecoder(TemporalDecoderConfig(blocks=decoder_blocks(model.vae), groups=4)).eval()
    monkeypatch.setattr(temporal_decoder, "load", lambda name: replace(model, temporal_decoder=decoder))
    monkeypatch.setattr(
        temporal_decoder, "render_clip", lambda shot, frames, fps: render_clip(shot, 2)[:, ::8, ::8].copy()
    )


@pytest.mark.slow
@pytest.mark.usefixtures("with_decoder")
def test_temporal_decoder_studies(model: Model, judges: Judges, tmp_path):  # noqa: F811
    by_arm = {
        each["arm"]: each
        for each in run_and_check(temporal_decoder.reconstruction_study(model, judges, 1, None), tmp_path)
    }
    assert by_arm["rendering"]["psnr"] == pytest.approx(60, abs=0.01) and by_arm["rendering"]["flicker"] == 0
    assert by_arm["image decoder"]["psnr"] == pytest.approx(by_arm["temporal decoder"]["psnr"])  # it is untrained
    assert (
        len(temporal_decoder._state_reconstruction_claims([*by_arm.values()])) == 5
        and by_arm["rendering"]["sharp"] == 1
    )
    records = run_and_check(temporal_decoder.decoder_generation_study(model, judges, 1, 1), tmp_path)
    assert len(temporal_decoder._state_generation_claims(records)) == 4


def test_flicker_ignores_a_constant_difference():
    clip = np.random.default_rng(0).integers(100, size=(4, 8, 8, 3), dtype=np.uint8)
    assert temporal_decoder.flicker(clip + 20, clip) == 0
    flickering = clip.copy()
    flickering[1::2] += 10
    assert temporal_decoder.flicker(flickering, clip) == 10


@pytest.mark.slow
def test_pan_and_zoom_study(model: Model, judges: Judges, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(NotTrainedError, match="--stages vidrd_panned,vidrd_unpanned"):
        pan_and_zoom.load_pan_and_zoom_model(model, tmp_path / "vidrd_panned.safetensors")
    monkeypatch.setattr(pan_and_zoom, "load_pan_and_zoom_model", lambda model, file: model)
    small = judges._replace(embed=lambda frames: np.eye(len(frames)))  # the CLIP sees no such small frames
    records = run_and_check(pan_and_zoom.pan_and_zoom_study(model, small, 1, 1), tmp_path)
    assert len(pan_and_zoom._state_claims(records)) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("with_decoder")
def test_studies_of_untrained_networks_are_left_out_of_the_report(model: Model, judges: Judges, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pan_and_zoom, "FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(long_videos, "CLIPS", 2)
    use_few_degradations(monkeypatch)
    with pytest.warns(InputWarning, match="a study is not measured") as warned:
        summary = reproduce.reproduce("vidrd", model, judges, cases=1, steps=1, out=tmp_path)
    assert len(warned) == 1
    assert [each.title.partition(",")[0] for each in summary.studies] == [
        "Eight clips in sequence", "Two clips in sequence", "FVD and KVD of clips with known degradations",
        "Held-out clips", "Videos generated by VidRD's model",
    ]  # fmt: skip
    monkeypatch.setattr(long_videos, "generate", lambda *arguments: pytest.fail("a recorded video is generated again"))
    with pytest.warns(InputWarning):
        reproduce.reproduce("vidrd", model, judges, cases=1, steps=1, out=tmp_path)
