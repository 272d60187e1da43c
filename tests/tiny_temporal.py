"""Small configurations of temporal layers of every family, and inputs for them and the U-Nets of `tiny_unets`."""

from dataclasses import replace

import torch
from tiny_unets import TOKEN_WIDTH
from torch import Tensor, nn

from kineograph.models.conditioning.condition import Condition
from kineograph.models.temporal.config import AttentionConfig, ConvConfig, Site, TemporalConfig, TransformerConfig

B, F, T = 2, 5, 481.0
PLAIN, RELATIVE = TransformerConfig(head_width=8), TransformerConfig(head_width=8, relative=3, ff_mult=2)
PLAIN_LAYERS = ((Site("conv_in"), PLAIN), (Site("transformer"), PLAIN))
CONFIGS = {  # those whose untrained layers are the identity
    "videocrafter t2v": TemporalConfig(
        layers=((Site("conv_in"), RELATIVE), (Site("transformer"), RELATIVE)), frame_rate=True
    ),
    "videocrafter i2v": TemporalConfig(layers=(*PLAIN_LAYERS, (Site("resnet"), ConvConfig())), frame_rate=True),
    "animatediff": TemporalConfig(layers=((Site("stage", mid_block=False), TransformerConfig(heads=2, positions=F)),)),
    "modelscope": TemporalConfig(layers=(*PLAIN_LAYERS, (Site("resnet"), ConvConfig()))),
}
VIDRD = TemporalConfig(
    layers=(
        (Site("conv_in"), TransformerConfig(head_width=8, attentions=1, transposed=True)),
        (Site("resnet"), ConvConfig()),
        (Site("cross_attention"), AttentionConfig(heads=2, positions=F)),
    ),
    joint_norms=True,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def random_tensor(*shape: int) -> Tensor:
    """Return normal random numbers that depend on the shape alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Z = random_tensor(B, F, 4, 8, 8)
COND = Condition(random_tensor(B, 5, TOKEN_WIDTH), embedding=torch.tensor([[8.0], [16.0]]))
COND_WITHOUT_RATE = replace(COND, embedding=None)


def condition_for(config: TemporalConfig) -> Condition:
    """Return a condition with a frame rate if the network takes one."""
    return COND if config.frame_rate else COND_WITHOUT_RATE


def trained(adapter: nn.Module) -> nn.Module:
    """Give an adapter random weights, as if it had been trained."""
    torch.manual_seed(5)
    for weight in adapter.parameters():
        nn.init.normal_(weight, std=0.2)
    return adapter
