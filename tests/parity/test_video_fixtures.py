"""Networks of released layouts with random weights equal the outputs recorded from the papers' own code."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kineograph.models.conditioning.condition import Condition
from kineograph.models.formats import videocrafter, vidrd
from kineograph.models.formats.architecture import AssumedSettings
from kineograph.models.unet import cross_attention
from kineograph.models.unet.video_unet import VideoUNet

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
TOLERANCE = 1e-4
TINY = AssumedSettings(head_width=16, resampler_head_width=8)
VIDEOCRAFTERS = ("videocrafter_t2v_512", "videocrafter_t2v_1024", "videocrafter_i2v_512")
PARAMETERS = {"t2v_512_v1.0": 1144.5, "t2v_1024_v1.0": 1146.5, "i2v_512_v1.0": 1438.8 + 48.5}  # millions

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures are not beside this checkout"),
]


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def read_fixture(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a fixture, and its inputs and outputs."""
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    recorded = {key: tensors.pop(key) for key in list(tensors) if key.startswith(("in.", "out."))}
    return tensors, recorded


def relative_difference(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def same(exported: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    return exported.keys() == tensors.keys() and all(torch.equal(exported[name], tensors[name]) for name in tensors)


def output(net: VideoUNet, recorded: dict[str, Tensor], image_tokens: Tensor | None = None) -> Tensor:
    rate = recorded["in.fps"][:, None].float() if "in.fps" in recorded else None
    cond = Condition(recorded["in.context"], image_tokens, embedding=rate)
    return net(recorded["in.x"].transpose(1, 2), recorded["in.timesteps"], cond).transpose(1, 2)


@pytest.mark.parametrize("name", VIDEOCRAFTERS)
def test_videocrafter_fixture(name: str) -> None:
    tensors, recorded = read_fixture(name)
    net = videocrafter.video_unet_from_videocrafter(tensors, name, TINY)
    tokens = None
    if "in.image_features" in recorded:
        tokens = cross_attention.project_image_tokens(net.image_unet, [recorded["in.image_features"][:, None]])
        assert relative_difference(tokens, recorded["out.image_tokens"]) < TOLERANCE
    assert relative_difference(output(net, recorded, tokens), recorded["out.eps"]) < TOLERANCE
    assert same(videocrafter.to_videocrafter(net), tensors)


def test_vidrd_fixture() -> None:
    tensors, recorded = read_fixture("vidrd_unet")
    net = vidrd.video_unet_from_vidrd(tensors, "vidrd", AssumedSettings(head_width=16, groups=8))
    assert relative_difference(output(net, recorded), recorded["out.eps"]) < TOLERANCE
    assert same(vidrd.to_vidrd(net), tensors)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_key_of_a_full_size_videocrafter_is_mapped(name: str) -> None:
    shapes = json.loads(gzip.decompress((FIXTURES / "videocrafter_full_size_shapes.json.gz").read_bytes()))[name]
    net = videocrafter.video_unet_from_videocrafter(
        {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, name
    )
    exported = videocrafter.to_videocrafter(net)
    assert {key: list(each.shape) for key, each in exported.items()} == shapes
    count = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert count == pytest.approx(PARAMETERS[name], abs=0.1)
    transformers = [each for each in net.temporal.names if "attentions" in each or each == "conv_in"]
    assert len(transformers) == 17
