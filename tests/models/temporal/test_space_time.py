"""Space-time U-Net: temporal down- and upsampling beside the image U-Net's own."""

from dataclasses import replace

import pytest
import torch
from tiny_unets import TOKEN_WIDTH, randomised, with_temporal_layers
from torch import Tensor

from kineograph.errors import InputError
from kineograph.models.conditioning.condition import Condition
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
COND = Condition(torch.randn(2, 5, TOKEN_WIDTH, generator=torch.Generator().manual_seed(5)))
T = 481.0


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
@pytest.mark.parametrize("frames", [2, 7, 8, 16])
def test_untrained_it_equals_the_image_unet_on_equal_frames(frames: int) -> None:
    net, z = with_temporal_layers(LUMIERE), random_tensor(2, 1, 4, 8, 8).expand(-1, frames, -1, -1, -1)
    torch.testing.assert_close(net(z, T, COND), VideoUNet(net.image_unet)(z, T, COND))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 5, 16])
def test_the_number_of_frames_is_unchanged(frames: int) -> None:
    assert randomised(with_temporal_layers(LUMIERE))(random_tensor(2, frames, 4, 8, 8), T, COND).shape == (
        2,
        frames,
        4,
        8,
        8,
    )


@torch.no_grad()
def test_a_single_frame_is_not_resampled() -> None:
    net, z = randomised(with_temporal_layers(LUMIERE)), random_tensor(2, 1, 4, 8, 8)
    assert torch.equal(net(z, T, COND), VideoUNet(net.image_unet)(z, T, COND))


@torch.no_grad()
def test_frames_of_a_video_interact_and_videos_of_a_batch_do_not() -> None:
    net, z = randomised(with_temporal_layers(LUMIERE)), random_tensor(2, 8, 4, 8, 8)
    changed = z.clone()
    changed[0, 0] += 1
    moved = (net(changed, T, COND) - net(z, T, COND)).abs().amax((2, 3, 4))
    assert (moved[0] > 1e-5).all()
    assert (moved[1] < 1e-6).all()


@torch.no_grad()
def test_a_batch_equals_its_videos_alone() -> None:
    net, z = randomised(with_temporal_layers(LUMIERE)), random_tensor(2, 8, 4, 8, 8)
    alone = [net(z[k : k + 1], T, replace(COND, tokens=COND.tokens[k : k + 1])) for k in range(2)]
    torch.testing.assert_close(net(z, T, COND), torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_untrained_resampling_averages_and_repeats_frames() -> None:
    x = random_tensor(1, 6, 8, 3, 3)[0]
    fewer = TemporalDownsample(8, 4)(x, 6)
    torch.testing.assert_close(fewer[0], x[:4].mean(0))
    torch.testing.assert_close(fewer[1], (x[4] + 3 * x[5]) / 4)
    torch.testing.assert_close(TemporalUpsample(8, 4)(fewer, 2), fewer.repeat_interleave(4, dim=0))


def test_attention_is_at_the_lowest_resolution_and_convolutions_elsewhere() -> None:
    after = dict(with_temporal_layers(LUMIERE).temporal.after.named_modules())
    attention = {name for name, layer in after.items() if isinstance(layer, TemporalTransformer)}
    convolution = {name for name, layer in after.items() if isinstance(layer, TemporalConv)}
    assert {name.split(".resnets")[0].split(".attentions")[0] for name in attention} == {
        "down_blocks.2", "mid_block", "up_blocks.0",
    }  # fmt: skip
    assert {name.split(".resnets")[0] for name in convolution} == {
        "down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2",
    }  # fmt: skip


def test_gradients_reach_the_resampling_layers() -> None:
    net = with_temporal_layers(LUMIERE)
    net(random_tensor(2, 8, 4, 8, 8), T, COND).square().mean().backward()
    layers = [layer for layer in net.temporal.modules() if isinstance(layer, TemporalDownsample | TemporalUpsample)]
    assert len(layers) == 4
    assert all(layer.filter.weight.grad.abs().sum() > 0 for layer in layers)


def test_a_factor_for_every_downsampler_is_required() -> None:
    with pytest.raises(InputError, match="2 downsamplers"):
        with_temporal_layers(
            TemporalConfig(layers=(*LUMIERE.layers[:2], (Site("resampler"), ResamplingConfig(factors=(2,)))))
        )


@torch.no_grad()
def test_conditions_of_single_frames_are_refused() -> None:
    net, z = with_temporal_layers(LUMIERE), random_tensor(2, 8, 4, 8, 8)
    with pytest.raises(InputError, match="ControlNet"):
        net(z, T, replace(COND, residuals=lambda *arguments: None))
    with pytest.raises(InputError, match="frame_attention=own"):
        net(z, T, COND, frame_attention=first)
