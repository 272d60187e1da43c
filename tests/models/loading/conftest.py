"""Weights of tiny models, and single files in the layout of Stable Diffusion's code."""

import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import Tensor


def weights(model) -> dict[str, Tensor]:
    networks = {"unet": model.net.image_unet, "vae": model.vae, "text": model.text_encoders[0].network}
    return {f"{part}.{name}": value for part, net in networks.items() for name, value in net.state_dict().items()}


def assert_same(model, other) -> None:
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def in_ldm(pipeline) -> dict[str, Tensor]:
    """The U-Net and VAE of a pipeline under the names of Stable Diffusion's own code, written independently."""
    tensors = {f"model.diffusion_model.{unet_in_ldm(name)}": v for name, v in pipeline.unet.state_dict().items()}
    tensors |= {f"first_stage_model.{vae_in_ldm(name)}": v for name, v in pipeline.vae.state_dict().items()}
    return {name: value.clone() for name, value in tensors.items()}


def prefixed(prefix: str, network) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value.clone() for name, value in network.state_dict().items()}


def in_openclip(prefix: str, network) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names: queries, keys and values are one matrix, the projection is transposed."""
    state = {name.removeprefix("text_model."): value.clone() for name, value in network.state_dict().items()}
    tensors = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    for layer in range(network.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            attention = [state[f"{ours}self_attn.{each}_proj.{kind}"] for each in "qkv"]
            tensors[f"{theirs}attn.in_proj_{kind}"] = torch.cat(attention)
            for here, there in {
                "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            }.items():  # fmt: skip
                tensors[f"{theirs}{there}.{kind}"] = state[f"{ours}{here}.{kind}"]
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def renamed(name: str, pairs: Mapping[str, str]) -> str:
    for ours, theirs in pairs.items():
        name = name.replace(ours, theirs)
    return name


def unet_in_ldm(name: str) -> str:
    """For two levels of one resnet each, with attention in the first (SD) or in the second (SDXL)."""
    return renamed(
        name,
        {
            "conv_in.": "input_blocks.0.0.", "down_blocks.0.resnets.0": "input_blocks.1.0",
            "down_blocks.0.attentions.0": "input_blocks.1.1",
            "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
            "down_blocks.1.resnets.0": "input_blocks.3.0", "mid_block.resnets.0": "middle_block.0",
            "down_blocks.1.attentions.0": "input_blocks.3.1", "mid_block.attentions.0": "middle_block.1",
            "mid_block.resnets.1": "middle_block.2", "add_embedding.linear_1": "label_emb.0.0",
            "add_embedding.linear_2": "label_emb.0.2", "up_blocks.0.attentions.0": "output_blocks.0.1",
            "up_blocks.0.attentions.1": "output_blocks.1.1",
            "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
            "up_blocks.0.upsamplers.0": "output_blocks.1.1", "up_blocks.1.resnets.0": "output_blocks.2.0",
            "up_blocks.1.attentions.0": "output_blocks.2.1", "up_blocks.1.resnets.1": "output_blocks.3.0",
            "up_blocks.1.attentions.1": "output_blocks.3.1", "conv_norm_out": "out.0", "conv_out": "out.2",
            "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "norm1.": "in_layers.0." if "resnets" in name else "norm1.", "conv1": "in_layers.2",
            "time_emb_proj": "emb_layers.1", "norm2.": "out_layers.0." if "resnets" in name else "norm2.",
            "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
        },
    )  # fmt: skip


def vae_in_ldm(name: str) -> str:
    return renamed(
        name,
        {
            "encoder.down_blocks.0.resnets.0": "encoder.down.0.block.0",
            "encoder.down_blocks.1.resnets.0": "encoder.down.1.block.0",
            "encoder.down_blocks.0.downsamplers.0": "encoder.down.0.downsample",
            "decoder.up_blocks.0.resnets": "decoder.up.1.block", "decoder.up_blocks.1.resnets": "decoder.up.0.block",
            "decoder.up_blocks.0.upsamplers.0": "decoder.up.1.upsample",
            "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
            "mid_block.attentions.0": "mid.attn_1",
            "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
            "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
        },
    )  # fmt: skip


@pytest.fixture
def checkpoint(sd_pipeline) -> dict[str, Tensor]:
    return in_ldm(sd_pipeline) | prefixed("cond_stage_model.transformer.text_model.", sd_pipeline.text_encoder)


def hub_of(repository: Path, cache: Path, asked: list[list[str]]) -> Callable[..., str]:
    """Return a function like `snapshot_download` that copies matching files of a folder; it keeps the patterns."""

    def download(name: str, *, allow_patterns: list[str], **options: object) -> str:
        asked.append(allow_patterns)
        for file in filter(Path.is_file, repository.rglob("*")):
            relative = file.relative_to(repository)
            if any(fnmatch(str(relative), pattern) for pattern in allow_patterns):
                (cache / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / relative)
        return str(cache)

    return download
