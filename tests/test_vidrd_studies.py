"""VidRD's studies: the clips they draw are those of the front door, and what they measure is what it says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from generation.test_animate import model  # noqa: F401

from kineograph.errors import InputWarning
from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.extractors import load_extractor
from kineograph.metrics.features import Extractor
from kineograph.models.model import Model
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig, decoder_blocks
from kineograph_lab.studies import reproduce, set_distances
from kineograph_lab.studies.judges import Witnesses, pocket_witnesses
from kineograph_lab.studies.protocol import moving_cases
from kineograph_lab.studies.study import Study, Untrained, part, records
from kineograph_lab.studies.vidrd import degraded_videos, long_videos, pan_and_zoom, temporal_decoder
from kineograph_lab.studies.vidrd.long_videos import FRAMES
from kineograph_lab.world.world import render_clip

STAMP = {"protocol": "test", "commit": "none"}


@pytest.fixture(scope="module")
def witnesses() -> Witnesses:
    return pocket_witnesses()


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor("pocket")


def ran(study: Study, folder) -> list[dict]:
    made = list(records(study, folder, STAMP))
    told = part(study, made, folder)
    assert len(made) == len(study.arms) * len(study.cases)
    assert all((folder / file.rpartition("/")[2]).exists() for each in told.pictures.values() for file in each.values())
    assert {row: set(cells) for row, cells in told.table.items()} == {row: set(study.arms) for row in told.table}
    return made


def test_clips_that_are_joined_begin_alike_and_follow_nothing(model: Model):  # noqa: F811
    cases, ways = moving_cases(2), {**long_videos.BOTH, **long_videos.THEIRS, **long_videos.WITHOUT}
    made = {name: long_videos.filmed(model, 4, 2, reuse, cases) for name, reuse in ways.items()}
    for name in ways.keys() - {long_videos.WHOLE}:
        for one, other in zip(made[name], made[long_videos.WHOLE], strict=True):
            assert np.array_equal(one[:FRAMES], other[:FRAMES])
            assert not np.array_equal(one[FRAMES:], other[FRAMES:])
    first, second = made[long_videos.JOINED]
    assert not np.array_equal(first[:FRAMES], second[:FRAMES])


def test_changes_at_seams_and_inside():
    frames = np.zeros((3 * FRAMES, 32, 32, 3), np.uint8)
    frames[FRAMES : 2 * FRAMES] = 60
    found = long_videos.changes(frames)
    assert found["pixels, seam"] == 60 and found["pixels, inside"] == 0
    assert found["flow, inside"] == pytest.approx(0, abs=1e-3)
    assert [len(long_videos.edges(frames)), long_videos.edges(frames)[1].max(), long_videos.edges(frames)[2].min()] == [
        6, 0, 60
    ]  # fmt: skip


def test_a_pixel_goes_as_far_as_it_is_moved():
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(255, size=(16, 40, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    frames = np.stack([wide[:, left : left + 256] for left in (0, 8, 16)])
    assert optical_flow.motion_per_frame(frames) == pytest.approx([8 / 256] * 2, rel=0.2)


def test_long_videos_and_the_methods_parts(model: Model, witnesses: Witnesses, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(long_videos, "CLIPS", 3)
    monkeypatch.setattr(long_videos, "ABLATED_CASES", 1)
    made = ran(long_videos.studied(model, witnesses, 2, 1), tmp_path)
    claims = long_videos.claims(made)
    assert len(claims) == 7 and {claim.count for claim in claims} == {2}
    study = long_videos.ablated(model, witnesses, 2, 1)
    assert len(study.cases) == 1 and "1 of the prompts" in study.title
    parts = ran(study, tmp_path)
    assert {each["arm"] for each in parts} == {*long_videos.BOTH, *long_videos.THEIRS, *long_videos.WITHOUT}
    assert len(long_videos.claims_of_the_parts(parts)) == 10


def little_damage(monkeypatch) -> dict:
    degrees = {name: degraded_videos.DEGREES[name] for name in ("blur 0", "blur 8", "noise 0", "noise 64")}
    monkeypatch.setattr(degraded_videos, "VIDEOS", 2)
    monkeypatch.setattr(degraded_videos, "DEGREES", degrees)
    return degrees


def test_known_damage(witnesses: Witnesses, model: Model, tmp_path, monkeypatch):  # noqa: F811
    degrees = little_damage(monkeypatch)
    study = degraded_videos.studied(model, witnesses, 1, None)
    made = ran(study, tmp_path)
    assert len(made) == degraded_videos.LEAST and len(degraded_videos.claims(made)) == 2
    assert all(record["blur 0"] == record["noise 0"] for record in made)
    assert made[0]["blur 0"] != made[1]["blur 0"]
    assert len({record[name] for record in made for name in degrees}) == 6
    assert len(study.arms["FVD"](study.cases[:1])[0]) == len(degrees)


def test_a_set_is_as_far_as_its_features(extractor: Extractor):
    films = [render_clip(case.shot, 4) for case in moving_cases(4)]
    made = [
        {"arm": arm, "case": k, **set_distances.read(extractor, change(frames))}
        for arm, change in (("same", np.copy), ("blank", np.zeros_like), ("real", np.copy))
        for k, frames in enumerate(films)
    ]
    made = json.loads(json.dumps(made))
    table = set_distances.table(made, ("same", "blank", "real"), "real")
    features = [
        np.stack([extractor.extract(change(each)).features for each in films]) for change in (np.zeros_like, np.copy)
    ]
    wanted = frechet_distance(*(moments(each) for each in features))
    assert table["FVD against real"]["blank"].value == pytest.approx(wanted, rel=1e-3)
    assert table["FVD against real"]["same"].value == pytest.approx(0, abs=1e-4 * wanted)
    assert set_distances.nearer("x", made, "same", "blank", "real").holds
    assert not set_distances.nearer("x", made, "blank", "same", "real").holds
    assert np.isnan(table["IS (the judge's things)"]["same"].value)
    assert not set_distances.nearer("x", made[:1] + made[4:5] + made[8:9], "same", "blank", "real").holds


@pytest.fixture
def with_decoder(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A tiny model with an untrained temporal decoder in place of the pocket one, and films of its size."""
    decoder = TemporalDecoder(TemporalDecoderConfig(blocks=decoder_blocks(model.vae), groups=4)).eval()
    monkeypatch.setattr(temporal_decoder, "load", lambda name: replace(model, temporal_decoder=decoder))
    monkeypatch.setattr(
        temporal_decoder, "render_clip", lambda shot, frames, fps: render_clip(shot, 2)[:, ::8, ::8].copy()
    )


@pytest.mark.usefixtures("with_decoder")
def test_the_temporal_decoder(model: Model, witnesses: Witnesses, tmp_path):  # noqa: F811
    films = {each["arm"]: each for each in ran(temporal_decoder.filmed(model, witnesses, 1, None), tmp_path)}
    assert films["rendering"]["psnr"] == pytest.approx(60, abs=0.01) and films["rendering"]["flicker"] == 0
    assert films["image decoder"]["psnr"] == pytest.approx(films["temporal decoder"]["psnr"])  # it is untrained
    assert len(temporal_decoder.claims_of_films([*films.values()])) == 3
    made = ran(temporal_decoder.drawn(model, witnesses, 1, 1), tmp_path)
    assert len(temporal_decoder.claims_of_drawn(made)) == 1


def test_flicker_is_of_the_change_alone():
    film = np.random.default_rng(0).integers(100, size=(4, 8, 8, 3), dtype=np.uint8)
    assert temporal_decoder.flicker(film + 20, film) == 0
    restless = film.copy()
    restless[1::2] += 10
    assert temporal_decoder.flicker(restless, film) == 10


def test_pan_and_zoom(model: Model, witnesses: Witnesses, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(Untrained, match="--stages vidrd_panned,vidrd_unpanned"):
        pan_and_zoom.trained(model, tmp_path / "vidrd_panned.safetensors")
    monkeypatch.setattr(pan_and_zoom, "trained", lambda model, file: model)
    alike = witnesses._replace(embed=lambda frames: np.eye(len(frames)))  # the CLIP sees no such small frames
    made = ran(pan_and_zoom.studied(model, alike, 1, 1), tmp_path)
    assert len(pan_and_zoom.claims(made)) == 3


@pytest.mark.usefixtures("with_decoder")
def test_what_was_not_trained_is_left_out_of_the_report(model: Model, witnesses: Witnesses, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pan_and_zoom, "FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(long_videos, "CLIPS", 2)
    little_damage(monkeypatch)
    with pytest.warns(InputWarning, match="a study is left out") as warned:
        told = reproduce.reproduce("vidrd", model, witnesses, cases=1, steps=1, out=tmp_path)
    assert len(warned) == 1
    assert [each.title.partition(",")[0] for each in told.parts] == [
        "Eight clips on end", "Two clips on end", "FVD of 2 clips with known damage",
        "Held-out films that went through the VAE", "Videos that VidRD's model drew",
    ]  # fmt: skip
    monkeypatch.setattr(long_videos, "generate", lambda *asked: pytest.fail("what is there is drawn again"))
    with pytest.warns(InputWarning):
        reproduce.reproduce("vidrd", model, witnesses, cases=1, steps=1, out=tmp_path)
