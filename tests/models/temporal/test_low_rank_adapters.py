"""Still-Moving's motion and spatial adapters: equal to their formula; no effect untrained or at scale 0."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_temporal import COND, COND_WITHOUT_RATE, CONFIGS, VIDRD, B, T, Z, condition_for, trained
from tiny_unets import randomised, unet, with_temporal_layers
from torch.utils.checkpoint import checkpoint

from kineograph.errors import InputError
from kineograph.models.temporal.adapters import (
    MOTION_ADAPTER,
    AdapterConfig,
    LowRankBranch,
    MotionAdapter,
    SpatialAdapter,
    check_scale_shape,
)
from kineograph.models.temporal.config import TemporalConfig
from kineograph.models.temporal.layers import TemporalAttention
from kineograph.models.unet.video_unet import VideoUNet

FAMILIES = {**CONFIGS, "vidrd": VIDRD}
each_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
SMALL = AdapterConfig(rank=3, layers=("to_q", "to_k", "to_v"))
BEFORE = AdapterConfig(rank=3, layers=("conv_in", "resnets", "attentions"))


def adapted(net: VideoUNet) -> VideoUNet:
    """Return the network with both adapters, with random weights."""
    motion, spatial = MotionAdapter(net.temporal, SMALL), SpatialAdapter(net.temporal, BEFORE)
    return VideoUNet(
        net.image_unet, net.temporal, motion_adapter=trained(motion), spatial_adapter=trained(spatial)
    ).eval()


@torch.no_grad()
@each_family
def test_untrained_adapters_and_adapters_at_scale_0_change_no_bit(config: TemporalConfig) -> None:
    net, cond = randomised(with_temporal_layers(config)), condition_for(config)
    plain = net(Z, T, cond)
    new = VideoUNet(
        net.image_unet,
        net.temporal,
        motion_adapter=MotionAdapter(net.temporal),
        spatial_adapter=SpatialAdapter(net.temporal),
    )
    assert torch.equal(new(Z, T, cond, motion_scale=-1.0), plain)
    off = torch.zeros(B)
    for motion, spatial in ((0.0, 0.0), (off, off)):
        assert torch.equal(adapted(net)(Z, T, cond, motion_scale=motion, spatial_scale=spatial), plain)


@torch.no_grad()
@each_family
def test_a_motion_adapter_equals_a_change_of_the_projection_weights(config: TemporalConfig) -> None:
    net, scale = adapted(randomised(with_temporal_layers(config))), -0.7
    merged = deepcopy(net.temporal)
    for name in net.motion_adapter.names:
        branch = net.motion_adapter.beside.get_submodule(name)
        merged.get_submodule(name).weight += scale * branch.lora_B.weight @ branch.lora_A.weight
    count = sum(isinstance(layer, TemporalAttention) for layer in net.temporal.modules())
    assert len(net.motion_adapter.names) == 3 * count > 0
    got = net(Z, T, condition_for(config), motion_scale=scale, spatial_scale=0.0)
    torch.testing.assert_close(
        got, VideoUNet(net.image_unet, merged)(Z, T, condition_for(config)), atol=1e-4, rtol=1e-4
    )
    assert (got - net(Z, T, condition_for(config), spatial_scale=0.0)).abs().max() > 1e-3


@torch.no_grad()
@each_family
def test_scales_of_single_videos_equal_those_videos_alone(config: TemporalConfig) -> None:
    net, motion, spatial = (
        adapted(randomised(with_temporal_layers(config))),
        torch.tensor([1.0, -0.5]),
        torch.tensor([0.0, 1.0]),
    )
    cond = condition_for(config)
    got = net(Z, T, cond, motion_scale=motion, spatial_scale=spatial)
    for k in range(B):
        own = None if cond.embedding is None else cond.embedding[k : k + 1]
        alone = net(
            Z[k : k + 1], T, replace(cond, tokens=cond.tokens[k : k + 1], embedding=own),
            motion_scale=motion[k].item(), spatial_scale=spatial[k].item(),
        )  # fmt: skip
        torch.testing.assert_close(got[k : k + 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_spatial_adapter_after_a_linear_layer_equals_a_change_of_its_weights() -> None:
    net = randomised(with_temporal_layers(FAMILIES["videocrafter t2v"]))
    spatial = trained(SpatialAdapter(net.temporal, AdapterConfig(rank=3, layers=("conv_in",))))
    got = VideoUNet(net.image_unet, net.temporal, spatial_adapter=spatial)(Z, T, COND, spatial_scale=0.8)
    merged = deepcopy(net.image_unet)
    branch, conv = spatial.behind.conv_in, merged.conv_in
    change = torch.eye(conv.out_channels) + 0.8 * branch.lora_B.weight @ branch.lora_A.weight
    conv.weight.copy_(torch.einsum("o c, c i y x -> o i y x", change, conv.weight))
    conv.bias.copy_(change @ conv.bias)
    torch.testing.assert_close(got, VideoUNet(merged, net.temporal)(Z, T, COND), atol=1e-4, rtol=1e-4)


@each_family
def test_a_spatial_adapter_has_a_branch_before_every_temporal_layer(config: TemporalConfig) -> None:
    net = with_temporal_layers(config)
    assert SpatialAdapter(net.temporal).names == net.temporal.names
    some = SpatialAdapter(net.temporal, AdapterConfig(rank=1, layers=("attentions",))).names
    assert some == [name for name in net.temporal.names if ".attentions." in name]


@torch.no_grad()
def test_adapters_do_not_apply_to_a_single_frame() -> None:
    net = adapted(randomised(with_temporal_layers(FAMILIES["modelscope"])))
    cond = condition_for(FAMILIES["modelscope"])
    assert torch.equal(net(Z[:, :1], T, cond, motion_scale=1.0), VideoUNet(net.image_unet)(Z[:, :1], T, cond))


@torch.no_grad()
def test_neither_the_memory_format_nor_an_untrained_lora_changes_the_result() -> None:
    net = adapted(randomised(with_temporal_layers(FAMILIES["videocrafter t2v"])))
    before = net(Z, T, COND, motion_scale=0.5)
    torch.testing.assert_close(
        deepcopy(net).to(memory_format=torch.channels_last)(Z, T, COND, motion_scale=0.5), before, atol=1e-4, rtol=1e-4
    )
    inject_adapter_in_model(LoraConfig(target_modules=["to_q"]), net.temporal)  # untrained, it adds nothing
    torch.testing.assert_close(net(Z, T, COND, motion_scale=0.5), before)
    again = MotionAdapter(net.temporal, SMALL)
    assert {name: each.shape for name, each in again.state_dict().items()} == {
        name: each.shape for name, each in net.motion_adapter.state_dict().items()
    }


def test_gradients_of_adapters_are_the_same_with_gradient_checkpointing() -> None:
    def call_checkpointed(stage, *arguments):
        return checkpoint(stage, *arguments, use_reentrant=False)

    once = adapted(randomised(with_temporal_layers(FAMILIES["videocrafter i2v"])))
    twice = VideoUNet(
        once.image_unet, once.temporal, call_checkpointed,
        motion_adapter=once.motion_adapter, spatial_adapter=once.spatial_adapter,
    )  # fmt: skip
    weights = [*once.motion_adapter.parameters(), *once.spatial_adapter.parameters()]
    scale = torch.tensor([1.0, 0.0])
    wanted, got = (
        torch.autograd.grad(each(Z, T, COND, motion_scale=scale).square().mean(), weights) for each in (once, twice)
    )
    assert all(each.abs().sum() > 0 for each in wanted)
    torch.testing.assert_close(got, wanted)


@torch.no_grad()
def test_a_scale_for_each_sample_multiplies_its_rows() -> None:
    branch = trained(LowRankBranch(4, 6, 2))
    x, scale = torch.randn(6, 3, 4), torch.tensor([2.0, -1.0, 0.0])
    one = branch(x, 1.0)
    assert torch.equal(branch(x, scale), torch.cat([2 * one[:2], -one[2:4], 0 * one[4:]]))


def test_invalid_scales_and_layers_are_refused() -> None:
    net = with_temporal_layers(FAMILIES["videocrafter t2v"])
    with pytest.raises(InputError, match="no motion adapter, .*its own, `motion_adapter`"):
        net(Z, T, COND, motion_scale=1.0)
    with pytest.raises(InputError, match="no temporal layers"):
        VideoUNet(unet())(Z, T, COND_WITHOUT_RATE, motion_scale=1.0)
    with pytest.raises(InputError, match="one for each of the 2 videos of a batch, not a tensor of 3"):
        check_scale_shape("motion_scale", torch.ones(3), B)
    with pytest.raises(InputError, match=r"no layer here is one of to_out: after\.conv_in"):
        MotionAdapter(net.temporal, MOTION_ADAPTER.model_copy(update={"layers": ("to_out",)}))
