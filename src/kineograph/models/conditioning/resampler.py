"""IP-Adapter with a resampler, as in IP-Adapter's "plus" files; VideoCrafter1's image branch is one.

Source: IP-Adapter (arXiv 2308.06721); VideoCrafter1 (Chen et al. 2023), section 3.2.
"""

from __future__ import annotations

import re

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from pydantic import BaseModel, ConfigDict

from kineograph.models.formats.key_map import Entry, export_tensors
from kineograph.models.formats.tensor_files import Tensors
from kineograph.models.temporal.config import Count, Size

PROJECTION = "encoder_hid_proj.image_projection_layers.0."
BLOCK_NAMES = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_out.0": "0.to_out",
    "ff.0": "1.0",
    "ff.1.net.0.proj": "1.1",
    "ff.1.net.2": "1.3",
}
KEY_VALUE_PARTS = {"attn.to_k": 0, "attn.to_v": 1}
IMAGE_PROJECTION = re.compile(r"(.+\.attn2)\.processor\.to_([kv])_ip\.0\.weight")


class ResamplerConfig(BaseModel):
    """Sizes of a resampler.

    reads       channels of the image encoder's states
    width       channels inside the resampler
    gives       channels of the image tokens
    tokens      number of image tokens
    depth       number of layers
    heads       number of attention heads
    head_width  channels of an attention head
    widening    inner width of the feed-forward, as a multiple of `width`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reads: Size
    width: Size
    gives: Size
    tokens: Size
    depth: Count
    heads: Size
    head_width: Size = 64
    widening: Count = 4


def infer_resampler_config(resampler: Tensors, head_width: int) -> ResamplerConfig:
    """Return a resampler's sizes from its tensors by IP-Adapter's names, which do not determine the head width.

    Raises KeyError if a tensor is missing.
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
    """Add an untrained IP-Adapter to a U-Net: random weights, or on the meta device within `init_empty_weights`."""
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn2.processor"):
            processors[name] = IPAdapterAttnProcessor2_0(
                hidden_size=unet.get_submodule(name.removesuffix(".processor")).to_q.out_features,
                cross_attention_dim=config.gives,
                num_tokens=(config.tokens,),
                scale=1.0,
            )
    unet.set_attn_processor(processors)
    resampler = IPAdapterPlusImageProjection(
        embed_dims=config.reads,
        output_dims=config.gives,
        hidden_dims=config.width,
        depth=config.depth,
        dim_head=config.head_width,
        heads=config.heads,
        num_queries=config.tokens,
        ffn_ratio=config.widening,
    )
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([resampler])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")


def resampler_config(unet: UNet2DConditionModel) -> ResamplerConfig | None:
    """Return the sizes of a U-Net's resampler; None for no IP-Adapter, another kind of one, or several."""
    layers = getattr(unet.encoder_hid_proj, "image_projection_layers", [])
    if len(layers) != 1 or not isinstance(layers[0], IPAdapterPlusImageProjection):
        return None
    state, attention = layers[0].state_dict(), layers[0].layers[0].attn
    tensors = export_tensors(state, {name: resampler_entry(name) for name in state})
    return infer_resampler_config(tensors, attention.inner_dim // attention.heads)


def ip_adapter_key_map(unet: UNet2DConditionModel) -> dict[str, Entry]:
    """Return the key map of IP-Adapter's files for the IP-Adapter of a U-Net; other tensors are not in it."""
    attentions = [name.removesuffix(".processor") for name in unet.attn_processors]
    entries = {}
    for name in unet.state_dict():
        if found := IMAGE_PROJECTION.fullmatch(name):
            entries[name] = Entry(f"ip_adapter.{attentions.index(found[1])}.to_{found[2]}_ip.weight")
        elif name.startswith(PROJECTION):
            entry = resampler_entry(name.removeprefix(PROJECTION))
            entries[name] = entry._replace(name=f"image_proj.{entry.name}")
    return entries


def resampler_entry(name: str) -> Entry:
    """Return the file's tensor for a tensor of the resampler, without the prefix of IP-Adapter's files."""
    layer, dot, leaf = name.rpartition(".")
    block = re.fullmatch(r"layers\.(\d+)\.(.+)", layer)
    if block is None:
        return Entry(name)
    number, inner = block.groups()
    if inner in KEY_VALUE_PARTS:
        return Entry(f"layers.{number}.0.to_kv.{leaf}", part=KEY_VALUE_PARTS[inner], num_parts=2)
    return Entry(f"layers.{number}.{BLOCK_NAMES[inner]}{dot}{leaf}")
