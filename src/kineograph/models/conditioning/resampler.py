"""An IP-Adapter with a resampler: pictures as tokens that an image network reads beside the text.

VideoCrafter1's image branch is one. In a file it is laid out as IP-Adapter's own "plus" files are.
Source: IP-Adapter (arXiv 2308.06721); VideoCrafter1 (Chen et al. 2023), section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from pydantic import BaseModel, ConfigDict

from kineograph.models.formats.key_map import Entry
from kineograph.models.formats.tensor_files import Tensors

PROJECTION = "encoder_hid_proj.image_projection_layers.0."
IN_BLOCK = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_out.0": "0.to_out",
    "ff.0": "1.0",
    "ff.1.net.0.proj": "1.1",
    "ff.1.net.2": "1.3",
}
HALVES = {"attn.to_k": 0, "attn.to_v": 1}
READER = re.compile(r"(.+\.attn2)\.processor\.to_([kv])_ip\.0\.weight")


class ResamplerConfig(BaseModel):
    """The resampler's sizes: it reads patches `reads` wide and gives `tokens` tokens `gives` wide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reads: int
    width: int
    gives: int
    tokens: int
    depth: int
    heads: int
    head_width: int = 64
    widening: int = 4


def infer_resampler_config(resampler: Tensors, head_width: int) -> ResamplerConfig:
    """A resampler's sizes from its tensors by IP-Adapter's names; they do not say how wide a head is.

    Raises KeyError for a tensor that is missing.
    """
    inner = len(resampler["layers.0.0.to_q.weight"])
    width, reads = resampler["proj_in.weight"].shape
    return ResamplerConfig(
        reads=reads,
        width=width,
        gives=len(resampler["proj_out.weight"]),
        tokens=resampler["latents"].shape[1],
        depth=sum(name.endswith("to_q.weight") for name in resampler),
        heads=inner // head_width,
        head_width=head_width,
        widening=len(resampler["layers.0.1.1.weight"]) // width,
    )


def add_resampler(unet: UNet2DConditionModel, config: ResamplerConfig) -> None:
    """An IP-Adapter on an image network, for `places.fill` to fill: it is random, or empty, as the context has it."""
    processors = dict(unet.attn_processors)
    for name, width in _readers(unet):
        processors[name] = IPAdapterAttnProcessor2_0(
            hidden_size=width, cross_attention_dim=config.gives, num_tokens=(config.tokens,), scale=1.0
        )
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([_resampler(config)])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")


def resampler_config(unet: UNet2DConditionModel) -> ResamplerConfig | None:
    """The sizes of the resampler on a network; None if there is none, or another kind of IP-Adapter, or several."""
    layers = getattr(unet.encoder_hid_proj, "image_projection_layers", [])
    if len(layers) != 1 or not isinstance(layers[0], IPAdapterPlusImageProjection):
        return None
    resampler = layers[0]
    attention = resampler.layers[0].attn
    return ResamplerConfig(
        reads=resampler.proj_in.in_features,
        width=resampler.proj_in.out_features,
        gives=resampler.proj_out.out_features,
        tokens=resampler.latents.shape[1],
        depth=len(resampler.layers),
        heads=attention.heads,
        head_width=attention.inner_dim // attention.heads,
        widening=resampler.layers[0].ff[1].net[0].proj.out_features // resampler.proj_in.out_features,
    )


def ip_adapter_key_map(unet: UNet2DConditionModel) -> dict[str, Entry]:
    """Where an IP-Adapter's file has the tensors of the one on this network."""
    readers = [name.removesuffix(".processor") for name in unet.attn_processors]
    places = {}
    for name in unet.state_dict():
        if found := READER.fullmatch(name):
            places[name] = Entry(f"ip_adapter.{readers.index(found[1])}.to_{found[2]}_ip.weight")
        elif name.startswith(PROJECTION):
            place = resampler_entry(name.removeprefix(PROJECTION))
            places[name] = place._replace(name=f"image_proj.{place.name}")
    return places


def resampler_entry(name: str) -> Entry:
    """Where IP-Adapter's files have a tensor of the resampler, without what stands before all of those."""
    layer, dot, leaf = name.rpartition(".")
    block = re.fullmatch(r"layers\.(\d+)\.(.+)", layer)
    if block is None:
        return Entry(name)
    number, inner = block.groups()
    if inner in HALVES:
        return Entry(f"layers.{number}.0.to_kv.{leaf}", part=HALVES[inner], num_parts=2)
    return Entry(f"layers.{number}.{IN_BLOCK[inner]}{dot}{leaf}")


def _readers(unet: UNet2DConditionModel) -> Iterator[tuple[str, int]]:
    """The processors of all cross-attention layers by name, and how many channels come out of each."""
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            yield name, unet.get_submodule(name.removesuffix(".processor")).to_q.out_features


def _resampler(config: ResamplerConfig) -> IPAdapterPlusImageProjection:
    return IPAdapterPlusImageProjection(
        embed_dims=config.reads,
        output_dims=config.gives,
        hidden_dims=config.width,
        depth=config.depth,
        dim_head=config.head_width,
        heads=config.heads,
        num_queries=config.tokens,
        ffn_ratio=config.widening,
    )
