"""Motion modules on image networks that they were not trained with, and LoRAs for them."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from tiny_videos import adapter, animatediff, modelscope, off, shaken, two_levels, videocrafter
from torch import Tensor

from kineograph.errors import InputError, InputWarning
from kineograph.models.conditioning.condition import Condition
from kineograph.models.formats import videocrafter as videocrafter_format
from kineograph.models.loading import components
from kineograph.models.loading.load import load
from kineograph.models.loading.save import save

WIDE = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 32}


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def denoise(model) -> Tensor:
    z = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.bind(model.prompt(["a fish"]))(z, 3.0)


def released(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Motion modules by the names of AnimateDiff's own code, written independently."""
    renamed = {}
    for name, each in tensors.items():
        for ours, theirs in {
            ".transformer_blocks": ".temporal_transformer.transformer_blocks", ".attn1.": ".attention_blocks.0.",
            ".attn2.": ".attention_blocks.1.", ".norm1.": ".norms.0.", ".norm2.": ".norms.1.", ".norm3.": ".ff_norm.",
        }.items():  # fmt: skip
            name = name.replace(ours, theirs)
        for outside in ("norm", "proj_in", "proj_out"):
            if f"temporal_transformer.{outside}" not in name and "transformer_blocks" not in name:
                name = name.replace(f".{outside}.", f".temporal_transformer.{outside}.")
        if ".pos_embed.pe" in name:
            for number in (0, 1):
                renamed[name.replace(".pos_embed.pe", f".attention_blocks.{number}.pos_encoder.pe")] = each.clone()
        else:
            renamed[name] = each
    return renamed


# --- motion modules


@pytest.fixture
def adapter_folder(tmp_path) -> Path:
    adapter().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_motion_module_from_a_diffusers_folder(sd_folder: Path, adapter_folder) -> None:
    model = load(sd_folder, motion_module=adapter_folder, dtype="float32")
    [(site, _)] = model.temporal.layers
    assert (site.after, site.mid_block, model.temporal.max_frames) == ("stage", True, 24)
    assert model.settings["motion_module"] == str(adapter_folder)
    assert off(denoise(model), denoise(load(sd_folder, dtype="float32"))) > 1e-2


def test_motion_module_brings_its_noise_schedule(sd_folder: Path, adapter_folder) -> None:
    stock = DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    level = load(sd_folder, motion_module=adapter_folder).schedule.sigmas[500]
    signal = stock.alphas_cumprod[500].item()
    assert level == pytest.approx(((1 - signal) / signal) ** 0.5, rel=1e-4)


def wrapped(tensors: dict[str, Tensor]) -> dict:
    return {"state_dict": {f"module.{name}": each for name, each in tensors.items()}, "epoch": 1}


VERSIONS = {"v1": ({"use_motion_mid_block": False}, dict), "v2": ({}, dict), "v3": ({}, wrapped)}


@pytest.mark.parametrize(("settings", "wrap"), VERSIONS.values(), ids=VERSIONS.keys())
def test_released_motion_module_equals_the_diffusers_folder(
    sd_folder: Path, tmp_path: Path, settings: dict, wrap
) -> None:
    motion = adapter(**settings)
    motion.save_pretrained(tmp_path / "adapter")
    torch.save(wrap(released(motion.state_dict())), tmp_path / "mm.ckpt")
    got, expected = (load(sd_folder, motion_module=tmp_path / name, dtype="float32") for name in ("mm.ckpt", "adapter"))
    assert got.temporal == expected.temporal.model_copy(update={"groups": None})
    assert off(denoise(got), denoise(expected)) < 1e-5


def test_motion_module_from_a_repository(sd_folder: Path, adapter_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.append((name, options["allow_patterns"])) or str(adapter_folder),
    )
    model = load(sd_folder, motion_module="someone/motion-adapter", dtype="float32")
    assert model.settings["motion_module"] == "someone/motion-adapter"
    assert asked[-1][0] == "someone/motion-adapter" and "diffusion_pytorch_model.safetensors" in asked[-1][1]


def test_motion_module_from_a_live_motion_adapter(sd_folder: Path, adapter_folder) -> None:
    model = load(sd_folder, motion_module=adapter(), dtype="float32")
    assert off(denoise(model), denoise(load(sd_folder, motion_module=adapter_folder, dtype="float32"))) < 1e-5
    assert model.settings == {}, "a live object cannot be recorded"


def test_live_animatediff_pipeline(sd_folder: Path) -> None:
    """The components that this library reads are those of diffusers' AnimateDiffPipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    net = animatediff(**WIDE)
    pipeline.register_modules(unet=net)
    model = load(pipeline)
    z, tokens = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 7, 32)
    expected = net(z.transpose(1, 2), 7, tokens.repeat_interleave(4, 0)).sample.transpose(1, 2)
    assert off(model.net(z, 7, Condition(tokens)), expected) < 1e-4


# --- temporal layers of other video models


def test_temporal_layers_of_a_saved_video_model(sd_folder: Path, adapter_folder, tmp_path: Path) -> None:
    moving = load(sd_folder, motion_module=adapter_folder, dtype="float32")
    folder = save(moving, tmp_path / "saved")
    for source in (folder, folder / "temporal"):
        again = load(sd_folder, motion_module=source, dtype="float32")
        assert off(denoise(again), denoise(moving)) < 1e-5
        assert again.schedule == moving.schedule


def test_temporal_layers_of_a_modelscope_folder(sd_folder: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    pipeline.register_modules(unet=modelscope(**WIDE, **blocks, attention_head_dim=4))
    pipeline.save_pretrained(tmp_path / "modelscope")
    model = load(sd_folder, motion_module=tmp_path / "modelscope", dtype="float32")
    assert {site.after for site, _ in model.temporal.layers} == {"conv_in", "resnet", "transformer"}


def test_temporal_layers_of_a_videocrafter_file_bring_its_signal_scale(sd_folder: Path, tmp_path: Path) -> None:
    shape = {"block_out_channels": (64, 64), "attention_head_dim": (1, 1), "norm_num_groups": 32}  # as files have it
    net = videocrafter(shaken(two_levels(**shape)), head_width=64, frame_rate=True)
    save_file(videocrafter_format.to_videocrafter(net), tmp_path / "videocrafter.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipeline.register_modules(unet=two_levels(**shape))
    pipeline.save_pretrained(tmp_path / "wide")
    model = load(tmp_path / "wide", motion_module=tmp_path / "videocrafter.safetensors", dtype="float32")
    assert model.temporal.frame_rate and model.schedule.settings["signal_scale"] == 0.3


# --- layers that do not fit


def test_temporal_layers_for_other_widths_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    adapter(block_out_channels=(8, 16, 16)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"blocks 8, 16, 16 wide, and this is an image network with blocks 8, 16 wide"):
        load(sd_folder, motion_module=tmp_path / "adapter")


def test_temporal_layers_of_another_depth_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    adapter(motion_layers_per_block=2).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"do not fit this image network.*are not known"):
        load(sd_folder, motion_module=tmp_path / "adapter")


def test_temporal_layers_for_tokens_of_another_width_load_with_a_warning(
    make_sd, sd_folder: Path, adapter_folder, tmp_path: Path
) -> None:
    folder = save(load(sd_folder, motion_module=adapter_folder, dtype="float32"), tmp_path / "saved")
    make_sd(reads=48).save_pretrained(tmp_path / "other")
    with pytest.warns(InputWarning, match="they fit, but the motion may be poor"):
        load(tmp_path / "other", motion_module=folder)


def test_temporal_layers_for_other_transformers_are_refused(
    sdxl_folder: Path, sd_folder: Path, adapter_folder, tmp_path: Path
) -> None:
    folder = save(load(sd_folder, motion_module=adapter_folder, dtype="float32"), tmp_path / "saved")
    with pytest.raises(InputError, match=r"do not fit this image network.*are missing"):
        load(sdxl_folder, motion_module=folder)


def test_replaced_noise_schedule_of_a_pipeline_is_warned_of(sd_folder: Path, adapter_folder) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    with pytest.warns(InputWarning, match="beta_schedule=scaled_linear.*trained with beta_schedule=linear"):
        load(pipeline, motion_module=adapter_folder)
    pipeline.scheduler = DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    load(pipeline, motion_module=adapter_folder)


def test_motion_modules_of_pia_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    adapter(conv_in_channels=9).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="^these are PIA"):
        load(sd_folder, motion_module=tmp_path / "adapter")


def test_sources_without_temporal_layers_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no temporal layers: expected the folder of a motion adapter"):
        load(sd_folder, motion_module=sd_folder)
    save_file({"decoder.weight": torch.ones(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match="no temporal layers of a supported kind. It looks like a VAE"):
        load(sd_folder, motion_module=tmp_path / "vae.safetensors")


def test_motion_modules_alone_are_no_model(tmp_path: Path) -> None:
    save_file(released(adapter().state_dict()), tmp_path / "mm.safetensors")
    with pytest.raises(InputError, match="pass this as `motion_module`"):
        load(tmp_path / "mm.safetensors")


# --- LoRAs for them


SITE = "down_blocks.0.motion_modules.0."
NAMES = {
    "diffusers, old": f"unet.{SITE}transformer_blocks.0.attn1.processor.to_q_lora.{{}}.weight",
    "diffusers": f"unet.{SITE}transformer_blocks.0.attn1.to_q.lora_{{}}.weight",
    "released": f"{SITE}temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.{{}}.weight",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
@pytest.mark.slow
def test_motion_lora_equals_merged_weights(sd_folder: Path, adapter_folder, tmp_path: Path, name: str) -> None:
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    ends = ("A", "B") if "lora_" in name else ("down", "up")
    save_file(
        {name.format(end): each for end, each in zip(ends, (down, up), strict=True)}, tmp_path / "pan.safetensors"
    )
    model = load(sd_folder, motion_module=adapter_folder, lora=(tmp_path / "pan.safetensors", 0.5), dtype="float32")
    by_hand = load(sd_folder, motion_module=adapter_folder, dtype="float32")
    layer = by_hand.net.temporal.get_submodule("after.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    layer.weight += 0.5 * up @ down
    assert off(denoise(model), denoise(by_hand)) < 1e-5
    with pytest.raises(InputError, match="temporal has LoRAs on it"):
        save(model, tmp_path / "saved")


def test_motion_lora_without_a_motion_module_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    save_file({NAMES["diffusers"].format(end): torch.ones(2, 2) for end in "AB"}, tmp_path / "pan.safetensors")
    with pytest.raises(InputError, match="It is for a motion module: load the model with that motion module"):
        load(sd_folder, lora=tmp_path / "pan.safetensors")


def test_domain_lora_with_a_motion_module(sd_folder: Path, adapter_folder, tmp_path: Path) -> None:
    """As AnimateDiff's domain adapter: a LoRA of the image network, by the names of its first release."""
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight"
    weights = {name.format("down"): torch.randn(2, 8), name.format("up"): torch.randn(8, 2)}
    torch.save({"state_dict": weights}, tmp_path / "domain.ckpt")
    model = load(sd_folder, motion_module=adapter_folder, lora=tmp_path / "domain.ckpt", dtype="float32")
    assert off(denoise(model), denoise(load(sd_folder, motion_module=adapter_folder, dtype="float32"))) > 1e-3


def test_components_of_a_live_modelscope_pipeline_share_its_weights(sd_folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipeline.register_modules(unet=modelscope())
    opened = components.components_from_pipeline(pipeline)
    assert opened.unet.conv_in.weight.data_ptr() == pipeline.unet.conv_in.weight.data_ptr()
    assert opened.temporal.config.layer_after("resnet")


def test_motion_module_on_a_model_with_noise_levels_of_edm_is_refused(sd_pipeline) -> None:
    sd_pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(InputError, match="has the continuous noise levels of EDM, and the temporal layers of .* betas"):
        load(sd_pipeline, motion_module=adapter())
