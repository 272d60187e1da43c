"""ControlNets of a model: sources, checks against its U-Net, and errors for those that are missing."""

import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter
from models.conftest import sd
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

import kineograph as kg
from kineograph.errors import InputError


@pytest.fixture
def folder(tmp_path):
    ControlNetModel.from_unet(sd().unet, conditioning_embedding_out_channels=(4, 8)).save_pretrained(tmp_path / "canny")
    return tmp_path / "canny"


def test_controlnet_from_a_folder_or_network_with_or_without_a_kind(folder) -> None:
    model = kg.load(sd(), controlnet={"canny": folder})
    assert model.control("canny") is model.control("canny")
    with pytest.raises(InputError, match="no ControlNet for 'depth', only for canny: load it with one, `controlnet`"):
        model.control("depth")
    alone = kg.load(sd(), controlnet=model.control("canny").controlnet)
    assert alone.control("depth") is alone.control("anything")
    with pytest.raises(InputError, match="no ControlNet for 'canny': load it"):
        kg.load(sd()).control("canny")


def test_controlnet_from_a_single_file(tmp_path) -> None:
    base = sd()
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8))
    save_file(net.state_dict(), tmp_path / "canny.safetensors")
    opened = kg.load(base, controlnet=tmp_path / "canny.safetensors").control("canny").controlnet
    assert all(torch.equal(weight, opened.state_dict()[name]) for name, weight in net.state_dict().items())
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a ControlNet for the model's architecture.* tensors are called x"):
        kg.load(base, controlnet=tmp_path / "other.safetensors")


def test_sizes_that_a_damaged_file_states_are_not_allocated(tmp_path) -> None:
    """Found by tools/fuzz.py: a convolution with as many channels as a cut one has values, of 27 GB."""
    net = ControlNetModel.from_unet(sd().unet, conditioning_embedding_out_channels=(4, 8))
    tensors = net.state_dict()
    name = "controlnet_cond_embedding.blocks.1.weight"
    save_file({**tensors, name: torch.zeros(10**6)}, tmp_path / "cut.safetensors")
    sizes = []

    class Allocations(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if func is torch.empty and not made.is_meta:
                sizes.append(made.numel())
            return made

    with Allocations(), pytest.raises(InputError, match="is a ControlNet for another architecture, or damaged"):
        kg.load(sd(), controlnet=tmp_path / "cut.safetensors")
    assert max(sizes, default=0) < 10**7

    folder = tmp_path / "t2i"
    T2IAdapter(channels=[32, 64], num_res_blocks=1).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"downscale_factor": 65536}))
    with pytest.raises(InputError, match="downscale_factor is 65536, which is more than 64"):
        kg.load(sd(), controlnet=folder)


def test_lack_of_memory_for_sizes_that_the_weights_do_not_have_is_damage(folder, monkeypatch) -> None:
    config = json.loads((folder / "config.json").read_text())

    def lack(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 154618822656 bytes")

    monkeypatch.setattr(ControlNetModel, "from_pretrained", lack)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        kg.load(sd(), controlnet=folder)
    (folder / "config.json").write_text(json.dumps(config | {"conditioning_embedding_out_channels": [4, 65536]}))
    with pytest.raises(InputError, match="does not fit the configuration beside it: 3 tensors have other shapes"):
        kg.load(sd(), controlnet=folder)


def test_controlnet_of_another_architecture_is_refused(tmp_path) -> None:
    other = sd(reads=16).unet
    ControlNetModel.from_unet(other, conditioning_embedding_out_channels=(4, 8)).save_pretrained(tmp_path / "foreign")
    with pytest.raises(InputError, match="another architecture: its cross_attention_dim is 16, the model's 32"):
        kg.load(sd(), controlnet=tmp_path / "foreign")
    wide = ControlNetModel.from_unet(sd().unet, conditioning_embedding_out_channels=(4, 8))
    wide.register_to_config(in_channels=9)
    with pytest.raises(InputError, match="latents of 9 channels, and the model's have 4"):
        kg.load(sd(), controlnet=wide)


def test_folders_that_are_no_controlnet_are_refused(tmp_path, folder) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no ControlNet: expected a folder .* found nothing"):
        kg.load(sd(), controlnet=tmp_path / "empty")
    sd().unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(InputError, match="is no ControlNet: .* found UNet2DConditionModel"):
        kg.load(sd(), controlnet=tmp_path / "unet")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged or truncated"):
        kg.load(sd(), controlnet=folder)
    with pytest.raises(InputError, match="there is no"):
        kg.load(sd(), controlnet=tmp_path / "nowhere" / "canny")


def test_pocket_model_has_three_controlnets() -> None:
    model = kg.load(dtype=torch.float32)
    assert set(model.controls) == {"canny", "depth", "pose"}
    net = model.control("canny").controlnet
    assert isinstance(net, ControlNetModel) and net is model.control("canny").controlnet
    assert not any("lora" in name for name in net.state_dict())
    assert all(torch.isfinite(weight).all() for weight in net.state_dict().values())


def test_controlnet_for_latents_of_another_size_is_refused(tmp_path) -> None:
    base = sd()
    maps = kg.Video(np.zeros((1, 16, 16, 3), np.uint8), 4)
    adapter = T2IAdapter(in_channels=3, channels=list(base.unet.config.block_out_channels), downscale_factor=8)
    for network in (ControlNetModel.from_unet(base.unet), adapter):
        with pytest.raises(InputError, match="reduces height and width to 1/8, and the VAE of .* to 1/2"):
            kg.generate(kg.load(base, controlnet=network), "a fish", control={"seg-map": maps}, num_frames=1)
