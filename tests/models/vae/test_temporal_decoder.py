"""Temporal decoder: equal to its formula, independent of chunks, saved and opened, refused for other VAEs."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_videos import shaken, two_levels, vidrd
from torch import Tensor, nn

from kineograph.errors import InputError
from kineograph.models.formats import vidrd as vidrd_layout
from kineograph.models.formats.key_map import export_tensors
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.loading.save import save
from kineograph.models.vae import vae_files
from kineograph.models.vae.autoencoder import decode_per_frame
from kineograph.models.vae.temporal_decoder import (
    TemporalDecoder,
    TemporalDecoderConfig,
    apply_streaming,
    decoder_blocks,
    reconstruction_errors,
)


def autoencoder(*channels: int, groups: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    levels = len(channels)
    return AutoencoderKL(
        block_out_channels=channels, layers_per_block=1, norm_num_groups=groups, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()  # fmt: skip


def decoder_for(vae: AutoencoderKL, groups: int = 4, **settings) -> TemporalDecoder:
    return TemporalDecoder(TemporalDecoderConfig(blocks=decoder_blocks(vae), groups=groups, **settings)).eval()


VAE = autoencoder(8, 16)
Z = torch.randn(2, 7, 4, 4, 4, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def decode(decoder, vae: AutoencoderKL = VAE, z: Tensor = Z, size: int = 3) -> Tensor:
    return torch.cat(list(decoder(vae, z, size)), dim=1)


# --- computation


@pytest.mark.parametrize("size", [1, 3, 7, 20])
@pytest.mark.parametrize("joint", [False, True])
def test_untrained_it_equals_the_plain_decoder(size: int, joint) -> None:
    decoder = decoder_for(VAE, joint_norms=joint, num_frames=4)
    plain = decode(decode_per_frame, size=size)
    assert torch.equal(decode(decoder, size=size), plain) if not joint else torch.allclose(decode(decoder), plain)


@pytest.mark.parametrize("joint", [False, True])
def test_one_frame_passes_it_by_bit_for_bit(joint) -> None:
    decoder = shaken(decoder_for(VAE, joint_norms=joint))
    assert torch.equal(decode(decoder, z=Z[:, :1]), decode(decode_per_frame, z=Z[:, :1]))
    assert not torch.allclose(decode(decoder, z=Z[:, :2]), decode(decode_per_frame, z=Z[:, :2]), atol=0.01)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_chunk_size_does_not_change_the_result(size: int) -> None:
    decoder = shaken(decoder_for(VAE))
    assert torch.allclose(decode(decoder, size=size), decode(decoder, size=7), atol=1e-6)


def test_the_number_of_frames_held_back_does_not_grow_with_the_video() -> None:
    decoder, ahead = shaken(decoder_for(VAE)), []
    for frames in (20, 40):
        taken, most = 0, 0

        def parts(frames: int = frames) -> Iterator[Tensor]:
            nonlocal taken
            for part in torch.zeros(1, frames, 4, 2, 2).split(1, dim=1):
                taken += 1
                yield part

        with torch.no_grad():
            for given, _ in enumerate(decoder._decode(VAE, parts(), apply_streaming), 1):
                most = max(most, taken - given)
        ahead.append(most)
    assert ahead[0] == ahead[1] == 3 * sum(resnets for _, resnets in decoder_blocks(VAE))


def test_a_frame_depends_on_its_neighbours() -> None:
    decoder, other = shaken(decoder_for(VAE)), Z.clone()
    other[:, 3] += 1
    changed = (decode(decoder, z=other) - decode(decoder)).abs().amax((0, 2, 3, 4))
    assert changed[3] == changed.max() and (changed > 0).all()


def test_the_vae_is_unchanged() -> None:
    before = {name: id(each) for name, each in VAE.named_modules()}, decode(decode_per_frame)
    decode(shaken(decoder_for(VAE)))
    assert before[0] == {name: id(each) for name, each in VAE.named_modules()}
    assert torch.equal(before[1], decode(decode_per_frame))


def test_a_layer_equals_its_formula() -> None:
    """Three times group norm, SiLU and a 3 x 1 x 1 convolution, with one residual connection (VidRD)."""
    decoder = shaken(decoder_for(VAE, joint_norms=True))
    layer, x = decoder.up_blocks[0][0], torch.randn(2, 5, 16, 3, 3)
    inside = x.transpose(1, 2)
    for norm, conv in layer.norms_and_convs():
        inside = nn.functional.group_norm(inside, 4, norm.weight, norm.bias)
        inside = nn.functional.conv3d(nn.functional.silu(inside), conv.weight[..., None], conv.bias, padding=(1, 0, 0))
    assert torch.allclose(layer(x.flatten(0, 1), 5), (x + inside.transpose(1, 2)).flatten(0, 1), atol=1e-6)


def test_with_joint_norms_each_frame_is_from_the_window_around_it() -> None:
    decoder = shaken(decoder_for(VAE, joint_norms=True, num_frames=4))
    first, last = (decode(decoder, z=Z[:, part]) for part in (slice(0, 4), slice(3, 7)))
    assert torch.allclose(decode(decoder), torch.cat([first[:, :3], last[:, 0:]], dim=1), atol=1e-6)


# --- training


def decoder_loss(decoder: TemporalDecoder, vae: AutoencoderKL, z: Tensor, frames: Tensor) -> Tensor:
    return sum(reconstruction_errors(decoder, vae, z, frames))


def test_reconstruction_errors_are_those_of_pixels_and_of_their_changes() -> None:
    decoder = decoder_for(VAE)
    frames = decode(decode_per_frame, size=7)
    assert not decoder_loss(decoder, VAE, Z, frames).any()
    alike = decoder_loss(decoder, VAE, Z, frames + 0.5)
    flickering = decoder_loss(decoder, VAE, Z, frames + 0.5 * torch.tensor([1.0, -1] * 4)[:7, None, None, None])
    assert alike.tolist() == pytest.approx([0.5, 0.5]) and flickering.tolist() == pytest.approx([1.5, 1.5])


def test_training_reduces_flicker() -> None:
    torch.manual_seed(0)
    vae, decoder = autoencoder(8, 16).requires_grad_(requires_grad=False), decoder_for(VAE).train()
    still = Z[:, :1].expand(-1, 6, -1, -1, -1)
    flickering, frames = still + 0.3 * torch.randn(2, 6, 4, 4, 4), decode(decode_per_frame, vae, still)
    descent = torch.optim.AdamW(decoder.parameters(), 3e-3)
    errors = []
    for _ in range(40):
        error = decoder_loss(decoder, vae, flickering, frames).mean()
        descent.zero_grad()
        error.backward()
        descent.step()
        errors.append(error.item())
    assert sum(errors[-5:]) < 0.6 * sum(errors[:5])
    assert all(weight.grad is None for weight in vae.parameters())


# --- saving and loading


@pytest.fixture
def trained(sd_folder) -> TemporalDecoder:
    """Return a temporal decoder for the tiny pipeline's VAE."""
    return shaken(decoder_for(load(sd_folder).vae))


def same(one: nn.Module, other: nn.Module) -> bool:
    weights = other.state_dict()
    return all(torch.equal(each, weights[name]) for name, each in one.state_dict().items())


@pytest.mark.slow
def test_a_model_decodes_with_it_and_saves_it(sd_folder, trained, tmp_path) -> None:
    plain, model = load(sd_folder, dtype="float32"), load(sd_folder, decoder=trained, dtype="float32")
    latents = 0.2 * torch.randn(1, 5, 4, 8, 8)
    frames = model.decode(latents)
    assert frames.shape == plain.decode(latents).shape and not torch.allclose(frames, plain.decode(latents), atol=0.01)
    assert torch.equal(replace(model, temporal_decoder=None).decode(latents), plain.decode(latents))
    assert torch.allclose(torch.cat(list(model.decode_chunks(latents, 2)), 1), frames, atol=1e-5)
    assert model.settings == {}, "an open network has no file name to record"
    again = load(save(model, tmp_path / "saved"), dtype="float32")
    assert same(again.temporal_decoder, trained) and torch.equal(again.decode(latents), frames)
    assert fingerprints(again)["temporal_decoder"] == fingerprints(model)["temporal_decoder"]


def test_it_is_loaded_onto_another_model_from_a_folder(sd_folder, trained, tmp_path) -> None:
    folder = save(load(sd_folder, decoder=trained, dtype="float32"), tmp_path / "saved")
    for source in (folder, folder / "temporal_decoder"):
        model = load(sd_folder, decoder=source, dtype="float32")
        assert same(model.temporal_decoder, trained) and model.settings["decoder"] == str(source)


def test_a_temporal_decoder_of_another_vae_is_refused(sd_folder, trained, tmp_path) -> None:
    other = decoder_for(autoencoder(8, 8, 16))
    with pytest.raises(
        InputError,
        match="blocks of 16, 8, 8 channels with 2, 2, 2 ResNet blocks, and this one has blocks of 16, 8 channels",
    ):
        load(sd_folder, decoder=other)
    with pytest.raises(InputError, match="the VAE makes latents 4 times smaller than images"):
        load(sd_folder, decoder=trained, vae=autoencoder(8, 8, 16))
    with pytest.raises(InputError, match="has no temporal decoder: expected a folder temporal_decoder"):
        load(sd_folder, decoder=sd_folder)
    with pytest.raises(InputError, match="there is no"):
        load(sd_folder, decoder=tmp_path / "nothing")


def test_a_damaged_folder_is_named(sd_folder, trained, tmp_path) -> None:
    folder = save(load(sd_folder, decoder=trained, dtype="float32"), tmp_path / "saved")
    file = folder / "temporal_decoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["up_blocks.0.1.conv2.norm.weight"]
    save_file(tensors, file)
    with pytest.raises(InputError, match="1 are missing .up_blocks.0.1.conv2.norm.weight"):
        load(folder)
    file.unlink()
    with pytest.raises(InputError, match="temporal_decoder has no diffusion_pytorch_model.safetensors"):
        load(folder)


# --- VidRD's released layout


@pytest.fixture
def released(sd_folder, tmp_path):
    """Return a released checkpoint with a decoder, the folder of its image model, and the decoder."""
    wide = {"block_out_channels": (32, 64), "norm_num_groups": 8}
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipeline.register_modules(unet=two_levels(**wide), vae=autoencoder(32, 64, groups=8))
    pipeline.save_pretrained(tmp_path / "sd")
    decoder = shaken(decoder_for(pipeline.vae, groups=32, joint_norms=True))
    tensors = vidrd_layout.to_vidrd(vidrd(shaken(two_levels(**wide))))
    tensors |= {
        f"vae.{name}": each
        for name, each in export_tensors(decoder.state_dict(), vae_files.vidrd_key_map(decoder)).items()
    }
    return tensors, tmp_path / "sd", decoder


def written(tensors, folder):
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder.parent / "vidrd.safetensors")
    return folder.parent / "vidrd.safetensors"


@pytest.mark.slow
def test_a_released_checkpoint_has_its_decoder(released) -> None:
    tensors, folder, decoder = released
    model = load(written(tensors, folder), config=folder, dtype="float32")
    assert same(model.temporal_decoder, decoder)
    assert model.temporal_decoder.config.joint_norms and model.temporal_decoder.config.convolutions == 3
    assert tensors["vae.decoder.up_blocks.1.temp_convs.0.convs.11.weight"].shape == (32, 32, 3, 1, 1)
    alone = load(folder, decoder=folder.parent / "vidrd.safetensors", dtype="float32")
    latents = 0.2 * torch.randn(1, 4, 4, 4, 4)
    assert torch.equal(alone.decode(latents), model.decode(latents))


def test_the_vae_of_a_released_checkpoint_is_read_by_its_old_names(released) -> None:
    tensors, folder, _ = released
    vae = load(folder, dtype="float32").vae
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, each in vae.state_dict().items():
        for now, then in old.items():
            name = name.replace(f".{now}.", f".{then}.")
        tensors[f"vae.{name}"] = each + 1
    opened = load(written(tensors, folder), config=folder, dtype="float32").vae.state_dict()
    assert all(torch.equal(opened[name], each + 1) for name, each in vae.state_dict().items())
    del tensors["vae.encoder.conv_in.weight"]
    with pytest.raises(InputError, match="the VAE in .* is not like the one in config: .*encoder.conv_in.weight"):
        load(written(tensors, folder), config=folder)


def test_an_incomplete_decoder_is_refused(released, sd_folder) -> None:
    tensors, folder, _ = released
    with pytest.raises(InputError, match="the temporal decoder of .* is for a VAE whose decoder has blocks of 64, 32"):
        load(sd_folder, decoder=written(tensors, folder))
    del tensors["vae.decoder.up_blocks.0.temp_convs.1.convs.4.bias"]
    with pytest.raises(InputError, match="looks like VidRD's temporal decoder, but does not fit one: .*convs.4.bias"):
        load(written(tensors, folder), config=folder)
    with pytest.raises(InputError, match="has no temporal decoder, which would have"):
        load(folder, decoder=folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_configuration_of_the_first_version_is_read() -> None:
    old = {"blocks": [[16, 2]], "in_a_row": 2, "groups": 4, "num_frames": 8, "joint_norms": False}
    expected = TemporalDecoderConfig(blocks=((16, 2),), convolutions=2, groups=4)
    assert TemporalDecoderConfig.model_validate_json(json.dumps(old)) == expected
