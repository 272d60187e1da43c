"""DeepCache: passes with features of an earlier pass, and when they are reused.

The reference is a pass of all layers in which the tensor that enters an up layer is replaced by a hook.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from tiny_temporal import CONFIGS, condition_for
from tiny_unets import TOKEN_WIDTH, randomised, sdxl, unet, with_temporal_layers
from torch import Tensor

from kineograph.errors import InputError
from kineograph.models.conditioning.condition import Condition
from kineograph.models.description import count_skips
from kineograph.models.temporal.config import ConvConfig, ResamplingConfig, Site, TemporalConfig
from kineograph.models.unet.deepcache import DeepCache, DeepFeatures, check_branch, reuse_features, with_features
from kineograph.models.unet.frame_attention import FrameAttention, first, first_and_previous, own, previous
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.unet.windows import FrameWindow, pyramid

B, F, T, EARLIER = 2, 5, 481.0, 521.0
Evaluate = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Z, COND = random_tensor(B, F, 4, 8, 8), Condition(random_tensor(B, 5, TOKEN_WIDTH))


def up_resnets(net: UNet2DConditionModel) -> list[ResnetBlock2D]:
    """Return the ResNet blocks of the up path by the number of the skip connection that each reads."""
    return [resnet for block in net.up_blocks for resnet in block.resnets][::-1]


def check_reuse(net: VideoUNet, evaluate: Evaluate, branch: int) -> None:
    """Check that features of an earlier timestep enter the network as a hook inserts them."""
    features = DeepFeatures(branch, False, {})
    whole = evaluate(net, EARLIER, run_layers=with_features(VideoUNet.run_layers, features))
    assert torch.equal(whole, evaluate(net, EARLIER)), "a pass that keeps its features is the plain one"
    got = evaluate(net, T, run_layers=with_features(VideoUNet.run_layers, features._replace(reuse=True)))
    calls = [features.tensors[frame] for frame in sorted(features.tensors)]

    def replace_input(layer: ResnetBlock2D, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        deep = calls.pop(0)
        return torch.cat([deep, inputs[0][:, deep.shape[1] :]], dim=1), *inputs[1:]

    hook = up_resnets(net.image_unet)[branch].register_forward_pre_hook(replace_input)
    wanted = evaluate(net, T)
    hook.remove()
    assert not calls
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, evaluate(net, T), atol=1e-4), "the features are those of another timestep"


def evaluate_chunks(net: VideoUNet, t: float, cuts: Sequence[int], policy: FrameAttention, **given: Any) -> Tensor:
    cache = {}
    parts = [
        net(Z[:, a:b], t, COND, frame_attention=policy, frames=range(a, b), cache=cache, **given)
        for a, b in pairwise(cuts)
    ]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("branch", [0, 2, 5])
def test_diffusers_network_with_the_features_inserted_is_equal(branch: int) -> None:
    image, tokens = unet(), COND.tokens.repeat_interleave(F, dim=0)

    def images(net: VideoUNet, t: float, deep: DeepFeatures | None = None) -> Tensor:
        if deep is not None:
            return net(Z, t, COND, run_layers=with_features(VideoUNet.run_layers, deep))
        return net.image_unet(Z.flatten(0, 1), t, tokens).sample.unflatten(0, (B, F))

    net, features = VideoUNet(image), DeepFeatures(branch, False, {})
    torch.testing.assert_close(images(net, EARLIER, features), images(net, EARLIER), rtol=1e-5, atol=1e-5)
    got, deep = images(net, T, features._replace(reuse=True)), features.tensors[0]
    up_resnets(image)[branch].register_forward_pre_hook(
        lambda layer, inputs: (torch.cat([deep, inputs[0][:, deep.shape[1] :]], dim=1), *inputs[1:])
    )
    torch.testing.assert_close(got, images(net, T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", [own, first, previous, first_and_previous], ids=lambda policy: policy.__name__)
def test_chunks_reuse_their_own_features_with_any_frame_attention(policy: FrameAttention) -> None:
    check_reuse(VideoUNet(unet()), partial(evaluate_chunks, cuts=(0, 2, 4, 5), policy=policy), 2)


@pytest.mark.parametrize("branch", [0, 3])
@pytest.mark.parametrize("make_unet", [unet, sdxl])
def test_residuals_of_a_controlnet_and_of_an_adapter_are_added(
    make_unet: Callable[[], UNet2DConditionModel], branch: int
) -> None:
    image = make_unet()
    skips, mid, blocks = list[Tensor](), list[Tensor](), list[Tensor]()
    hooks = [each.register_forward_hook(lambda _, __, output: skips.extend(output[1])) for each in image.down_blocks]
    hooks += [image.conv_in.register_forward_hook(lambda _, __, output: skips.append(output))]
    hooks += [image.mid_block.register_forward_hook(lambda _, __, output: mid.append(output))]
    cond = Condition(random_tensor(B, 5, TOKEN_WIDTH), embedding=random_tensor(B, 34) if make_unet is sdxl else None)
    added = (
        {} if cond.embedding is None else {"text_embeds": random_tensor(B * F, 10), "time_ids": torch.ones(B * F, 6)}
    )
    image(Z.flatten(0, 1), T, cond.tokens.repeat_interleave(F, dim=0), added_cond_kwargs=added)
    for hook in hooks:
        hook.remove()
    for block in image.down_blocks:  # before downsampling in blocks with transformers
        at = sum(len(each.resnets) + len(each.downsamplers or ()) for each in image.down_blocks[: len(blocks)])
        last = at + len(block.resnets) + (0 if hasattr(block, "attentions") else len(block.downsamplers or ()))
        blocks.append(random_tensor(*skips[last].shape))
    residuals = [random_tensor(*each.shape) for each in skips], [random_tensor(*mid[0].shape)]
    for given in ((*residuals, ()), ((), (), blocks)):
        bound = Condition(cond.tokens, embedding=cond.embedding, residuals=lambda *_, given=given: given)
        check_reuse(VideoUNet(image), lambda net, t, bound=bound, **given: net(Z, t, bound, **given), branch)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_temporal_layers_act_on_what_is_evaluated(name: str) -> None:
    net, cond = randomised(with_temporal_layers(CONFIGS[name])), condition_for(CONFIGS[name])
    check_reuse(net, lambda net, t, **given: net(Z, t, cond, **given), 3)


@pytest.mark.slow
def test_windows_of_temporal_attention_change_nothing_else() -> None:
    net = randomised(with_temporal_layers(CONFIGS["modelscope"]))
    windows = [FrameWindow(range(start, start + 3), pyramid(3)) for start in range(3)]
    check_reuse(net, lambda net, t, **given: net(Z, t, COND, attention_windows=lambda _: windows, **given), 1)


def evaluations(settings: DeepCache, calls: Sequence[tuple[float, int]]) -> str:
    """Return F for a full evaluation and r for one that reuses features, at these sigmas and numbers of frames."""
    log = ""

    def bind(features: DeepFeatures):
        def denoise(x: Tensor, sigma: float) -> Tensor:
            nonlocal log
            log += "r" if features.reuse else "F"
            assert features.reuse == bool(features.tensors)
            if not features.reuse:
                features.tensors[0] = x
            return x

        return denoise

    denoise = reuse_features(bind, settings)
    for sigma, frames in calls:
        denoise(torch.zeros(1, frames, 1, 1, 1), sigma)
    return log


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([(8.0, 2), (6.0, 2), (4.0, 2), (2.0, 2), (1.0, 2)], "FrFrF"),
        ([(8.0, 2), (6.0, 2), (6.0, 2), (4.0, 2), (4.0, 2), (2.0, 2)], "FrrFrr"),  # Heun's method
        ([(8.0, 1), (6.0, 1), (6.0, 3), (5.0, 3), (4.0, 3)], "FrFrF"),  # frame 0 alone, then all
        ([(1.0, 2), (2.0, 2), (4.0, 2), (6.0, 2), (8.0, 2)], "FFrFr"),  # inversion
        ([(7.0, 2), (5.0, 2), (0.5, 2)], "FrF"),
    ],
)
def test_the_first_evaluation_after_each_sigma_is_full(calls: list[tuple[float, int]], expected: str) -> None:
    assert evaluations(DeepCache(0, (8.0, 4.0, 1.0)), calls) == expected


def test_a_branch_that_the_network_does_not_have_is_refused() -> None:
    skips = count_skips(unet().config)
    assert skips == len(up_resnets(unet()))
    check_branch(5, skips)
    with pytest.raises(
        InputError, match=r"`deepcache_branch` is the number of a skip connection of the network, from 0 to 5, not 6"
    ):
        check_branch(6, skips)


@pytest.mark.slow
@pytest.mark.parametrize("branch", [1, 4])
def test_frames_that_temporal_layers_resample(branch: int) -> None:
    config = TemporalConfig(
        layers=((Site("resnet"), ConvConfig()), (Site("resampler"), ResamplingConfig(factors=(2, 2))))
    )
    check_reuse(randomised(with_temporal_layers(config)), lambda net, t, **given: net(Z, t, COND, **given), branch)
