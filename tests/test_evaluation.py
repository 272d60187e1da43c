"""Studies on a tiny network: cases, records, claims, reports and benchmarks."""

import json

import numpy as np
import pytest
import torch

from kineograph.errors import InputError
from kineograph.generation import generate
from kineograph.media.metadata import settings_id
from kineograph.models.loading.load import load
from kineograph.models.placement import choose_placement
from kineograph.request import Request
from kineograph_lab.bench import bench, memory
from kineograph_lab.bench import text2video_zero as peers
from kineograph_lab.judge.geometry import Geometry
from kineograph_lab.studies import report
from kineograph_lab.studies.frame_metrics import JudgedFrames
from kineograph_lab.studies.judges import Witnesses
from kineograph_lab.studies.protocol import held_out_cases, keep, kept
from kineograph_lab.studies.reproduce import PAPERS, reproduce
from kineograph_lab.studies.text2video_zero import ablation
from kineograph_lab.world.world import is_held_out

TINY = {"channels": 32, "side": 8, "text_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("stand-in")
    peers.save_stand_in(made, **TINY)
    return made


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, dtype="float32")


def test_cases_are_held_out_and_more_cases_begin_with_the_same():
    few, many = held_out_cases(5), held_out_cases(40)
    assert many[:5] == few
    assert all(is_held_out(case.thing, colour=case.colour, scene=case.scene) for case in many)
    assert len({case.prompt for case in many}) > 35
    assert not any("pan" in case.prompt.split() or "moving" in case.prompt for case in many)


def test_records_survive_a_stop_and_other_settings_do_not_count(tmp_path):
    file, protocol = tmp_path / "cases.jsonl", settings_id({"steps": 50})
    assert kept(file, protocol) == []
    keep(file, {"protocol": protocol, "case": 0})
    keep(file, {"protocol": settings_id({"steps": 20}), "case": 1})
    with file.open("a") as stopped:
        stopped.write('{"protocol": "cut sh')
    assert [record["case"] for record in kept(file, protocol)] == [0]
    keep(file, {"protocol": protocol, "case": 2})
    assert [record["case"] for record in kept(file, protocol)] == [0, 2]


def test_claims_hold_or_do_not():
    claim = report.at_least("a", [0.5, 1.0], 0.75)
    assert (claim.value, claim.error, claim.count, claim.bar, claim.holds) == (0.75, 0.25, 2, ">= 0.75", True)
    assert not report.at_least("a", [0.9, 0.9], 0.95).holds
    assert not report.at_least("nothing to count", [], 0.95).holds
    assert report.within("b", [1.1, 0.9], 0.85, 1.15).holds
    assert report.better("c", [1.0, 2.0, 3.1], [0.0, 1.0, 2.0]).holds
    assert not report.better("c", [1.0, -1.0], [0.0, 0.0]).holds


def witnesses():
    return Witnesses(
        look=lambda frames: JudgedFrames(
            *[[str(frame[0, 0, axis] // 128) for frame in frames] for axis in (0, 1, 2, 0)], np.eye(len(frames))
        ),
        alike=lambda frames, text: np.full(len(frames), len(text) / 100),
        embed=lambda frames: np.eye(len(frames)),
        move=lambda frames: "still",
        survey=lambda frames: Geometry(np.zeros((len(frames), 32, 32)), np.zeros((len(frames), 5, 2))),
        weights={"judge": "none"},
    )


def test_a_reproduction_writes_its_report_and_goes_on_where_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setitem(PAPERS, "text2video-zero", (ablation.studied,))
    told = []
    made = reproduce(
        "text2video-zero", model, witnesses(), cases=2, steps=4, out=tmp_path, on_video=lambda *at: told.append(at)
    )
    assert told[-1] == (8, 8)
    written = json.loads((tmp_path / "text2video-zero.json").read_text())
    assert [claim["name"] for part in written["parts"] for claim in part["claims"]] == [
        claim.name for claim in made.claims
    ]
    assert {"command", "commit", "model", "machine", "witnesses"} <= written.keys()
    text = (tmp_path / "text2video-zero.md").read_text()
    assert "| claim | measured |" in text
    assert all((tmp_path / file).exists() for strips in made.parts[0].pictures.values() for file in strips.values())
    assert "](text2video-zero/cases-0-both.png)" in text

    monkeypatch.setattr(ablation, "filmed", lambda: None)  # nothing is drawn again
    again = reproduce("text2video-zero", model, witnesses(), cases=2, steps=4, out=tmp_path)
    assert [claim.name for claim in again.claims if claim.holds] == [claim.name for claim in made.claims if claim.holds]
    with pytest.raises(TypeError):
        reproduce("text2video-zero", model, witnesses(), cases=3, steps=4, out=tmp_path)


def test_what_cannot_be_reproduced_or_compared_is_an_error(model, tmp_path):
    with pytest.raises(InputError, match="expected text2video-zero"):
        reproduce("make-a-video", model, witnesses(), out=tmp_path)
    with pytest.raises(InputError, match="at least 1 case"):
        reproduce("text2video-zero", model, witnesses(), cases=0, out=tmp_path)
    with pytest.raises(InputError, match="expected pocket or sd15"):
        bench.bench("sdxl")
    with pytest.raises(InputError, match="expected motion or control"):
        bench.bench("pocket", "magic")
    with pytest.raises(InputError, match="at least 7 steps"):
        bench.bench("sd15", steps=3)


@pytest.mark.filterwarnings("ignore::kineograph.errors.InputWarning")
def test_the_full_method_is_what_generate_does(model):
    asked = Request(prompt="any", num_frames=3, num_inference_steps=4)
    case = held_out_cases(1)[0]
    (frames,) = ablation.filmed(model, "both", [case], asked)
    video = generate(model, case.prompt, num_frames=3, num_inference_steps=4, seed=case.seed)
    assert np.array_equal(frames, video.frames)


@pytest.mark.filterwarnings("ignore")  # the peer's, which are many
@pytest.mark.parametrize(
    ("mode", "dtype"), [("motion", torch.bfloat16), ("control", torch.float32), ("video", torch.float32)]
)
def test_the_benchmark_compares_like_with_like(monkeypatch, tmp_path, mode, dtype):
    monkeypatch.setattr(bench, "_peak_gb", lambda mode, side, folder, dtype, frames: memory.peak() / 1e9)
    monkeypatch.setattr(bench, "MATRIX", 64)
    monkeypatch.setattr(bench, "place", lambda: choose_placement()._replace(dtype=dtype))
    if mode != "motion":  # seconds each time, of the same counter
        monkeypatch.setattr(bench, "_flops", lambda draw, frames, steps: 1e9)
    said, file = [], tmp_path / "bench.json"
    rows = bench.bench("sd15", mode, frames=2, steps=7, repeats=1, size=TINY, out=file, say=said.append)
    assert [row.setting.their_dtype for row in rows] == [*{str(dtype).removeprefix("torch."): 0, "float32": 0}]
    assert len(said) == 2 * len(rows)
    assert json.loads(file.read_text())[0]["setting"]["frames"] == 2
    assert "times as fast" in bench.table(rows)
    for row in rows:
        assert row.speedup > 0 and row.peak_gb > 0 and row.teraflops > 0
        assert row.difference < 2  # the same video: random weights and bfloat16 allow no more


def test_who_begins_changes_from_turn_to_turn():
    drawn, setting = [], bench.Setting(2, 7, 3, "float32", "float32")
    draws = {side: lambda *asked, side=side: drawn.append((side, *asked)) for side in ("ours", "theirs")}
    times = bench._alternated(draws, setting, lambda side, took: None)
    assert [side for side, *_ in drawn] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert {tuple(asked) for _, *asked in drawn} == {(2, 7)}
    assert {side: len(each) for side, each in times.items()} == {"ours": 3, "theirs": 3}


def test_a_process_of_its_own_tells_its_peak(folder, capsys):
    memory.main("motion", "ours", str(folder), "float32", "2", "7")
    assert json.loads(capsys.readouterr().out)["peak_gb"] > 0.1
