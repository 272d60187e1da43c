"""VideoUNet with temporal layers equals diffusers' own video networks."""

import pytest
import tiny_unets
import torch
from diffusers import UNetMotionModel
from tiny_videos import TOKENS, Z, adapter, animatediff, modelscope, off

from kineograph.hub import HubOptions
from kineograph.models.conditioning.condition import Condition
from kineograph.models.formats import animatediff as animatediff_layout
from kineograph.models.formats import key_map
from kineograph.models.formats import modelscope as modelscope_layout
from kineograph.models.loading import motion_modules
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
T = torch.tensor([7, 500])
VERSIONS = {
    "1, without the mid block": {"use_motion_mid_block": False},
    "2, with the mid block": {"motion_max_seq_length": 32},
    "deeper": {"temporal_transformer_layers_per_block": 2, "temporal_transformer_layers_per_mid_block": 2},
}


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def diffusers_output(net: UNetMotionModel) -> torch.Tensor:
    tokens = TOKENS.repeat_interleave(Z.shape[1], dim=0)
    return net(Z.transpose(1, 2), T, tokens).sample.transpose(1, 2)


@pytest.mark.parametrize("settings", VERSIONS.values(), ids=VERSIONS.keys())
def test_animatediff(settings: dict) -> None:
    net = animatediff(**settings)
    assert (
        off(animatediff_layout.video_unet_from_animatediff(net)(Z, T, Condition(TOKENS)), diffusers_output(net))
        < TOLERANCE
    )


def test_animatediff_around_another_image_unet() -> None:
    unet = tiny_unets.unet(block_out_channels=(8, 16, 32), layers_per_block=2)
    motion = adapter(block_out_channels=(8, 16, 32), motion_layers_per_block=2)
    whole = UNetMotionModel.from_unet2d(unet, motion).eval()
    found = motion_modules.read_temporal_weights(motion, HubOptions())
    layers = TemporalLayers(unet, found.config)
    key_map.load_tensors(layers, found.tensors, found.key_map(layers, found.tensors), "the adapter")
    assert off(VideoUNet(unet, layers.eval())(Z, T, Condition(TOKENS)), diffusers_output(whole)) < TOLERANCE


def test_modelscope() -> None:
    net = modelscope()
    wanted = net(Z.transpose(1, 2), T, TOKENS).sample.transpose(1, 2)
    split = modelscope_layout.video_unet_from_modelscope(net)
    assert off(split(Z, T, Condition(TOKENS)), wanted) < TOLERANCE
    assert split.image_unet.conv_in.weight.data_ptr() == net.conv_in.weight.data_ptr(), "the weights are shared"


def test_a_video_of_one_frame_is_an_image() -> None:
    """Temporal layers do not apply to a single frame; diffusers applies them."""
    split = modelscope_layout.video_unet_from_modelscope(modelscope())
    image = VideoUNet(split.image_unet)(Z[:, :1], T, Condition(TOKENS))
    assert torch.equal(split(Z[:, :1], T, Condition(TOKENS)), image)
