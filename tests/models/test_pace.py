"""A space-time U-Net: fewer frames where pictures are small, and the image network's answer where a video stands."""

from dataclasses import replace

import pytest
import torch
from tiny_unets import READS, along_time, stirred
from torch import Tensor

from kineograph.condition import Condition
from kineograph.errors import InputError
from kineograph.models.temporal.config import ConvConfig, ResamplingConfig, Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.layers import TemporalConv, TemporalDownsample, TemporalTransformer, TemporalUpsample
from kineograph.models.unet.frame_attention import first
from kineograph.models.unet.video_unet import VideoUNet

LUMIERE = TemporalConfig(
    layers=(
        (Site("resnet", resolution="higher"), ConvConfig(count=2)),
        (Site("stage", resolution="lowest"), TransformerConfig(head_width=8, relative=8)),
        (Site("resampler"), ResamplingConfig(factors=(2, 2))),
    )
)
TOLD = Condition(torch.randn(2, 5, READS, generator=torch.Generator().manual_seed(5)))
T = 481.0


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
@pytest.mark.parametrize("frames", [2, 7, 8, 16])
def test_untrained_it_says_of_a_still_video_what_the_image_network_says(frames: int):
    net, z = along_time(LUMIERE), drawn(2, 1, 4, 8, 8).expand(-1, frames, -1, -1, -1)
    torch.testing.assert_close(net(z, T, TOLD), VideoUNet(net.image_unet)(z, T, TOLD))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 5, 16])
def test_it_gives_as_many_frames_as_it_is_given(frames: int):
    assert stirred(along_time(LUMIERE))(drawn(2, frames, 4, 8, 8), T, TOLD).shape == (2, frames, 4, 8, 8)


@torch.no_grad()
def test_a_single_frame_passes_by_bit_for_bit():
    net, z = stirred(along_time(LUMIERE)), drawn(2, 1, 4, 8, 8)
    assert torch.equal(net(z, T, TOLD), VideoUNet(net.image_unet)(z, T, TOLD))


@torch.no_grad()
def test_frames_see_each_other_and_videos_do_not():
    net, z = stirred(along_time(LUMIERE)), drawn(2, 8, 4, 8, 8)
    changed = z.clone()
    changed[0, 0] += 1
    moved = (net(changed, T, TOLD) - net(z, T, TOLD)).abs().amax((2, 3, 4))
    assert (moved[0] > 1e-5).all()
    assert (moved[1] < 1e-6).all()


@torch.no_grad()
def test_a_batch_is_its_videos_one_by_one():
    net, z = stirred(along_time(LUMIERE)), drawn(2, 8, 4, 8, 8)
    alone = [net(z[k : k + 1], T, replace(TOLD, tokens=TOLD.tokens[k : k + 1])) for k in range(2)]
    torch.testing.assert_close(net(z, T, TOLD), torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_untrained_layers_take_means_and_repeat():
    x = drawn(1, 6, 8, 3, 3)[0]
    fewer = TemporalDownsample(8, 4)(x, 6)
    torch.testing.assert_close(fewer[0], x[:4].mean(0))
    torch.testing.assert_close(fewer[1], (x[4] + 3 * x[5]) / 4)
    torch.testing.assert_close(TemporalUpsample(8, 4)(fewer, 2), fewer.repeat_interleave(4, dim=0))


def test_attention_stands_at_the_coarsest_level_and_convolutions_elsewhere():
    after = dict(along_time(LUMIERE).temporal.after.named_modules())
    attention = {name for name, layer in after.items() if isinstance(layer, TemporalTransformer)}
    convolution = {name for name, layer in after.items() if isinstance(layer, TemporalConv)}
    assert {name.split(".resnets")[0].split(".attentions")[0] for name in attention} == {
        "down_blocks.2", "mid_block", "up_blocks.0",
    }  # fmt: skip
    assert {name.split(".resnets")[0] for name in convolution} == {
        "down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2",
    }  # fmt: skip


def test_gradients_reach_what_changes_the_number_of_frames():
    net = along_time(LUMIERE)
    net(drawn(2, 8, 4, 8, 8), T, TOLD).square().mean().backward()
    paces = [layer for layer in net.temporal.modules() if isinstance(layer, TemporalDownsample | TemporalUpsample)]
    assert len(paces) == 4
    assert all(layer.filter.weight.grad.abs().sum() > 0 for layer in paces)


def test_a_number_for_every_downsampler_is_asked_for():
    with pytest.raises(InputError, match="2 downsamplers"):
        along_time(TemporalConfig(layers=(*LUMIERE.layers[:2], (Site("resampler"), ResamplingConfig(factors=(2,))))))


@torch.no_grad()
def test_nothing_can_be_said_to_single_frames():
    net, z = along_time(LUMIERE), drawn(2, 8, 4, 8, 8)
    with pytest.raises(InputError, match="ControlNet"):
        net(z, T, replace(TOLD, residuals=lambda *given: None))
    with pytest.raises(InputError, match="frame_attention=own"):
        net(z, T, TOLD, frame_attention=first)
