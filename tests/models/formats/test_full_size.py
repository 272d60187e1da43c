"""Published architectures in full size, without weights: every key of the released layout has its parameter.

The networks are on the meta device. Counted are tensors and parameters. Single files have names that the tests make
independently of the key maps, which are compared with diffusers' conversion too; VideoCrafter's keys are recorded from
its released code. Where only our own key map says how a layout is, the test says so.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import init_empty_weights
from cases import public_layouts
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel
from diffusers.loaders import single_file_utils
from format_rows import loads
from torch import Tensor, nn
from transformers import CLIPTextConfig

from kineograph.models.formats import (
    animatediff,
    architecture,
    key_map,
    known_configurations,
    ldm,
    modelscope,
    videocrafter,
    vidrd,
)
from kineograph.models.formats.known_configurations import FAMILIES, UNET, Family
from kineograph.models.loading import components
from kineograph.models.loading.single_file import VAE_PREFIX, text_encoder_tensors
from kineograph.models.temporal.config import AttentionConfig, ConvConfig, Site, TemporalConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

pytestmark = pytest.mark.slow
SD1, SD2, SDXL, SSD_1B, VEGA = FAMILIES
FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures"
Weights = dict[str, Tensor]


class Release(NamedTuple):
    """A published model: its family, and numbers of tensors and of parameters of its U-Net."""

    family: Family
    tensors: int
    parameters: int
    in_channels: int = 4


RELEASES = {
    "SD 1.4 and 1.5": Release(SD1, 686, 859_520_964),
    "SD 1.5 inpainting": Release(SD1, 686, 859_520_964 + 5 * 320 * 9, in_channels=9),
    "InstructPix2Pix": Release(SD1, 686, 859_520_964 + 4 * 320 * 9, in_channels=8),
    "SD 2.0 and 2.1, base and 768": Release(SD2, 686, 865_910_724),
    "SDXL base, Turbo and Playground v2.5": Release(SDXL, 1680, 2_567_463_684),
    "SSD-1B": Release(SSD_1B, 944, 1_331_334_404),  # "1.3B"
    "Segmind-Vega": Release(VEGA, 564, 745_225_604),  # "745M"
}
TEXT_ENCODERS = {768: (196, 123_060_480), 1024: (372, 340_387_840), 1280: (517, 694_659_840)}
VAE_TENSORS, VAE_PARAMETERS = 248, 83_653_863


def on_meta(make: Any, *arguments: Any, **settings: Any) -> Any:
    with init_empty_weights():
        return make(*arguments, **settings)


def size(network: nn.Module) -> tuple[int, int]:
    """Return the numbers of tensors and of parameters."""
    state = network.state_dict()
    return len(state), sum(each.numel() for each in state.values())


def released_file(release: Release) -> Weights:
    """Return the tensors of a released single file, by names that were written independently of the key maps."""
    family = release.family
    unet = on_meta(
        UNet2DConditionModel,
        **family.unet | {"cross_attention_dim": family.cross_attention, "in_channels": release.in_channels},
    )
    encoders = [
        on_meta(kind, CLIPTextConfig(**settings))
        for settings, kind in zip(family.text_encoders, components.TEXT_ENCODERS.values(), strict=False)
    ]
    parts = {"unet": unet, "vae": on_meta(AutoencoderKL.from_config, dict(known_configurations.VAE))}
    parts |= dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False))
    return public_layouts.single_file(SimpleNamespace(**parts))


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Release:
    return RELEASES[request.param]


@pytest.fixture(scope="module")
def file(release: Release) -> Weights:
    return released_file(release)


@pytest.fixture(scope="module")
def folder(release: Release, file: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration that is built in for the file."""
    folder = tmp_path_factory.mktemp("configuration")
    family = known_configurations.match_family(folder, file)
    assert family is release.family
    known_configurations.write_configuration(family, file, {"prediction_type": "epsilon"}, folder)
    return folder


def assert_mapped(network: nn.Module, own: Weights, entries: key_map.KeyMap) -> None:
    """Assert that the map takes every tensor of the file to a parameter of its shape, and back."""
    key_map.load_tensors(network, own, entries, "the file")
    exported = key_map.export_tensors(network.state_dict(), entries)
    assert {name: each.shape for name, each in exported.items()} == {name: each.shape for name, each in own.items()}


def test_unet_of_a_single_file(release: Release, file: Weights, folder: Path) -> None:
    unet = on_meta(UNet2DConditionModel.from_config, components.read_json(folder / "unet" / "config.json"))
    own = key_map.select_prefix(UNET, file)
    assert size(unet) == (release.tensors, release.parameters) and len(own) == release.tensors
    assert_mapped(unet, own, ldm.unet_key_map(unet))
    theirs = single_file_utils.convert_ldm_unet_checkpoint(file, dict(unet.config))
    entries = ldm.unet_key_map(unet)
    assert theirs.keys() == entries.keys()
    assert all(theirs[name] is file[UNET + entry.name] for name, entry in entries.items())
    assert VideoUNet(unet).image_unet is unet, "the forward pass supports it"


def test_vae_of_a_single_file(file: Weights, folder: Path) -> None:
    vae = on_meta(AutoencoderKL.from_config, components.read_json(folder / "vae" / "config.json"))
    own = key_map.select_prefix(VAE_PREFIX, file)
    assert size(vae) == (VAE_TENSORS, VAE_PARAMETERS) and len(own) == VAE_TENSORS
    assert_mapped(vae, own, ldm.vae_key_map(vae))
    theirs = single_file_utils.convert_ldm_vae_checkpoint(file, dict(vae.config))
    assert theirs.keys() == vae.state_dict().keys()


def test_text_encoders_of_a_single_file(release: Release, file: Weights, folder: Path) -> None:
    classes = components.text_encoder_classes(components.read_index(folder))
    assert len(classes) == len(release.family.text_encoders)
    for suffix, kind in classes:
        encoder = on_meta(kind, CLIPTextConfig.from_pretrained(folder / f"text_encoder{suffix}"))
        own, entries = text_encoder_tensors(file, suffix, encoder)
        assert size(encoder) == TEXT_ENCODERS[encoder.config.hidden_size]
        assert_mapped(encoder, own, entries)
        if encoder.config.hidden_act == "gelu":
            prefix = "conditioner.embedders.1.model." if suffix else "cond_stage_model.model."
            theirs = single_file_utils.convert_open_clip_checkpoint(encoder, file, prefix)
            names = {name.removeprefix("text_model.") for name in theirs if "layers.23." not in name or suffix}
            expected = {name.removeprefix("text_model.") for name in encoder.state_dict()}
            assert names - {"text_projection.weight"} == expected - {"text_projection.weight"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=loads("Checkpoint", f"{name}: single file, every tensor in full size", within=0))
        for name in RELEASES
        if name != "SD 1.5 inpainting"
    ],
)
def test_numbers_of_tensors_in_a_whole_file(name: str) -> None:
    """By our own map and that of the tests: U-Net, VAE and text encoders, and the tensors that are not read."""
    release = RELEASES[name]
    family = release.family
    # position ids or OpenCLIP's scale of logits, tables of noise levels, and the last layer of SD 2.x's text encoder
    unread = {SD1.name: 4, SD2.name: 5 + 12}.get(family.name, 2)
    openclip_layers = {SD1.name: 0, SD2.name: 23}.get(family.name, 32)  # with 12 tensors for 16 in transformers
    encoders = sum(TEXT_ENCODERS[each["hidden_size"]][0] for each in family.text_encoders) - 4 * openclip_layers
    assert len(released_file(release)) == release.tensors + VAE_TENSORS + encoders + unread


@pytest.mark.parametrize("family", [SD1, SDXL, SSD_1B], ids=lambda each: each.name)
def test_networks_of_lcm_are_built(family: Family) -> None:
    """LCM_Dreamshaper_v7, lcm-sdxl and lcm-ssd-1b: the layers of their family, and one more."""
    settings = family.unet | {"cross_attention_dim": family.cross_attention, "time_cond_proj_dim": 256}
    unet = on_meta(UNet2DConditionModel, **settings)
    tensors = next(each.tensors for each in RELEASES.values() if each.family is family)
    assert len(unet.state_dict()) == tensors + 1
    assert VideoUNet(unet).reads_guidance_scale
    assert ldm.unet_key_map(unet)["time_embedding.cond_proj.weight"].name == "time_embedding.cond_proj.weight"


# --- video models


VIDEOCRAFTER = {  # numbers of tensors of the U-Net and of its parameters in millions (Chen et al. 2023, as released)
    "t2v_512_v1.0": (1196, 1144.5),
    "t2v_1024_v1.0": (1200, 1146.5),
    "i2v_512_v1.0": (1516, 1438.8),
    "VideoCrafter2": (None, 1413.3),
}


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures are not beside this checkout")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=loads("Checkpoint", f"VideoCrafter {name}: every tensor in full size", within=0))
        for name in VIDEOCRAFTER
    ],
)
def test_videocrafter(name: str) -> None:
    """The keys are recorded from released code; VideoCrafter2 is VideoCrafter1's image-to-video network without images.

    There is no image-to-video checkpoint of VideoCrafter2.
    """
    all_shapes = json.loads(gzip.decompress((FIXTURES / "videocrafter_full_size_shapes.json.gz").read_bytes()))
    shapes = all_shapes["i2v_512_v1.0" if name == "VideoCrafter2" else name]
    if name == "VideoCrafter2":
        shapes = {key: shape for key, shape in shapes.items() if key.startswith(UNET) and "_ip." not in key}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    net = videocrafter.video_unet_from_videocrafter(tensors, name)
    assert {key: list(each.shape) for key, each in videocrafter.to_videocrafter(net).items()} == shapes
    own = [each for key, each in tensors.items() if key.startswith(UNET)]
    count, millions = VIDEOCRAFTER[name]
    assert count in (None, len(own))
    assert sum(each.numel() for each in own) / 1e6 == pytest.approx(millions, abs=0.1)


MOTION_MODULES = {  # "417 M" and "453 M" in AnimateDiff's list of models; SDXL's by our own count
    "v1": ({"motion_max_seq_length": 24}, 417_137_600),
    "v2": ({"use_motion_mid_block": True}, 453_209_280),
    "v3": ({}, 417_137_600),
    "SDXL": ({"block_out_channels": (320, 640, 1280)}, 236_779_200),
}


def released_motion_module(name: str) -> str:
    """Return the released name of a tensor of diffusers' MotionAdapter."""
    name = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name)
    name = re.sub(r"\.attn([12])\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.", name)
    name = re.sub(r"\.norm([12])\.", lambda found: f".norms.{int(found[1]) - 1}.", name)
    return name.replace(".norm3.", ".ff_norm.").replace(".pos_embed.", ".attention_blocks.0.pos_encoder.")


@pytest.mark.parametrize(
    "version",
    [
        pytest.param(name, marks=loads("Motion module", f"AnimateDiff {name}: every tensor in full size", within=0))
        for name in MOTION_MODULES
    ],
)
def test_animatediff(version: str) -> None:
    settings, parameters = MOTION_MODULES[version]
    adapter = on_meta(MotionAdapter, **{"use_motion_mid_block": False} | settings)
    assert sum(each.numel() for each in adapter.parameters()) == parameters
    tensors = {released_motion_module(name): each for name, each in adapter.state_dict().items()}
    copies = {n.replace("blocks.0.pos", "blocks.1.pos"): each for n, each in tensors.items() if n.endswith(".pe")}
    renamed = animatediff.to_diffusers_names(tensors | copies)
    assert {name: each.shape for name, each in renamed.items()} == {
        name: each.shape for name, each in adapter.state_dict().items()
    }
    family = SDXL if version == "SDXL" else SD1
    unet = on_meta(UNet2DConditionModel, **family.unet | {"cross_attention_dim": family.cross_attention})
    layers = on_meta(TemporalLayers, unet, animatediff.animatediff_config(renamed, {}))
    entries = animatediff.animatediff_key_map(layers, renamed)
    assert_mapped(layers, renamed, entries)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=loads("Checkpoint", f"{name}: folder, every tensor in full size", within=0))
        for name in ("ModelScope", "ZeroScope")
    ],
)
def test_modelscope_and_zeroscope(name: str) -> None:
    """Both have the configuration that is the default of diffusers' UNet3DConditionModel, with other sizes."""
    sample_size = 32 if name == "ModelScope" else (40, 72)
    unet = on_meta(UNet3DConditionModel, sample_size=sample_size, cross_attention_dim=1024, attention_head_dim=64)
    net = modelscope.video_unet_from_modelscope(unet)
    entries = {name: modelscope.modelscope_entry(name) for name in net.state_dict()}
    exported = key_map.export_tensors(net.state_dict(), entries)
    assert {key: each.shape for key, each in exported.items()} == {
        key: each.shape for key, each in unet.state_dict().items()
    }
    assert size(unet) == (1480, 1_411_233_860)


def test_vidrd_by_our_own_map() -> None:
    """SD 2.1's network with 22 temporal convolutions and 16 temporal attentions (Gu et al. 2023)."""
    config = TemporalConfig(
        num_frames=8, joint_norms=True, groups=vidrd.GROUPS,
        layers=(
            (Site(after="resnet"), ConvConfig()),
            (Site(after="cross_attention"), AttentionConfig(head_width=64, positions=vidrd.POSITIONS)),
        ),
    )  # fmt: skip
    net = architecture.empty_video_unet(SD2.unet | {"cross_attention_dim": SD2.cross_attention}, config)
    released = vidrd.to_vidrd(net)
    again = vidrd.video_unet_from_vidrd({name: each.to("meta") for name, each in released.items()}, "vidrd")
    assert {name: each.shape for name, each in vidrd.to_vidrd(again).items()} == {
        name: each.shape for name, each in released.items()
    }
    convolutions = {name.rpartition(".convs.")[0] for name in released if ".temp_convs." in name}
    attentions = {name.partition(".temp_attn")[0] for name in released if ".temp_attn" in name}
    assert (len(convolutions), len(attentions)) == (22, 16)
