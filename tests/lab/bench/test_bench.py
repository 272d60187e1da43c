"""`kineograph bench`: its table of rows, the file and the page, and rows on tiny networks."""

import json
from pathlib import Path
from typing import Any

import pytest

from kineograph.errors import InputError
from kineograph_lab.bench import bench, frames, quality
from kineograph_lab.bench.setting import Setting, describe_machine

KEYS = {"what", "against", "speedup", "low", "high", "difference"}  # of each row, for whoever reads the file


def measured(setting: Setting) -> dict[str, Any]:
    figures = dict.fromkeys(("speedup", "low", "high", "seconds", "their_seconds"), 2.0)
    trial = {"dtype": "float32", "threads": 2, "attention": "sdpa", "channels_last": True, "seconds": 1.0}
    return {
        **figures, "difference": 0.1, "their_difference": 0.2, "equal_output": True, "repeats": setting.repeats,
        "dtype": "float32", "tried": [trial], "memory_gb": 1.0, "their_memory_gb": 2.0,
    }  # fmt: skip


@pytest.fixture
def two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: bench.Row(name, "equal dtype", measured, ">= 1.7") for name in ("one", "other")}
    monkeypatch.setattr(bench, "ROWS", rows)


def test_rows_are_chosen_by_the_start_of_their_names() -> None:
    assert bench.choose_rows(["first", "text2video", "first-video"]) == [
        "first-video", "text2video-zero-bfloat16", "text2video-zero-float32",
    ]  # fmt: skip
    assert "gpu-sd15-float16" not in bench.choose_rows([])
    with pytest.raises(InputError, match="there is no row 'flux': expected text2video-zero-bfloat16, "):
        bench.choose_rows(["flux"])
    with pytest.raises(InputError, match="expected 1 or more repeats, prompts and seeds, got 0, 40 and 1"):
        bench.bench(repeats=0)


def test_each_row_is_written_when_it_is_finished(two_rows: None, tmp_path: Path) -> None:
    first = bench.bench(["one"], out=tmp_path, repeats=3, command="kineograph bench --rows one")
    assert first[0].keys() >= KEYS | {"seconds", "memory_gb", "dtype", "machine", "engine", "date"}
    assert first[0]["machine"] == describe_machine()
    page = (tmp_path / "speed.md").read_text()
    assert "| `one` | one | equal dtype | " in page and "2.00 (2.00 to 2.00, 3 pairs) | >= 1.7 |" in page
    assert "| `other` | other | equal dtype | - | not measured |" in page
    assert "float32, sdpa, 2 threads, channels last 1.00 s" in page and "`kineograph bench --rows one`" in page
    bench.bench(["other"], out=tmp_path)
    assert [row["name"] for row in json.loads((tmp_path / "speed.json").read_text())["rows"]] == ["one", "other"]
    assert "not measured" not in (tmp_path / "speed.md").read_text()


def test_a_run_that_was_stopped_goes_on(two_rows: None, tmp_path: Path) -> None:
    assert not bench.bench(out=tmp_path, minutes=0)
    assert len(bench.bench(["one"], out=tmp_path, engine="torch")) == 1
    assert [row["name"] for row in bench.bench(out=tmp_path, engine="torch", resume=True)] == ["other"]
    assert len(bench.bench(out=tmp_path, engine="torch", repeats=2, resume=True)) == 2
    (tmp_path / "speed.json").write_text("[]")
    with pytest.raises(InputError, match="expected an object with `rows`"):
        bench.bench(out=tmp_path)


def test_quality_is_compared_over_prompts() -> None:
    rows = [({"subject": 1.0}, {"subject": each}) for each in (1.0, 1.0, 0.5, 1.0)]
    found = quality.compare_measures(rows, [0, 0, 1, 1])["subject"]
    assert (found["ours"], found["theirs"], found["difference"]) == (100, 87.5, 12.5)
    assert found["error"] == pytest.approx(12.5) and found["lower_bound"] == pytest.approx(12.5 - 6.3138 * 12.5, 1e-3)
    assert quality.compare_measures(rows[:1], [0])["subject"]["lower_bound"] is None


def test_prompts_are_fresh_and_the_same_at_every_call() -> None:
    cases = list(quality.list_cases("video", 5, 2))
    assert cases == list(quality.list_cases("video", 5, 2)) and len({case.prompt for case in cases}) == 5
    assert len({case.seed for case in cases}) == 10
    assert not {case.prompt for case in cases} & {*quality.DEVELOPMENT_PROMPTS}
    assert all({"subject", "colour", "scene", "motion"} <= quality.parse_prompt(case.prompt).keys() for case in cases)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers' deprecated pipeline
@pytest.mark.parametrize("mode", [pytest.param("text2video-zero", marks=pytest.mark.soak), "controlnet", "training"])
def test_both_sides_make_equal_frames(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(frames, "measure_peak", lambda *given: 1.0)  # two processes
    monkeypatch.setattr(frames, "find_fastest", lambda measure, dtypes, formats: [frames_trial(dtypes[0])])
    row = frames.compare_frames(mode, "float32", Setting("torch", repeats=1, quick=True))
    assert row["equal_output"] and row["their_difference"] == 0 and row["speedup"] > 0


def frames_trial(dtype: str) -> Any:
    from kineograph_lab.bench.timing import Trial, Variant

    return Trial(Variant(dtype, 1), 1.0)
