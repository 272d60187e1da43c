"""Networks by OpenVINO: equal to torch for every input that a forward pass has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from tiny_temporal import CONFIGS, VIDRD, condition_for, trained
from tiny_unets import TOKEN_WIDTH, randomised, sd2, sdxl, unet, with_ip_adapters, with_temporal_layers
from torch import Tensor

from kineograph.models.conditioning.condition import Condition
from kineograph.models.openvino.cache import GraphCache
from kineograph.models.openvino.engine import Engine
from kineograph.models.temporal.adapters import MotionAdapter, SpatialAdapter
from kineograph.models.unet.controlnet import VideoControlNet
from kineograph.models.unet.cross_attention import project_image_tokens
from kineograph.models.unet.deepcache import DeepFeatures, with_features
from kineograph.models.unet.frame_attention import first, first_and_previous
from kineograph.models.unet.video_unet import RunLayers, VideoUNet
from kineograph.models.unet.windows import FrameWindow, pyramid

pytestmark = pytest.mark.slow  # each graph takes a second

B, F, T = 2, 4, 481.0


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(GraphCache(tmp_path))


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Z, COND = random_tensor(B, F, 4, 8, 8), Condition(random_tensor(B, 5, TOKEN_WIDTH))


def check_equal(engine: Engine, net: VideoUNet, condition: Condition = COND, **given: object) -> None:
    wanted = net(Z, T, condition, **given)
    got = net(Z, T, condition, run_layers=engine.run_unet(net), **given)
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_image_network(engine: Engine) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers), list(root.filters)
    check_equal(engine, VideoUNet(sd2()), frame_attention=first)
    assert before == (root.level, root.handlers, root.filters)


def test_sdxl(engine: Engine) -> None:
    condition = Condition(COND.tokens, embedding=random_tensor(B, 6 * 4 + 10))
    check_equal(engine, VideoUNet(sdxl()), condition, frame_attention=first_and_previous)


@pytest.mark.soak
def test_tokens_and_embedding_of_each_frame(engine: Engine) -> None:
    net = VideoUNet(unet())
    condition = Condition(random_tensor(B, F, 5, TOKEN_WIDTH))
    check_equal(engine, net, condition, frame_attention=first)


def test_image_tokens(engine: Engine) -> None:
    net = with_ip_adapters(unet(), [0.5, 0.8])
    images = project_image_tokens(net, [random_tensor(B, 1, 6), random_tensor(B, 1, 6)])
    check_equal(engine, VideoUNet(net), Condition(COND.tokens, image_tokens=images, image_scale=0.7))


@pytest.mark.parametrize(
    "name", [pytest.param("videocrafter i2v", marks=pytest.mark.soak), "vidrd"]
)  # all kinds of temporal layers
def test_video_networks(engine: Engine, name: str) -> None:
    config = CONFIGS.get(name, VIDRD)
    net = randomised(with_temporal_layers(config))
    windows = [FrameWindow(range(3), pyramid(3)), FrameWindow(range(1, 4), pyramid(3))]
    check_equal(engine, net, condition_for(config))
    check_equal(engine, net, condition_for(config), attention_windows=lambda frames: windows)


@pytest.mark.soak
def test_adapters_have_the_scale_of_each_video(engine: Engine) -> None:
    net = randomised(with_temporal_layers(CONFIGS["modelscope"]))
    net = VideoUNet(
        net.image_unet,
        net.temporal,
        motion_adapter=trained(MotionAdapter(net.temporal)),
        spatial_adapter=trained(SpatialAdapter(net.temporal)),
    )
    check_equal(engine, net, motion_scale=torch.tensor([0.5, -1.0]), spatial_scale=0.3)
    check_equal(engine, net, motion_scale=0.5)


@pytest.mark.parametrize("deep", [pytest.param(False, marks=pytest.mark.soak), True])
def test_memory_of_earlier_frames(engine: Engine, *, deep: bool) -> None:
    net = VideoUNet(unet())

    def in_chunks(t: float, run_layers: RunLayers) -> Tensor:
        cache = {}
        parts = [
            net(
                Z[:, a:b], t, COND, frame_attention=first_and_previous, frames=range(a, b), cache=cache,
                run_layers=run_layers,
            )
            for a, b in pairwise((0, 2, 3, 4))
        ]  # fmt: skip
        return torch.cat(parts, dim=1)

    def run(run_layers: RunLayers) -> Tensor:
        if not deep:
            return in_chunks(T, run_layers)
        features = DeepFeatures(1, False, {})
        in_chunks(521.0, with_features(run_layers, features))
        return in_chunks(T, with_features(run_layers, features._replace(reuse=True)))

    wanted, got = run(VideoUNet.run_layers), run(engine.run_unet(net))
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_controlnet(engine: Engine) -> None:
    torch.manual_seed(2)
    control = ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(4, 8)).eval()
    for weight in control.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    net, maps = VideoControlNet(control), [random_tensor(F, 8, 8, 8)]
    wanted, wanted_mid = net(Z, T, COND, maps, frame_attention=first)
    got, mid = net(Z, T, COND, maps, frame_attention=first, run_layers=engine.run_controlnet(net))
    for one, other in zip((*got, mid), (*wanted, wanted_mid), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.soak
def test_changed_weights_are_converted_again(engine: Engine) -> None:
    net = VideoUNet(unet())
    check_equal(engine, net)
    net.image_unet.conv_out.weight.mul_(2)
    check_equal(engine, net)


def test_graphs_are_stored_and_opened_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = VideoUNet(unet())
    check_equal(Engine(GraphCache(tmp_path)), net)
    monkeypatch.setattr("kineograph.models.openvino.engine.convert", None)  # an error if it were called
    check_equal(Engine(GraphCache(tmp_path)), net)


def test_bfloat16_is_as_near_to_float32_as_torchs(engine: Engine) -> None:
    net = VideoUNet(unet())
    exact = net(Z, T, COND)
    half = net.to(torch.bfloat16)
    torch_error = (half(Z, T, COND) - exact).square().mean()
    error = (half(Z, T, COND, run_layers=engine.run_unet(half)) - exact).square().mean()
    assert error <= 4 * torch_error
