"""OpenVINO: choice of the engine, stored graphs, the check of a graph, and whole videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kineograph as kg
from kineograph.errors import InputError
from kineograph.models.openvino import cache, choice, graph
from kineograph.models.openvino.cache import Conversions, GraphCache, StoredGraph
from kineograph.models.openvino.choice import Work, choose_engine

LONG = Work(evaluations=100, latent_pixels=64 * 64 * 64, graphs=1, shape=("text2video-zero", 64))
SHORT = LONG._replace(evaluations=1, latent_pixels=8 * 256)


@pytest.fixture(scope="module")
def model() -> kg.Model:
    return kg.load("pocket", dtype="float32")


def test_auto_takes_openvino_where_it_saves_more_than_the_conversion_takes(model: kg.Model, tmp_path: Path) -> None:
    stored = GraphCache(tmp_path)
    assert choose_engine("auto", model, SHORT, stored).engine == "torch"
    assert choose_engine("auto", model, LONG, stored).engine == "openvino"
    assert choose_engine("torch", model, LONG, stored).engine == "torch"
    assert choose_engine("openvino", model, SHORT, stored).engine == "openvino"


def test_auto_counts_what_earlier_runs_would_have_saved(model: kg.Model, tmp_path: Path) -> None:
    stored, work = GraphCache(tmp_path), LONG._replace(latent_pixels=8 * 256)
    chosen = [choose_engine("auto", model, work, stored).engine for _ in range(12)]
    assert chosen[0] == "torch"
    assert chosen[-1] == "openvino"


def test_auto_takes_openvino_whose_graphs_are_stored(model: kg.Model, tmp_path: Path) -> None:
    stored, work = GraphCache(tmp_path), LONG._replace(latent_pixels=8 * 256)
    key = choose_engine("openvino", model, work, stored).key
    stored.note(key, Conversions(done=True))
    assert choose_engine("auto", model, work, stored).engine == "openvino"


def test_without_the_package_auto_is_torch_and_openvino_is_refused(
    model: kg.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert choose_engine("auto", model, LONG).engine == "torch"
    with pytest.raises(InputError, match=r"pip install 'kineograph\[cpu\]'"):
        kg.generate(model, "a red fish", engine="openvino")


def test_a_network_that_openvino_cannot_compute_is_said(model: kg.Model) -> None:
    hook = model.net.image_unet.conv_in.register_forward_hook(lambda *given: None)
    try:
        assert choose_engine("auto", model, LONG).engine == "torch"
        with pytest.raises(InputError, match="its layers have hooks"):
            choose_engine("openvino", model, LONG)
    finally:
        hook.remove()


def test_damaged_files_of_the_cache_are_passed_over(tmp_path: Path) -> None:
    stored = GraphCache(tmp_path)
    stored.write("a", StoredGraph("f32", np.frombuffer(b"graph", np.uint8), 1.5))
    found = stored.read("a")
    assert found is not None and found.exported is not None
    assert (found.precision, found.exported.tobytes(), found.seconds) == ("f32", b"graph", 1.5)
    (file,) = tmp_path.iterdir()
    for content in (b"", b"[]\n", b"{}\n", file.read_bytes()[:-1], b"\xff\n"):
        file.write_bytes(content)
        assert stored.read("a") is None
        assert stored.conversions("a") == Conversions()


def test_the_cache_has_a_size(tmp_path: Path) -> None:
    stored = GraphCache(tmp_path, max_bytes=1000)
    for name in "abcd":
        stored.write(name, StoredGraph("f32", np.zeros(300, np.uint8), 1.0))
    count, size = stored.size()
    assert size <= 1000
    assert 0 < count < 4
    stored.clear()
    assert stored.size() == (0, 0)


def test_nothing_is_stored_where_the_cache_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "off")
    stored = GraphCache()
    stored.write("a", StoredGraph("f32", np.zeros(5, np.uint8), 1.0))
    assert stored.read("a") is None
    assert stored.size() == (0, 0)


class Scaled:
    """A graph whose outputs are those of a function times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self.factor * torch.tanh(tensors[0])]


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.00001, True), (1.01, False), (float("nan"), False)])
def test_a_graph_that_computes_something_else_is_not_used(factor: float, *, right: bool) -> None:
    network = nn.Linear(1, 1)
    tensors = [torch.randn(64, generator=torch.Generator().manual_seed(0))]

    def body(network: nn.Module, given: list[Tensor]) -> list[Tensor]:
        return [torch.tanh(given[0])]

    assert graph.computes_like_torch(Scaled(factor), "f32", network, network, body, tensors) is right


@pytest.mark.slow
def test_a_video_is_that_of_torch_within_rounding(model: kg.Model) -> None:
    videos = {
        engine: kg.generate(model, "a red fish", num_inference_steps=4, num_frames=4, seed=1, engine=engine)
        for engine in ("torch", "openvino")
    }
    difference = np.abs(np.subtract(*(video.frames.astype(int) for video in videos.values())))
    assert difference.max() <= 1
    assert {name: video.settings["engine"] for name, video in videos.items()} == {
        "torch": "torch",
        "openvino": "openvino",
    }


@pytest.mark.slow
def test_a_replay_uses_the_recorded_engine(model: kg.Model, tmp_path: Path) -> None:
    video = kg.generate(model, "a red fish", num_inference_steps=3, num_frames=2, seed=1, engine="openvino")
    again = kg.replay(video.save(tmp_path / "fish.mp4"), model=model)
    assert again.settings["engine"] == "openvino"
    assert np.array_equal(again.frames, video.frames)
