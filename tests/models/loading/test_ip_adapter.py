"""IP-Adapters from files, and errors for those that do not fit."""

from pathlib import Path

import pytest
import torch
from models.conftest import sd
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import kineograph as kg
from kineograph.errors import InputError

TOKENS, EMBEDDED = 4, 12


def tensors(width: int) -> dict[str, dict[str, Tensor]]:
    """Return a plain IP-Adapter for the tiny image model, with tokens of this width."""
    unet = sd().unet
    readers = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors if "attn2" in name]
    torch.manual_seed(1)
    return {
        "image_proj": {
            "proj.weight": torch.randn(TOKENS * width, EMBEDDED), "proj.bias": torch.randn(TOKENS * width),
            "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
        },
        "ip_adapter": {
            f"{2 * number + 1}.to_{letter}_ip.weight": torch.randn(reader.to_k.out_features, width)
            for number, reader in enumerate(readers) for letter in "kv"
        },
    }  # fmt: skip


def saved(folder: Path, width: int) -> Path:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**small, image_size=16, patch_size=8, projection_dim=EMBEDDED)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    flat = {f"{part}.{name}": each for part, inside in tensors(width).items() for name, each in inside.items()}
    save_file(flat, folder / "ip-adapter.safetensors")
    torch.save(tensors(width), folder / "ip-adapter.bin")
    return folder


@pytest.mark.parametrize("name", ["ip-adapter.safetensors", "ip-adapter.bin"])
def test_model_with_an_ip_adapter_encodes_images(name: str, tmp_path: Path) -> None:
    pipe = sd()
    width = pipe.unet.config.cross_attention_dim
    model = kg.load(pipe, ip_adapter=saved(tmp_path, width) / name)
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    seen, nothing = model.image_tokens(images), model.image_tokens(None, 2)
    assert seen.shape == nothing.shape == (2, TOKENS, width)
    assert not torch.equal(seen[0], seen[1]) and torch.equal(nothing[0], nothing[1])


def test_files_that_are_no_ip_adapter_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    width = sd().unet.config.cross_attention_dim
    folder = saved(tmp_path, width + 8)
    with pytest.raises(InputError, match=f"whose tokens are {width} wide"):
        kg.load(sd(), ip_adapter=folder / "ip-adapter.safetensors")
    save_file({"lora_up": torch.zeros(2)}, folder / "other.safetensors")
    with pytest.raises(InputError, match="no tensors under image_proj and none under ip_adapter"):
        kg.load(sd(), ip_adapter=folder / "other.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        kg.load(sd(), ip_adapter=folder)


def test_missing_image_encoder_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "deep" / "down", sd().unet.config.cross_attention_dim)
    (folder / "image_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no folder image_encoder beside"):
        kg.load(sd(), ip_adapter=folder / "ip-adapter.safetensors")
