"""TemporalConfig: configurations of the first version, sites, and errors."""

import json

import pytest
from pydantic import ValidationError
from tiny_temporal import CONFIGS, VIDRD
from tiny_unets import unet

from kineograph.errors import InputError
from kineograph.models.temporal.config import (
    AttentionConfig,
    ConvConfig,
    ResamplingConfig,
    Site,
    TemporalConfig,
    TransformerConfig,
)
from kineograph.models.temporal.temporal_layers import TemporalLayers

OLD_TRANSFORMER = {
    "heads": None, "head_width": 8, "depth": 1, "attentions": 2, "positions": 32, "relative": 4, "widening": 2,
    "misread": False,
}  # fmt: skip
TRANSFORMER = TransformerConfig(head_width=8, positions=32, relative=4, ff_mult=2)
# as saved before `layers` replaced a field and a flag for each kind of layer
OLD = {
    "videocrafter": {
        "num_frames": 8, "entry": OLD_TRANSFORMER, "transformer": OLD_TRANSFORMER, "lonely": False, "middle": True,
        "convolution": True, "in_a_row": 4, "coarsest": False, "fewer": [], "in_block": None, "frame_rate": True,
        "joint_norms": False, "groups": None, "noise_ratio": 1.0, "solver": "euler-ancestral",
    },
    "vidrd": {
        "entry": {"heads": 8, "attentions": 1, "misread": True}, "convolution": True, "in_a_row": 3,
        "in_block": OLD_TRANSFORMER, "joint_norms": True,
    },
    "animatediff": {"transformer": {"heads": 8}, "lonely": True, "middle": False},
    "space-time": {
        "convolution": True, "in_a_row": 2, "coarsest": True, "lonely": True, "fewer": [2, 1], "transformer": {},
    },
    "no layers": {"num_frames": 4, "solver": "lcm"},
}  # fmt: skip
NEW = {
    "videocrafter": TemporalConfig(
        num_frames=8,
        layers=(
            (Site("conv_in"), TRANSFORMER),
            (Site("resnet"), ConvConfig(count=4)),
            (Site("transformer"), TRANSFORMER),
        ),
        frame_rate=True,
        noise_ratio=1.0,
        sampler="euler-ancestral",
    ),
    "vidrd": TemporalConfig(
        layers=(
            (Site("conv_in"), TransformerConfig(heads=8, attentions=1, transposed=True)),
            (Site("resnet"), ConvConfig(count=3)),
            (Site("cross_attention"), AttentionConfig(head_width=8, positions=32, relative=4)),
        ),
        joint_norms=True,
    ),
    "animatediff": TemporalConfig(layers=((Site("stage", mid_block=False), TransformerConfig(heads=8)),)),
    "space-time": TemporalConfig(
        layers=(
            (Site("resnet", resolution="higher"), ConvConfig(count=2)),
            (Site("stage", resolution="lowest"), TransformerConfig()),
            (Site("resampler"), ResamplingConfig(factors=(2, 1))),
        )
    ),
    "no layers": TemporalConfig(num_frames=4, sampler="lcm"),
}


@pytest.mark.parametrize("name", OLD)
def test_configurations_of_the_first_version_are_migrated(name: str) -> None:
    assert TemporalConfig.model_validate_json(json.dumps(OLD[name])) == NEW[name]


@pytest.mark.parametrize("config", [*CONFIGS.values(), VIDRD, *NEW.values()])
def test_json_round_trip(config: TemporalConfig) -> None:
    assert TemporalConfig.model_validate_json(config.model_dump_json()) == config
    assert TemporalConfig.model_validate(config.model_dump(mode="json")) == config


def test_max_frames_is_the_least_number_of_positions() -> None:
    assert NEW["videocrafter"].max_frames == 32
    assert NEW["animatediff"].max_frames is None


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (((Site("cross_attention"), AttentionConfig()), (Site("transformer"), TransformerConfig())), "got both"),
        (((Site("resnet"), AttentionConfig()),), "'attention' cannot follow 'resnet'"),
        (((Site("conv_in"), ResamplingConfig(factors=(2,))),), "'resampling' cannot follow 'conv_in'"),
        (((Site("cross_attention"), ConvConfig()),), "'convolution' cannot follow 'cross_attention'"),
    ],
)
def test_layers_that_do_not_fit_their_site_are_refused(layers: tuple, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TemporalConfig(layers=layers)


def test_one_layer_of_the_unet_has_one_temporal_layer() -> None:
    config = TemporalConfig(layers=((Site("resnet"), ConvConfig()), (Site("stage"), TransformerConfig(heads=2))))
    with pytest.raises(InputError, match=r"one temporal layer after down_blocks\.2\.resnets\.0, got 2"):
        TemporalLayers(unet(), config)
