"""Video models from released files and folders, and their conversion back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from models.loading.conftest import hub_of
from safetensors.torch import load_file, save_file
from tiny_videos import modelscope, off, shaken, two_levels, videocrafter, vidrd
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from kineograph.errors import InputError, InputWarning
from kineograph.models.conditioning import image_encoder, resampler
from kineograph.models.conditioning.image_encoder import ImageEncoder
from kineograph.models.conditioning.resampler import ResamplerConfig
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import vidrd as vidrd_format
from kineograph.models.loading import video_checkpoints
from kineograph.models.loading.components import Components
from kineograph.models.loading.load import load
from kineograph.models.loading.save import checkpoint_to_folder, folder_to_videocrafter, save
from kineograph.models.schedule import Schedule

RESAMPLER = ResamplerConfig(reads=24, width=32, gives=32, tokens=16, depth=2, heads=2, head_width=8)
Change = Callable[[dict[str, Tensor]], object]


def vision() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28,
            patch_size=14, projection_dim=20, hidden_act="gelu",
        )
    ).eval()  # fmt: skip


def components(folder: Path, *, images: bool = False, **temporal) -> Components:
    """A tiny VideoCrafter with the VAE and text encoder of a folder."""
    pipeline, unet = StableDiffusionPipeline.from_pretrained(folder), two_levels()
    encoder = None
    if images:
        resampler.add_resampler(unet, RESAMPLER)
        encoder = ImageEncoder(
            shaken(vision()), image_encoder.LAST, image_encoder.stretch_to_square, empty_color=image_encoder.GREY
        )
    pipeline.text_encoder.config.hidden_act = "gelu"
    text = TextEncoder(pipeline.tokenizer, CLIPTextModel(pipeline.text_encoder.config).eval())
    net = videocrafter(shaken(unet), **temporal)
    return Components(
        unet, pipeline.vae, (text,), video_checkpoints.VIDEOCRAFTER_SCHEDULER, False, encoder, net.temporal
    )


@dataclass
class Release:
    """A released file, and the folder with the sizes of its tiny networks."""

    file: Path
    config: Path
    tensors: dict[str, Tensor]

    def changed(self, change: Change) -> Path:
        tensors = dict(self.tensors)
        change(tensors)
        save_file(tensors, self.file.with_name("changed.safetensors"))
        return self.file.with_name("changed.safetensors")


def release(folder: Path, made: Components, **more: Tensor) -> Release:
    config = save(made, folder / "config")
    last = {
        f"cond_stage_model.model.transformer.resblocks.2.ln_1.{kind}": torch.ones(32) for kind in ("weight", "bias")
    }
    unread = {"cond_stage_model.model.logit_scale": torch.tensor(1.0), "betas": torch.ones(1000)}
    tensors = video_checkpoints.components_to_videocrafter(made) | last | unread | more
    save_file(tensors, folder / "model.safetensors")
    return Release(folder / "model.safetensors", config, tensors)


@pytest.fixture(scope="module")
def text_to_video(tmp_path_factory, sd_folder) -> Release:
    return release(tmp_path_factory.mktemp("t2v"), components(sd_folder, frame_rate=True))


@pytest.fixture(scope="module")
def image_to_video(tmp_path_factory, sd_folder) -> Release:
    return release(
        tmp_path_factory.mktemp("i2v"), components(sd_folder, images=True, frame_rate=True, convolution=True),
        scale_arr=torch.linspace(1, 0.7, 1400), **{"embedder.mean": torch.zeros(3)},
    )  # fmt: skip


def denoise(model, **told) -> Tensor:
    z = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.bind(model.prompt(["a fish"], fps=8), **told)(z, 3.0)


# --- released files


def test_released_file_is_a_video_model(text_to_video) -> None:
    model = load(text_to_video.file, config=text_to_video.config, dtype="float32")
    assert model.temporal.frame_rate and model.temporal.num_frames == 8
    assert model.temporal.layer_after("conv_in").heads == 2 and model.temporal.sampler == "euler-ancestral"
    assert model.schedule.settings["signal_scale"] == 0.3, "as the model of this kind was trained"


def test_vae_and_text_encoder_equal_those_of_diffusers_and_openclip(text_to_video, tmp_path: Path) -> None:
    """diffusers' converter is the oracle for the VAE."""
    model = load(text_to_video.file, config=text_to_video.config, dtype="float32")
    beside = {name: each for name, each in text_to_video.tensors.items() if name.startswith("first_stage_model.")}
    theirs = AutoencoderKL.from_single_file(beside, config=str(text_to_video.config / "vae"))
    assert all(torch.equal(each, theirs.state_dict()[name]) for name, each in model.vae.state_dict().items())
    open_clip = OpenCLIP({k.removeprefix("cond_stage_model.model."): v for k, v in text_to_video.tensors.items()}, 4)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.allclose(model.text_encoders[0].network(ids).last_hidden_state, open_clip.text(ids, 2), atol=1e-5)


def test_image_encoder_of_an_image_to_video_file(image_to_video) -> None:
    model = load(image_to_video.file, config=image_to_video.config, dtype="float32")
    assert model.schedule.settings["signal_scale"] == 0.7, "as the file says"
    reader = model.image_encoder
    assert (reader.layer, reader.resize, reader.empty_color) == (
        image_encoder.LAST,
        image_encoder.stretch_to_square,
        image_encoder.GREY,
    )
    open_clip = OpenCLIP({k.removeprefix("embedder.model.visual."): v for k, v in image_to_video.tensors.items()}, 4)
    pixels = torch.randn(1, 3, 28, 28)
    states = reader.network(pixels, output_hidden_states=True).hidden_states[reader.layer]
    assert torch.allclose(states, open_clip.vision(pixels, 2), atol=1e-5)
    assert model.image_tokens(torch.rand(1, 3, 20, 30)).shape == (1, 16, 32)


class OpenCLIP:
    """Both encoders, written independently from the released code's layer names."""

    def __init__(self, weights: dict[str, Tensor], heads: int) -> None:
        self.weights, self.heads = weights, heads

    def text(self, ids: Tensor, blocks: int) -> Tensor:
        x = self.weights["token_embedding.weight"][ids] + self.weights["positional_embedding"][: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        for number in range(blocks):
            x = self.block(x, number, mask)
        return self.norm(x, "ln_final")

    def vision(self, pixels: Tensor, blocks: int) -> Tensor:
        patches = nn.functional.conv2d(pixels, self.weights["conv1.weight"], stride=14).flatten(2).mT
        first = self.weights["class_embedding"].expand(len(pixels), 1, -1)
        x = self.norm(torch.cat([first, patches], 1) + self.weights["positional_embedding"], "ln_pre")
        for number in range(blocks):
            x = self.block(x, number, None)
        return x

    def block(self, x: Tensor, number: int, mask: Tensor | None) -> Tensor:
        name = f"transformer.resblocks.{number}"
        attention = nn.MultiheadAttention(x.shape[-1], self.heads, batch_first=True)
        attention.load_state_dict({key: self.weights[f"{name}.attn.{key}"] for key in attention.state_dict()})
        normed = self.norm(x, f"{name}.ln_1")
        x = x + attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        inside = self.linear(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        return x + self.linear(nn.functional.gelu(inside), f"{name}.mlp.c_proj")

    def norm(self, x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def linear(self, x: Tensor, name: str) -> Tensor:
        return nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


@pytest.mark.parametrize("wrapped", ["state_dict", "module"])
def test_lightning_and_deepspeed_checkpoints(text_to_video, tmp_path: Path, wrapped: str) -> None:
    prefix = {"state_dict": "", "module": "_forward_module."}[wrapped]
    tensors = {prefix + name: each for name, each in text_to_video.tensors.items()}
    torch.save({wrapped: tensors, "epoch": 3}, tmp_path / "model.ckpt")
    model = load(tmp_path / "model.ckpt", config=text_to_video.config, dtype="float32")
    assert off(denoise(model), denoise(load(text_to_video.file, config=text_to_video.config, dtype="float32"))) < 1e-5


TABLE = "model.diffusion_model.input_blocks.1.2.transformer_blocks.0.attn1.relative_position_k.embeddings_table"
WRONG: dict[str, tuple[Change, str]] = {
    "a tensor is missing": (lambda t: t.pop(TABLE), r"1 are missing \(.*input_blocks\.1\.2.*embeddings_table"),
    "one is left over": (
        lambda t: t.update({"model.diffusion_model.extra.weight": torch.ones(2)}), r"1 are not known \(.*extra\.weight"
    ),
    "one has another shape": (
        lambda t: t.update({TABLE: torch.ones(5, 4)}), r"1 are of another shape \(.*is 5 x 4, expected 17 x 4"
    ),
    "the downsamplers are missing": (
        lambda t: [t.pop(name) for name in list(t) if ".op." in name], "determine no architecture"
    ),
    "a stranger": (lambda t: t.update(stranger=torch.ones(2)), r"has 1 tensors of no part of one \(strange"),
    "there is no VAE": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("first_stage")], "has no VAE"
    ),
    "the VAE lacks a tensor": (
        lambda t: t.pop("first_stage_model.quant_conv.bias"), r"the VAE in .* 1 are missing \(quant_conv\.bias\)"
    ),
    "the text encoder lacks a tensor": (
        lambda t: t.pop("cond_stage_model.model.ln_final.bias"), r"the text encoder in .* 1 are missing \(ln_final"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG.keys())
def test_error_names_what_is_wrong_with_a_file(text_to_video, change: Change, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(text_to_video.changed(change), config=text_to_video.config, dtype="float32")


@pytest.mark.parametrize(("scale", "terminal"), [(None, 4.7e-3), (0.3, 4.2e-4), (0.7, 2.3e-3)])
def test_signal_scale_falls_over_400_steps_and_stays(scale: float | None, terminal: float) -> None:
    """papers.md, 4a, the signal-to-noise ratios of the last timestep."""
    stock = Schedule.from_config(video_checkpoints.VIDEOCRAFTER_SCHEDULER)
    scaled = Schedule.from_config(video_checkpoints.VIDEOCRAFTER_SCHEDULER | {"signal_scale": scale})
    ratios = [ours / theirs for ours, theirs in zip(stock.sigmas, scaled.sigmas, strict=True)]
    assert scaled.sigmas[-1] ** -2 == pytest.approx(terminal, rel=0.02)
    assert ratios[0] == 1 and ratios[399:] == pytest.approx([scale or 1.0] * 601)
    assert ratios[200] == pytest.approx(1 + ((scale or 1.0) - 1) * 200 / 399)


# --- VidRD


def test_vidrd_file_is_completed_from_its_image_model(sd_folder: Path, tmp_path: Path) -> None:
    shape = {"block_out_channels": (32, 64), "norm_num_groups": 8}
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipeline.register_modules(unet=two_levels(**shape))
    pipeline.save_pretrained(tmp_path / "sd")
    net = vidrd(shaken(two_levels(**shape)))
    text = {f"text_encoder.text_model.{name}": each + 1 for name, each in pipeline.text_encoder.state_dict().items()}
    torch.save({"state_dict": vidrd_format.to_vidrd(net) | text}, tmp_path / "vidrd.ckpt")
    model = load(tmp_path / "vidrd.ckpt", config=tmp_path / "sd", dtype="float32")
    weights = model.net.state_dict()
    assert all(torch.equal(weights[name], each) for name, each in net.state_dict().items())
    assert torch.equal(
        model.text_encoders[0].network.final_layer_norm.bias, pipeline.text_encoder.final_layer_norm.bias + 1
    )
    assert model.temporal.layer_after("cross_attention").positions == 128 and model.temporal.joint_norms
    with pytest.raises(InputError, match="name in `config` the folder or repository of Stable Diffusion 2.1 base"):
        load(tmp_path / "vidrd.ckpt")


# --- folders


@pytest.mark.parametrize("kind", ["text_to_video", "image_to_video"])
def test_released_file_converts_to_a_folder_and_back_bit_for_bit(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Release = request.getfixturevalue(kind)
    folder = checkpoint_to_folder(made.file, tmp_path / "folder", config=made.config)
    with pytest.warns(InputWarning, match="the file is opened with this folder as `config`"):
        back = load_file(folder_to_videocrafter(folder, tmp_path / "back.safetensors"))
    assert back.keys() == made.tensors.keys()
    assert all(torch.equal(back[name], each) and back[name].dtype == each.dtype for name, each in made.tensors.items())
    with pytest.warns(InputWarning):
        written = folder_to_videocrafter(folder, tmp_path / "back.ckpt")
    again = torch.load(written, weights_only=True)["state_dict"]
    assert again.keys() == back.keys()


def test_saved_model_loads_unchanged(image_to_video, tmp_path: Path) -> None:
    model = load(image_to_video.file, config=image_to_video.config, dtype="float32")
    again = load(save(model, tmp_path / "saved"), dtype="float32")
    adapter = json.loads((tmp_path / "saved" / "image_adapter" / "config.json").read_text())
    assert (adapter["fit"], adapter["blank"]) == ("squashed", [0.5, 0.5, 0.5]), "as in folders saved before"
    weights = again.net.state_dict()
    assert all(torch.equal(weights[name], each) for name, each in model.net.state_dict().items())
    image = torch.rand(1, 3, 20, 30)
    assert off(denoise(again), denoise(model)) < 1e-5
    assert off(again.image_tokens(image), model.image_tokens(image)) < 1e-5
    assert off(again.image_tokens(None), model.image_tokens(None)) < 1e-5
    assert again.schedule == model.schedule and again.temporal == model.temporal


def test_diffusers_loads_the_image_model_of_a_saved_folder(text_to_video) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(text_to_video.config)
    assert torch.equal(
        pipeline.unet.conv_in.weight, text_to_video.tensors["model.diffusion_model.input_blocks.0.0.weight"]
    )


def test_failed_save_leaves_no_files(text_to_video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(text_to_video.config, dtype="float32")
    monkeypatch.setattr("kineograph.models.loading.video_folder.write_layers", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is there already"):
        save(model, tmp_path)


def test_saved_folder_with_damaged_temporal_layers_is_refused(text_to_video, tmp_path: Path) -> None:
    folder = save(load(text_to_video.config, dtype="float32"), tmp_path / "saved")
    weights = folder / "temporal" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    gone = next(iter(tensors))
    save_file({name: each for name, each in tensors.items() if name != gone}, weights)
    with pytest.raises(InputError, match="1 are missing"):
        load(folder)
    config = json.loads((folder / "temporal" / "config.json").read_text())
    (folder / "temporal" / "config.json").write_text(json.dumps(config | {"flavour": "sweet"}))
    with pytest.raises(InputError, match="from a newer Kineograph"):
        load(folder)


@pytest.mark.slow
def test_folder_with_the_network_of_modelscope(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    net = modelscope(cross_attention_dim=32)
    pipeline.save_pretrained(tmp_path / "zeroscope")
    index = json.loads((tmp_path / "zeroscope" / "model_index.json").read_text())
    index |= {"_class_name": "TextToVideoSDPipeline", "unet": ["diffusers", "UNet3DConditionModel"]}
    (tmp_path / "zeroscope" / "model_index.json").write_text(json.dumps(index))
    for old in (tmp_path / "zeroscope" / "unet").iterdir():
        old.unlink()
    net.save_pretrained(tmp_path / "zeroscope" / "unet", safe_serialization=False)  # as ZeroScope's is
    model = load(tmp_path / "zeroscope", dtype="float32")
    assert model.temporal.layer_after("resnet") and not model.temporal.frame_rate
    assert off(denoise(load(save(model, tmp_path / "saved"), dtype="float32")), denoise(model)) < 1e-5

    asked: list[list[str]] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub_of(tmp_path / "zeroscope", tmp_path / "cache", asked))
    assert load("someone/zeroscope").temporal == model.temporal
    pickled = [[each for each in patterns if each.endswith(".bin")] for patterns in asked]
    assert [bool(each) for each in pickled] == [False, False, True], "where it must"
    assert all(each.startswith("unet/") for each in pickled[-1]), "of networks without another file"
