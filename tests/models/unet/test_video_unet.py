"""VideoUNet: chunks, cache, conditions, and refused networks. Equality with diffusers is tested in tests/parity."""

from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import CrossFrameAttnProcessor
from tiny_unets import TOKEN_WIDTH, sdxl, unet, with_ip_adapters
from torch import Tensor

from kineograph.errors import InputError
from kineograph.models.conditioning.condition import Condition
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.cross_attention import project_image_tokens
from kineograph.models.unet.frame_attention import FrameAttention, first, first_and_previous, own, previous
from kineograph.models.unet.supported_layers import transformer_blocks
from kineograph.models.unet.video_unet import VideoUNet

B, F, T = 2, 7, 481.0
each_policy = pytest.mark.parametrize(
    "policy", [own, first, previous, first_and_previous], ids=lambda policy: policy.__name__
)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Z, COND = random_tensor(B, F, 4, 8, 8), Condition(random_tensor(B, 5, TOKEN_WIDTH))


def max_difference(got: Tensor, wanted: Tensor) -> float:
    return (got - wanted).abs().max().item()


@pytest.fixture(scope="module")
def net() -> VideoUNet:
    return VideoUNet(unet())


@each_policy
@pytest.mark.parametrize("cuts", [(0, 4, 7), (0, 1, 2, 7)], ids=str)
def test_chunks_with_a_cache_equal_one_call(net: VideoUNet, policy: FrameAttention, cuts: tuple[int, ...]) -> None:
    cache, whole = {}, net(Z, T, COND, frame_attention=policy)
    parts = [
        net(Z[:, a:b], T, COND, frame_attention=policy, frames=range(a, b), cache=cache) for a, b in pairwise(cuts)
    ]
    assert max_difference(torch.cat(parts, dim=1), whole) <= 1e-5


@each_policy
def test_the_cache_does_not_grow_with_the_number_of_frames(net: VideoUNet, policy: FrameAttention) -> None:
    def cache_bytes(frames: int) -> int:
        cache = {}
        for start in range(0, frames, 2):
            net(Z[:, :2], T, COND, frame_attention=policy, frames=range(start, start + 2), cache=cache)
        tensors = (part for layers in cache.values() for pair in layers.values() for part in pair)
        return sum(part.untyped_storage().nbytes() for part in tensors)

    assert cache_bytes(20) == cache_bytes(4)


def test_the_cache_of_an_earlier_clip_anchors_a_later_one(net: VideoUNet) -> None:
    earlier, later, cache = Z[:, :3], Z[:, 3:], {}
    net(earlier, T, COND, frame_attention=first, cache=cache)
    anchored = net(later, T, COND, frame_attention=first, frames=range(1, 5), cache=cache)
    together = net(torch.cat([earlier[:, :1], later], dim=1), T, COND, frame_attention=first)
    assert max_difference(anchored, together[:, 1:]) <= 1e-5
    assert max_difference(anchored, net(later, T, COND, frame_attention=first)) > 1e-3


@each_policy
def test_equal_frames_stay_equal(net: VideoUNet, policy: FrameAttention) -> None:
    """Reduction: equal frames have equal keys and values, whichever are read."""
    still = Z[:, :1].expand(-1, 4, -1, -1, -1)
    assert max_difference(net(still, T, COND, frame_attention=policy), net(still, T, COND)) <= 1e-5


def test_samples_of_a_batch_do_not_mix(net: VideoUNet) -> None:
    alone = [net(Z[j : j + 1], T, Condition(COND.tokens[j : j + 1]), frame_attention=first) for j in range(B)]
    assert max_difference(net(Z, T, COND, frame_attention=first), torch.cat(alone)) <= 1e-5


def test_one_condition_can_be_for_all_samples(net: VideoUNet) -> None:
    cond = Condition(COND.tokens[:1])
    assert max_difference(net(Z, T, cond), net(Z, T, Condition(cond.tokens.expand(B, -1, -1)))) <= 1e-5


def test_tokens_are_projected_once_for_a_condition() -> None:
    net, calls = VideoUNet(unet()), []
    expected = net(Z, T, COND)
    for _, block in transformer_blocks(net.image_unet):
        block.attn2.to_k.register_forward_hook(lambda layer, inputs, _: calls.append(inputs[0].shape))
    key_values = net.project_tokens(COND)
    assert set(calls) == {COND.tokens.shape} and len(calls) == len(key_values)
    assert torch.equal(net(Z, T, COND, key_values=key_values), expected) and len(calls) == len(key_values)


def test_conditions_of_single_frames_are_indexed_by_frame_number() -> None:
    net = VideoUNet(with_ip_adapters(unet(in_channels=6), [0.8]))
    tokens = project_image_tokens(net.image_unet, [random_tensor(B * F, 1, 6)]).unflatten(0, (B, F))
    cond = Condition(COND.tokens, tokens, channels=random_tensor(B, F, 2, 8, 8))
    parts = [net(Z[:, a:b], T, cond, frames=range(a, b)) for a, b in ((0, 3), (3, 7))]
    assert max_difference(torch.cat(parts, dim=1), net(Z, T, cond)) <= 1e-5


def test_channels_of_one_image_are_for_every_frame() -> None:
    net, image = VideoUNet(unet(in_channels=6)), random_tensor(B, 1, 2, 8, 8)
    repeated = net(Z, T, Condition(COND.tokens, channels=image.expand(-1, F, -1, -1, -1)))
    assert torch.equal(net(Z, T, Condition(COND.tokens, channels=image)), repeated)


def test_a_network_in_half_precision_takes_and_returns_float32() -> None:
    net = unet()
    wanted = VideoUNet(net)(Z, T, COND)
    got = VideoUNet(unet().to(torch.bfloat16))(Z, T, COND)
    assert got.dtype == torch.float32
    assert 1e-6 < max_difference(got, wanted) < 0.2 * wanted.std()


def test_gradients_reach_the_network() -> None:
    net = VideoUNet(unet())
    with torch.enable_grad():
        net(Z, T, COND, frame_attention=first).square().mean().backward()
    assert all(weight.grad is not None for weight in net.parameters())


REFUSED = {
    "class_embed_type='timestep'": {"class_embed_type": "timestep"},
    "num_class_embeds=10": {"num_class_embeds": 10},
    "time_embedding_type='fourier'": {"time_embedding_type": "fourier"},
    "addition_embed_type='text'": {"addition_embed_type": "text", "addition_embed_type_num_heads": 2},
    "center_input_sample=True": {"center_input_sample": True},
    "downsample_padding=2": {"downsample_padding": 2},
    "only_cross_attention=True": {"only_cross_attention": True},
    "dual_cross_attention=True": {"dual_cross_attention": True},
    "attention_type='gated'": {"attention_type": "gated"},
    "down_block_types='SimpleCrossAttnDownBlock2D'": {"down_block_types": ("SimpleCrossAttnDownBlock2D",) * 3},
    "mid_block_type='UNetMidBlock2DSimpleCrossAttn'": {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
}  # fmt: skip


@pytest.mark.parametrize(("setting", "settings"), REFUSED.items(), ids=REFUSED)
def test_other_networks_are_refused_by_name(setting: str, settings: dict) -> None:
    with pytest.raises(InputError, match=f"has {setting}, which is not supported: expected .* Stable Diffusion"):
        VideoUNet(unet(**settings))


@pytest.mark.parametrize(("name", "kind"), [("resnet_time_scale_shift", "scale_shift"), ("resnet_skip_time_act", True)])
def test_joint_norms_need_known_resnets(name: str, kind: object) -> None:
    other, config = (
        unet(**{name: kind}),
        TemporalConfig(layers=((Site("transformer"), TransformerConfig(head_width=8)),)),
    )
    VideoUNet(other, TemporalLayers(other, config))  # its ResNet blocks are called as modules
    joint = config.model_copy(update={"joint_norms": True})
    with pytest.raises(InputError, match=f"has {name}={kind!r}, which is not supported"):
        VideoUNet(other, TemporalLayers(other, joint))


def test_attention_that_computes_something_else_is_refused() -> None:
    """Such as the processors that diffusers' Text2Video-Zero pipeline leaves on a network when it fails."""
    net = VideoUNet(unet())
    net.image_unet.set_attn_processor(CrossFrameAttnProcessor())
    with pytest.raises(InputError, match=r"attn1 computes attention by CrossFrameAttnProcessor.*set_default"):
        net(Z, T, COND)


def error_of(net: UNet2DConditionModel, cond: Condition, z: Tensor = Z, frames: range | None = None) -> str:
    with pytest.raises(InputError) as error:
        VideoUNet(net)(z, T, cond, frames=frames)
    return str(error.value)


def test_a_condition_for_another_network_is_an_error() -> None:
    tokens = COND.tokens
    assert "no embedding" in error_of(sdxl(), COND)
    assert "takes none" in error_of(unet(), Condition(tokens, embedding=random_tensor(B, 34)))
    assert "load an IP-Adapter" in error_of(unet(), Condition(tokens, random_tensor(B, 4, TOKEN_WIDTH)))
    several = with_ip_adapters(unet(), [1.0, 1.0])
    assert "[4, 4] image tokens" in error_of(several, Condition(tokens, random_tensor(B, 4, TOKEN_WIDTH)))
    by_mask = with_ip_adapters(unet(), [[0.5, 0.2]])
    assert "masks" in error_of(by_mask, Condition(tokens, random_tensor(B, 4, TOKEN_WIDTH)))
    with pytest.raises(InputError, match="load an IP-Adapter"):
        project_image_tokens(unet(), [random_tensor(B, 1, 6)])


def test_counts_that_do_not_match_are_an_error() -> None:
    assert "got 7 frames with 3 numbers" in error_of(unet(), COND, frames=range(3))
    assert "got 3 videos and a condition for 2" in error_of(unet(), COND, random_tensor(3, 2, 4, 8, 8))
