"""Reproductions on a tiny network: cases, records, claims and reports."""

import json

import numpy as np
import pytest

from kineograph.errors import InputError
from kineograph.generation.api import generate
from kineograph.media.metadata import settings_id
from kineograph.models.loading.load import load
from kineograph_lab.bench.text2video_zero import save_random_pipeline
from kineograph_lab.judge.geometry import Geometry
from kineograph_lab.studies.frame_metrics import JudgedFrames
from kineograph_lab.studies.judges import Judges
from kineograph_lab.studies.protocol import append_record, held_out_cases, load_records
from kineograph_lab.studies.reproduce import PAPERS, report_from_records, reproduce
from kineograph_lab.studies.text2video_zero import ablation
from kineograph_lab.world.world import is_held_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pipeline")
    save_random_pipeline(made, channels=32, side=8, text_layers=1)
    return made


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, dtype="float32")


def test_cases_are_held_out_and_larger_counts_begin_alike() -> None:
    few, many = held_out_cases(5), held_out_cases(40)
    assert many[:5] == few
    assert all(is_held_out(case.subject, colour=case.colour, scene=case.scene) for case in many)
    assert len({case.prompt for case in many}) > 35
    assert not any("pan" in case.prompt.split() or "moving" in case.prompt for case in many)


def test_records_survive_an_interruption_and_are_filtered_by_protocol(tmp_path) -> None:
    file, protocol = tmp_path / "cases.jsonl", settings_id({"steps": 50})
    assert load_records(file, protocol) == []
    append_record(file, {"protocol": protocol, "case": 0})
    append_record(file, {"protocol": settings_id({"steps": 20}), "case": 1})
    with file.open("a") as stopped:
        stopped.write('{"protocol": "cut sh')
    assert [record["case"] for record in load_records(file, protocol)] == [0]
    append_record(file, {"protocol": protocol, "case": 2})
    assert [record["case"] for record in load_records(file, protocol)] == [0, 2]


def fake_judges():
    return Judges(
        classify=lambda frames: JudgedFrames(
            *[[str(frame[0, 0, axis] // 128) for frame in frames] for axis in (0, 1, 2, 0)], np.eye(len(frames))
        ),
        text_similarity=lambda frames, text: np.full(len(frames), len(text) / 100),
        embed=lambda frames: np.eye(len(frames)),
        classify_motion=lambda frames: "still",
        predict_geometry=lambda frames: Geometry(np.zeros((len(frames), 32, 32)), np.zeros((len(frames), 5, 2))),
        weight_hashes={"judge": "none"},
    )


@pytest.mark.slow
def test_reproduction_writes_its_report_and_resumes(model, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAPERS, "text2video-zero", ((ablation.ANALYSIS, ablation.ablation_study),))
    calls = []
    made = reproduce(
        "text2video-zero", model, fake_judges(), cases=2, steps=4, out=tmp_path, on_video=lambda *at: calls.append(at)
    )
    assert calls[-1] == (8, 8)
    written = json.loads((tmp_path / "text2video-zero.json").read_text())
    assert [claim["name"] for claim in written["claims"]] == [claim.name for claim in made.claims]
    assert {"command", "model", "machine", "witnesses"} <= written.keys()
    assert written["parts"][0]["records"]["count"] == 8 and len(written["parts"][0]["records"]["commits"]) == 1
    text = (tmp_path / "text2video-zero.md").read_text()
    assert "| claim | measured | bounds | bar |" in text
    assert all((tmp_path / file).exists() for strips in made.studies[0].images.values() for file in strips.values())
    assert "](text2video-zero/cases-0-both.png)" in text

    monkeypatch.setattr(ablation, "generate_ablation_arm", lambda: None)  # nothing is generated again
    again = reproduce("text2video-zero", model, fake_judges(), cases=2, steps=4, out=tmp_path)
    assert [claim.name for claim in again.claims if claim.holds] == [claim.name for claim in made.claims if claim.holds]
    computed = report_from_records("text2video-zero", tmp_path)
    assert list(map(str, computed.claims)) == list(map(str, again.claims))  # as text, where NaN equals NaN
    assert json.loads((tmp_path / "text2video-zero.json").read_text()) == written
    with pytest.raises(TypeError):
        reproduce("text2video-zero", model, fake_judges(), cases=3, steps=4, out=tmp_path)


def test_unknown_papers_and_no_cases_are_refused(model, tmp_path) -> None:
    with pytest.raises(InputError, match="expected text2video-zero"):
        reproduce("make-a-video", model, fake_judges(), out=tmp_path)
    with pytest.raises(InputError, match="at least 1 case"):
        reproduce("text2video-zero", model, fake_judges(), cases=0, out=tmp_path)
    with pytest.raises(InputError, match="measure the videos first, by kineograph reproduce vidrd"):
        report_from_records("vidrd", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")
def test_whole_method_equals_generate(model) -> None:
    options = {**ablation.DEFAULTS, "num_frames": 3, "num_inference_steps": 4}
    case = held_out_cases(1)[0]
    (frames,) = ablation.generate_ablation_arm(model, "both", [case], options)
    video = generate(model, case.prompt, num_frames=3, num_inference_steps=4, seed=case.seed)
    assert np.array_equal(frames, video.frames)
