"""Configuration of temporal layers: which temporal layer follows which layers of an image U-Net.

A family of video models is one `TemporalConfig`; its JSON is `temporal/config.json` of a saved model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from kineograph.errors import InputError, shown

STRICT = ConfigDict(frozen=True, extra="forbid")
Count = Annotated[int, Field(ge=1, le=100)]  # of layers: a network of more would take minutes to build
Size = Annotated[int, Field(ge=1, le=1_000_000)]


class TransformerConfig(BaseModel):
    """A temporal transformer.

    heads, head_width  number of attention heads, and channels of each; if one is None it follows from the channels
    depth              number of transformer blocks
    attentions         number of self-attentions in a block, 1 or 2
    positions          number of frames with a sinusoidal position; None for no absolute positions
    relative           largest distance between frames that has a relative position of its own; None for none
    ff_mult            inner width of the feed-forward, as a multiple of the transformer's
    transposed         read the tokens `f c` of the output as `c f`, as VidRD's released weights were trained with
    """

    model_config = STRICT

    kind: Literal["transformer"] = "transformer"
    heads: Size | None = None
    head_width: Size | None = None
    depth: Count = 1
    attentions: Literal[1, 2] = 2
    positions: Size | None = None
    relative: Size | None = None
    ff_mult: Count = 4
    transposed: bool = False


class AttentionConfig(BaseModel):
    """Temporal attention inside a spatial transformer block; the fields mean what they mean for a transformer."""

    model_config = STRICT

    kind: Literal["attention"] = "attention"
    heads: Size | None = None
    head_width: Size | None = None
    positions: Size | None = None
    relative: Size | None = None


class ConvConfig(BaseModel):
    """Temporal convolutions, `count` of them one after another."""

    model_config = STRICT

    kind: Literal["convolution"] = "convolution"
    count: Count = 4


class ResamplingConfig(BaseModel):
    """Temporal down- and upsampling: `factors` divide the number of frames.

    There is one for each downsampler of the image U-Net, from the highest resolution on; the upsampler of the same
    level multiplies by it.
    """

    model_config = STRICT

    kind: Literal["resampling"] = "resampling"
    factors: tuple[Count, ...]


LayerConfig = Annotated[
    Union[TransformerConfig, AttentionConfig, ConvConfig, ResamplingConfig],  # noqa: UP007 (pydantic evaluates it)
    Field(discriminator="kind"),
]
After = Literal["conv_in", "resnet", "transformer", "stage", "cross_attention", "resampler"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Site:
    """Layers of an image U-Net that a temporal layer follows.

    after       "conv_in": the first convolution; "resnet": every ResNet block; "transformer": every spatial
                transformer; "stage": every spatial transformer, and outside the mid block every ResNet block that has
                no transformer behind it; "cross_attention": the cross-attention of every spatial transformer block;
                "resampler": every downsampler and upsampler
    mid_block   False to leave the mid block out
    resolution  "lowest": only the last down block, the mid block and the first up block; "higher": only the others
    """

    after: After
    mid_block: bool = True
    resolution: Literal["all", "lowest", "higher"] = "all"


class TemporalConfig(BaseModel):
    """All that a video model adds to an image U-Net.

    num_frames    number of frames it was trained on
    layers        the temporal layers, each with the layers of the image U-Net that it follows
    frame_rate    frames per second are embedded and added to the timestep's embedding
    joint_norms   the group norms of ResNet blocks, and the last one, span all frames
    groups        number of groups of the temporal layers' group norms; None for the image U-Net's number
    noise_ratio   standard deviation of the noise that all frames share over that of a frame's own noise (`noise.mix`)
    sampler       the sampler that its authors use
    clean_frames  it was trained with first frames without noise too, and takes those that are known so
    """

    model_config = STRICT

    num_frames: Size = 16
    layers: tuple[tuple[Site, LayerConfig], ...] = ()
    frame_rate: bool = False
    joint_norms: bool = False
    groups: Size | None = None
    noise_ratio: Annotated[float, Field(ge=0, le=1_000)] = 0.0
    sampler: str = "ddim"
    clean_frames: bool = False

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, given: Any) -> Any:
        return migrate(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _check_sites(self) -> TemporalConfig:
        if self.layer_after("cross_attention") and (self.layer_after("transformer") or self.layer_after("stage")):
            raise ValueError("expected attention inside the spatial blocks or transformers behind them, got both")
        for site, layer in self.layers:
            inside, resampling = site.after == "cross_attention", site.after == "resampler"
            if inside != isinstance(layer, AttentionConfig) or resampling != isinstance(layer, ResamplingConfig):
                raise ValueError(
                    f"a layer of kind {layer.kind!r} cannot follow {site.after!r}: expected attention after "
                    "cross_attention, resampling after resampler, and a transformer or convolution elsewhere"
                )
        return self

    def layer_after(self, after: After) -> LayerConfig | None:
        """Return the first temporal layer that follows these layers of the image U-Net."""
        return next((layer for site, layer in self.layers if site.after == after), None)

    @property
    def attentions(self) -> Iterator[TransformerConfig | AttentionConfig]:
        """All temporal layers with attention."""
        return (layer for _, layer in self.layers if isinstance(layer, TransformerConfig | AttentionConfig))

    @property
    def max_frames(self) -> int | None:
        """Largest number of frames that the network can attend over; None for any number.

        Relative positions set no limit: larger distances are clipped.
        """
        return min((layer.positions for layer in self.attentions if layer.positions is not None), default=None)

    @property
    def is_motion_module(self) -> bool:
        """True for AnimateDiff's layers: one transformer behind every stage of the image U-Net."""
        return [(site.after, layer.kind) for site, layer in self.layers] == [("stage", "transformer")]

    @property
    def resamples_frames(self) -> bool:
        """True if the number of frames changes inside the network."""
        return self.layer_after("resampler") is not None


def split_heads(config: TransformerConfig | AttentionConfig, channels: int) -> tuple[int, int]:
    """Return the number of attention heads, and the width of each, in a layer with these channels.

    Raises InputError for more heads than channels.
    """
    heads = config.heads or channels // (config.head_width or channels)
    if config.head_width is None and heads > channels:
        raise InputError(
            f"the temporal layers have {heads} attention heads for {channels} channels: their configuration is damaged "
            "or for another image network"
        )
    return heads, config.head_width or channels // heads


OLD_FIELDS = {
    "entry", "transformer", "lonely", "middle", "convolution", "in_a_row", "coarsest", "fewer", "in_block", "solver",
}  # fmt: skip
OLD_TRANSFORMER_FIELDS = {"widening": "ff_mult", "misread": "transposed"}


def migrate(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration in today's fields, from today's or from those of the first version.

    The first version had a field or flag for each kind of layer instead of the list `layers`: `entry` after conv_in,
    `transformer` behind spatial transformers (`lonely`: behind single ResNet blocks too; `middle`: in the mid block
    too; `coarsest`: at the lowest resolution alone, and convolutions elsewhere), `convolution` behind ResNet blocks
    (`in_a_row` of them), `in_block` attention, and `fewer` for the factors of resampling.
    """
    if OLD_FIELDS.isdisjoint(given):
        return given
    coarsest = given.get("coarsest", False)
    layers: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if (entry := given.get("entry")) is not None:
        layers.append(({"after": "conv_in"}, _migrate_transformer(entry)))
    if given.get("convolution"):
        resolution = "higher" if coarsest else "all"
        layers.append(
            ({"after": "resnet", "resolution": resolution}, {"kind": "convolution", "count": given.get("in_a_row", 4)})
        )
    if (inside := given.get("in_block")) is not None:
        kept = {name: value for name, value in _settings(inside).items() if name in AttentionConfig.model_fields}
        layers.append(({"after": "cross_attention"}, {**kept, "kind": "attention"}))
    if (transformer := given.get("transformer")) is not None:
        site = {
            "after": "stage" if given.get("lonely") else "transformer",
            "mid_block": given.get("middle", True),
            "resolution": "lowest" if coarsest else "all",
        }
        layers.append((site, _migrate_transformer(transformer)))
    if factors := given.get("fewer"):
        layers.append(({"after": "resampler"}, {"kind": "resampling", "factors": factors}))
    shared = {name: value for name, value in given.items() if name not in OLD_FIELDS}
    return {"layers": layers, "sampler": given.get("solver", "ddim"), **shared}


def _migrate_transformer(old: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "transformer",
        **{OLD_TRANSFORMER_FIELDS.get(name, name): value for name, value in _settings(old).items()},
    }


def _settings(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected the settings of a layer by name, got {shown(value)}")
    return value
