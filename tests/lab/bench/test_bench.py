"""`kineograph bench` on a tiny network: the comparison, alternating order and peak memory."""

import json

import pytest
import torch

from kineograph.errors import InputError
from kineograph.models.placement import choose_placement
from kineograph_lab.bench import bench, memory
from kineograph_lab.bench.text2video_zero import save_random_pipeline

TINY = {"channels": 32, "side": 8, "text_layers": 1}


def test_unknown_networks_and_modes_are_refused() -> None:
    with pytest.raises(InputError, match="expected pocket or sd15"):
        bench.bench("sdxl")
    with pytest.raises(InputError, match="expected motion or control"):
        bench.bench("pocket", "magic")
    with pytest.raises(InputError, match="at least 7 steps"):
        bench.bench("sd15", steps=3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers' deprecated pipeline
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        pytest.param("motion", torch.bfloat16, marks=pytest.mark.soak),
        ("control", torch.float32),
        ("video", torch.float32),
    ],
)
def test_bench_compares_equal_videos(monkeypatch: pytest.MonkeyPatch, tmp_path, mode, dtype) -> None:
    monkeypatch.setattr(bench, "_peak_gb", lambda mode, side, folder, dtype, frames: memory.peak_memory() / 1e9)
    monkeypatch.setattr(bench, "MATRIX_SIZE", 64)
    monkeypatch.setattr(bench, "choose_placement", lambda: choose_placement()._replace(dtype=dtype))
    if mode != "motion":  # seconds each time, of the same counter
        monkeypatch.setattr(bench, "_count_flops", lambda generate, frames, steps: 1e9)
    messages, file = [], tmp_path / "bench.json"
    rows = bench.bench("sd15", mode, frames=2, steps=7, repeats=1, size=TINY, out=file, log=messages.append)
    assert [row.setting.their_dtype for row in rows] == [*{str(dtype).removeprefix("torch."): 0, "float32": 0}]
    assert len(messages) == 2 * len(rows)
    assert json.loads(file.read_text())[0]["setting"]["frames"] == 2
    assert "times as fast" in bench.format_rows(rows)
    for row in rows:
        assert row.speedup > 0 and row.peak_gb > 0 and row.teraflops > 0
        assert row.difference < 2  # the same video: random weights and bfloat16 allow no more


def test_sides_alternate() -> None:
    calls, setting = [], bench.Setting(2, 7, 3, "float32", "float32")
    sides = {side: lambda *arguments, side=side: calls.append((side, *arguments)) for side in ("ours", "theirs")}
    times = bench._time_alternating(sides, setting, lambda side, seconds: None)
    assert [side for side, *_ in calls] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert {tuple(arguments) for _, *arguments in calls} == {(2, 7)}
    assert {side: len(each) for side, each in times.items()} == {"ours": 3, "theirs": 3}


@pytest.mark.slow
def test_peak_memory_of_a_process(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    save_random_pipeline(tmp_path, **TINY)
    memory.print_peak_memory("motion", "ours", str(tmp_path), "float32", "2", "7")
    assert json.loads(capsys.readouterr().out)["peak_gb"] > 0.1
