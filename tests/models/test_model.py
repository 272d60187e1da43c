"""Model: prompts, denoising, encoding and decoding equal those of the diffusers pipeline it was made from."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from kineograph.errors import InputError
from kineograph.models.conditioning.condition import Condition
from kineograph.models.conditioning.text_encoder import unknown_words
from kineograph.models.loading.load import load
from kineograph.models.unet import frame_attention


@pytest.fixture
def model(sd_pipeline: StableDiffusionPipeline):
    return load(sd_pipeline)


def noisy_latents(frames: int = 5, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, frames, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_prompts_are_encoded_as_by_stable_diffusion(sd_pipeline, model, clip_skip) -> None:
    texts = ["a red fish", ""]
    # what diffusers does for clip_skip, which fails there with a flattened text encoder
    ids = sd_pipeline.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    states = sd_pipeline.text_encoder(ids, output_hidden_states=True).hidden_states
    expected = sd_pipeline.text_encoder.final_layer_norm(states[-1 - (clip_skip or 0)])
    if clip_skip is None:
        assert torch.equal(expected, sd_pipeline.encode_prompt(texts, "cpu", 1, False)[0])
    condition = model.prompt(texts, clip_skip=clip_skip or 0)
    assert torch.equal(condition.tokens, expected)
    assert condition.embedding is None


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_prompts_are_encoded_as_by_sdxl(sdxl_pipeline: StableDiffusionXLPipeline, clip_skip) -> None:
    cond = load(sdxl_pipeline).prompt(["a red fish", ""], size=(16, 24), clip_skip=clip_skip or 0)
    tokens, _, pooled, _ = sdxl_pipeline.encode_prompt(
        "a red fish", device="cpu", do_classifier_free_guidance=False, clip_skip=clip_skip
    )
    assert torch.equal(cond.tokens[:1], tokens)
    sizes = sdxl_pipeline._get_add_time_ids((16, 24), (0, 0), (16, 24), torch.float32, 32)
    expected = torch.cat([pooled, sdxl_pipeline.unet.add_time_proj(sizes.flatten()).reshape(1, -1)], dim=-1)
    torch.testing.assert_close(cond.embedding[:1], expected)


def test_an_empty_prompt_is_zeros_with_force_zeros_for_empty_prompt(sdxl_pipeline) -> None:
    model = load(sdxl_pipeline)
    uncond = model.prompt([""])
    assert model.force_zeros_for_empty_prompt
    assert not uncond.tokens.any()
    assert not uncond.embedding[:, :32].any()
    assert replace(model, force_zeros_for_empty_prompt=False).prompt([""]).tokens.any()


def test_a_prompt_beyond_the_limit_has_another_chunk(model) -> None:
    assert model.prompt(["abc " * 25]).tokens.shape[1] == 77  # a letter is a token here: exactly what fits
    tokens = model.prompt(["a fish", "abc " * 25 + "d"]).tokens
    assert tokens.shape[1] == 2 * 77
    expected = model.prompt(["a fish", "abc " * 25, "d", ""]).tokens
    torch.testing.assert_close(tokens, torch.stack([expected[[0, 3]].flatten(0, 1), expected[[1, 2]].flatten(0, 1)]))


def test_a_clip_skip_beyond_the_number_of_layers_is_refused(model) -> None:
    with pytest.raises(InputError, match="it has 2"):
        model.prompt(["a fish"], clip_skip=3)


def test_a_bound_model_converts_between_the_noise_convention_and_the_network(sd_pipeline, model) -> None:
    """x0 = x - sigma * eps of one frame, with diffusers' own network and scaling."""
    cond, x, t = model.prompt(["a fish"]), noisy_latents(frames=1), 600
    alpha = sd_pipeline.scheduler.alphas_cumprod[t]
    sigma = float(((1 - alpha) / alpha).sqrt())
    with torch.no_grad():
        eps = sd_pipeline.unet(alpha.sqrt() * x[:, 0], t, cond.tokens).sample
    torch.testing.assert_close(model.bind(cond)(x, sigma)[:, 0], x[:, 0] - sigma * eps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "policy", [frame_attention.own, frame_attention.first, frame_attention.previous, frame_attention.first_and_previous]
)
def test_the_chunk_size_does_not_change_the_result(model, policy) -> None:
    cond, x = model.prompt(["a fish", "a bird"]), noisy_latents(batch=2)
    whole = model.bind(cond, frame_attention=policy, chunk_size=5)(x, 3.0)
    with torch.no_grad():
        parts = model.bind(cond, frame_attention=policy, chunk_size=2)(x, 3.0)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_latents_are_float32_with_weights_in_half_precision(sd_folder) -> None:
    model = load(sd_folder, device="cpu", dtype="bfloat16")
    estimate = model.bind(model.prompt(["a fish"]))(noisy_latents(), 3.0)
    assert {each.dtype for each in model.net.parameters()} == {torch.bfloat16}
    assert (
        estimate.dtype
        == model.decode(estimate).dtype
        == model.encode(torch.rand(1, 2, 3, 16, 16)).dtype
        == torch.float32
    )


def test_a_network_with_image_channels_needs_them(make_sd) -> None:
    model = load(make_sd(in_channels=9))
    with pytest.raises(InputError, match="reads 5 channels besides the latents', and the condition has 0"):
        model.bind(model.prompt(["a fish"]))
    cond = Condition(model.prompt(["a fish"]).tokens, channels=torch.zeros(1, 1, 5, 8, 8))
    assert model.bind(cond)(noisy_latents(), 3.0).shape == (1, 5, 4, 8, 8)


def test_latents_have_the_vaes_scale_and_shift(sd_pipeline, model) -> None:
    sd_pipeline.vae.register_to_config(shift_factor=0.5)
    frames = torch.rand(2, 3, 3, 16, 24)
    with torch.no_grad():
        expected = sd_pipeline.vae.encode(2 * frames[1] - 1).latent_dist.mean
        latents = model.encode(frames, chunk_size=2)
        torch.testing.assert_close(latents[1], (expected - 0.5) * sd_pipeline.vae.config.scaling_factor)
        decoded = sd_pipeline.vae.decode(expected).sample
    torch.testing.assert_close(model.decode(latents, chunk_size=2)[1], (decoded / 2 + 0.5).clamp(0, 1))


def test_a_frame_with_nan_is_named(model) -> None:
    latents = noisy_latents(batch=2)
    latents[1, 3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"frame 3 \(video 1 of the batch\) holds NaN"):
        model.decode(latents, chunk_size=2)


def test_sizes_follow_from_the_networks(model) -> None:
    assert model.default_size == (16, 16)
    assert model.latent_shape(16, 24) == (4, 8, 12)
    for size in (15, 0, -2):
        with pytest.raises(InputError, match=f"multiples of 2 above 0, got {size} x 16"):
            model.latent_shape(size, 16)


def test_a_chunk_size_of_0_is_refused(model) -> None:
    with pytest.raises(InputError, match="at least 1 frame, got 0"):
        model.bind(model.prompt(["a fish"]), chunk_size=0)(noisy_latents(), 3.0)


def test_words_outside_the_vocabulary_are_found(model) -> None:
    assert model.unknown_words("a zebra") == []
    cond = replace(model, vocabulary=frozenset({"a", "red", "fish"}))
    assert cond.unknown_words("A red Zebra, a fish's 2 zebra über-fish!") == ["zebra", "über"]
    assert unknown_words("", frozenset()) == []
