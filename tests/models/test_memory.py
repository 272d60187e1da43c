"""Prediction of a run's peak memory, the settings by which it fits, tiles of the VAE, and offloading from `load`."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.public_layouts import sd, sdxl

import kineograph as kg
from kineograph.cli.options import _form
from kineograph.errors import InputError, InputWarning
from kineograph.generation import call
from kineograph.models import memory
from kineograph.models.description import Networks, describe_model
from kineograph.models.hooks import add_offloading, is_offloaded
from kineograph.models.memory import (
    Measured,
    Run,
    Weights,
    check_fits,
    count_live_bytes,
    fit_run,
    measure,
    parse_memory_size,
)
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae.autoencoder import tiled
from kineograph.options import declared
from kineograph.request import ImageModelOptions

SMALL: Any = {"num_frames": 2, "num_inference_steps": 1, "height": 64, "width": 64, "seed": 0}
RUN = Run(videos=1, frames=4, height=64, width=64)
pytestmark = pytest.mark.filterwarnings("ignore:.*trained at:kineograph.errors.InputWarning")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> kg.Model:
    return kg.load(sd(), dtype="float32")


def on_gpu(model: kg.Model, **more: Any) -> kg.Model | Any:
    """Return the description of a model that would be on a GPU, where nothing but its tensors counts."""
    found = describe_model(model)
    networks: Networks = found.networks._replace(device="cuda", loaded=False, **more)  # type: ignore[union-attr]
    return replace(found, networks=networks)


@pytest.mark.parametrize(("text", "size"), [("6GB", 6e9), (" 1.5 GiB", 1.5 * 2**30), ("500mb", 5e8)])
def test_sizes_are_read(text: str, size: float) -> None:
    assert parse_memory_size(text) == size


@pytest.mark.parametrize("text", ["6", "GB", "-6GB", "6 QB", "0GB", "1e9B"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="`memory` is a size such as 6GB"):
        parse_memory_size(text)


@pytest.mark.parametrize("layout", [sd, pytest.param(sdxl, marks=pytest.mark.slow)])
def test_measured_bytes_are_those_of_the_networks(layout: Any) -> None:
    """The same operations on real tensors have as many bytes alive at once."""
    model = kg.load(layout(), dtype="float32")
    net: VideoUNet = model.net
    net.to(memory_format=torch.channels_last)
    found = measure(describe_model(model).networks, None, RUN)  # type: ignore[arg-type]
    assert found.weights.unet == sum(4 * each.numel() for each in net.image_unet.parameters())
    real = count_live_bytes(lambda: memory._evaluate_unet(net, 4, 8, 8), net)
    assert found.unet + 4 * found.unet_of_a_frame == pytest.approx(real, rel=0.02)


@pytest.mark.slow
def test_a_video_model_is_measured_with_its_temporal_layers() -> None:
    model = kg.load("pocket-video", dtype="float32")
    found = measure(describe_model(model).networks, model.temporal, Run(1, 8, 64, 64))  # type: ignore[arg-type]
    networks = (model.net.image_unet, model.net.temporal)
    assert found.weights.unet == sum(4 * each.numel() for net in networks for each in net.parameters())
    assert found.unet > 0


@pytest.mark.slow
def test_the_memory_of_many_tiles_follows_from_that_of_few(model: kg.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: Networks = describe_model(model).networks  # type: ignore[assignment]
    side = 4 * tiled(model.vae).tile_sample_min_size
    run = Run(1, 1, side, side)
    estimated = measure(networks, None, run).vae_tiled
    monkeypatch.setattr(memory, "MEASURED_TILES", (3, 100))
    assert estimated == pytest.approx(measure(networks, None, run).vae_tiled, rel=0.15)


MEASURED = Measured(Weights(unet=400, vae=100, text=100), 10, 40, vae=500, vae_tiled=100)


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        (1100, RUN),  # 600 of weights, and 500 of the VAE
        (1099, RUN._replace(vae_tiling=True)),
        (700, RUN._replace(vae_tiling=True, frames=2)),
        (699, RUN._replace(offload="model")),
        (500, RUN._replace(offload="model", frames=2, vae_tiling=True)),
        (170, RUN._replace(offload="sequential", vae_tiling=True)),
        (100, RUN._replace(offload="sequential", vae_tiling=True, frames=2)),
    ],
)
def test_as_little_is_changed_as_fits(
    limit: float, chosen: Run, model: kg.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "measure", lambda *_: MEASURED)
    assert fit_run(on_gpu(model), RUN, limit, by_frames_alone=False) == chosen


def test_what_does_not_fit_at_all_is_refused(model: kg.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure", lambda *_: MEASURED)
    with pytest.raises(InputError, match=r"needs about 0.0 GB .* take a size below 64 x 64 or `dtype` bfloat16$"):
        fit_run(on_gpu(model), RUN, 99, by_frames_alone=False)


def test_a_run_that_needs_more_than_is_free_is_said_before_weights_load(
    model: kg.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 1.0)
    monkeypatch.setattr(memory, "measure", lambda *_: MEASURED)
    with pytest.warns(InputWarning, match=r"needs about .* and there are 0.0 GB: take a `chunk_size` below 4"):
        check_fits(on_gpu(model), RUN)


def test_memory_changes_the_chunks_and_no_frames(model: kg.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = kg.generate(model, "a", **SMALL)
    monkeypatch.setattr(memory, "resident_memory", lambda: 0.0)
    found = kg.generate(model, "a", memory="40MB", **SMALL)
    assert np.array_equal(found.frames, wanted.frames) and "memory" not in found.settings
    assert kg.generate(model, "a", chunk_size="auto", **SMALL).settings["chunk_size"] == 2


def test_too_little_memory_is_refused_before_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match="pocket needs about .* and there are 0.1 GB: take a size below 128 x 128"):
        kg.generate("pocket", "a red fish", memory="100MB", num_inference_steps=1)


def test_tiles_are_recorded_and_leave_the_vae_as_it_is(model: kg.Model) -> None:
    large = SMALL | {"height": 160, "width": 160, "num_frames": 1}
    whole, tiles = (kg.generate(model, "a", vae_tiling=each, **large) for each in (False, True))
    assert tiles.settings["vae_tiling"] is True and not model.vae.use_tiling
    assert 0 < np.abs(whole.frames.astype(float) - tiles.frames).mean() < 40


def test_temporal_decoder_refuses_tiles(model: kg.Model) -> None:
    with pytest.raises(InputError, match="`vae_tiling` does nothing with a temporal decoder"):
        tiled(model.vae, object())


@pytest.mark.parametrize("way", ["model", "sequential", "group"])
def test_offloaded_networks_generate_the_same_frames(way: Any, model: kg.Model) -> None:
    wanted = kg.generate(model, "a", **SMALL)
    moved = replace(model, net=copy.deepcopy(model.net), vae=copy.deepcopy(model.vae))
    add_offloading([moved.net.image_unet, moved.vae], torch.device("cpu"), way)
    assert is_offloaded(moved.net.image_unet)
    for _ in range(2):
        assert np.array_equal(kg.generate(moved, "a", **SMALL).frames, wanted.frames)
    on_meta = [each.is_meta for each in moved.net.image_unet.parameters()]
    assert all(on_meta) == (way == "sequential")


def test_offloading_is_refused_on_a_cpu() -> None:
    with pytest.raises(InputError, match="`offload` does nothing here: .* the device is the CPU"):
        kg.load(device="cpu", offload="sequential")
    with pytest.raises(InputError, match="`offload` does nothing for a pipeline"):
        kg.load(sd(), offload="model")


def test_chunk_size_is_a_number_or_auto_on_the_command_line() -> None:
    form = _form(declared(ImageModelOptions)["chunk_size"])
    assert [form.parse(text, "") for text in ("4", "auto", "x")] == [4, "auto", "x"]


PEAK = """
import sys
from pathlib import Path
import kineograph as kg

video = kg.generate("pocket", "a red fish", num_frames=int(sys.argv[1]), num_inference_steps=1, seed=0, engine="torch")
video.save(sys.argv[2])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    """In processes of their own, since a process keeps its peak."""
    peaks = []
    for frames in (16, 1000):
        command = [sys.executable, "-W", "ignore", "-c", PEAK, str(frames), str(tmp_path / f"{frames}.mp4")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] / peaks[0] <= 1.1
