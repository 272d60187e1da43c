"""Latent consistency models that read the guidance scale, against diffusers' LatentConsistencyModelPipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import tiny_models
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import scheduling_lcm
from format_rows import loads
from safetensors.torch import save_file

import kineograph as kg
from kineograph import noise
from kineograph.models.formats import known_configurations
from kineograph.models.loading.describe import describe

pytestmark = pytest.mark.parity
WIDTH, STEPS, SEED = 32, 3, 5
SIZE: dict[str, Any] = {"height": 16, "width": 16}
QUICK = SIZE | {"num_inference_steps": 2, "seed": SEED}


def scheduler() -> LCMScheduler:
    """Return the scheduler of LCM_Dreamshaper_v7."""
    return LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


@pytest.fixture(scope="module")
def pipeline() -> LatentConsistencyModelPipeline:
    parts = tiny_models.sd(time_cond_proj_dim=WIDTH).components
    parts |= {"scheduler": scheduler()}
    pipeline = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(pipeline: LatentConsistencyModelPipeline) -> kg.Model:
    return kg.load(pipeline)


def final_latents(model: kg.Model, **options: Any) -> torch.Tensor:
    """Return the latents of a generated video."""
    steps: list[torch.Tensor] = []
    kg.generate(model, "a cat", **QUICK | options, on_step=lambda progress: steps.append(progress.step.x))
    return steps[-1]


def patch_noise(monkeypatch: pytest.MonkeyPatch, sigmas: list[float]) -> torch.Tensor:
    """Give diffusers' scheduler the noise of ours; return the first latents of both."""
    shape = (1, 4, 8, 8)
    noise_at = noise.per_sigma(SEED, range(1), shape)
    fresh = iter([noise_at(sigma)[:, 0] for sigma in sigmas[1:]])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(fresh))
    return noise.independent(SEED, range(1), shape)[:, 0]


LCM = loads("Checkpoint", "LCM network that reads the guidance scale (`time_cond_proj_dim`)", within=1e-5,
            reference="LatentConsistencyModelPipeline, relative")  # fmt: skip


def relative_difference(
    pipeline: LatentConsistencyModelPipeline | StableDiffusionXLPipeline,
    model: kg.Model,
    scale: float,
    monkeypatch: pytest.MonkeyPatch,
) -> float:
    """Return the greatest difference between one frame's latents and those of the pipeline, over their largest."""
    first = patch_noise(monkeypatch, model.schedule.sampling_sigmas(STEPS))
    asked = {"num_inference_steps": STEPS, "guidance_scale": scale, **SIZE}
    image = pipeline("a cat", latents=first, output_type="latent", **asked).images
    ours = final_latents(model, num_frames=1, **asked)[:, 0]
    return float((ours - image).abs().max() / image.abs().max())


@LCM
def test_one_frame_equals_the_image_of_the_pipeline(
    pipeline: LatentConsistencyModelPipeline, model: kg.Model, monkeypatch: pytest.MonkeyPatch, within: float
) -> None:
    assert relative_difference(pipeline, model, 8.5, monkeypatch) < within


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 1.0, 14.0])
def test_any_guidance_scale_is_embedded(
    pipeline: LatentConsistencyModelPipeline, model: kg.Model, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    assert relative_difference(pipeline, model, scale, monkeypatch) < 1e-5


@pytest.mark.slow
def test_sdxl_network_equals_the_image_of_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL-LCM, whose pipeline embeds the guidance scale in the same way and skips guidance."""
    pipeline = tiny_models.sdxl()
    pipeline = StableDiffusionXLPipeline(
        **pipeline.components | {"unet": tiny_sdxl_unet(pipeline.unet.config), "scheduler": scheduler()},
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    assert relative_difference(pipeline, kg.load(pipeline), 7.5, monkeypatch) < 1e-5


def tiny_sdxl_unet(config: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(2)
    return UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": WIDTH})


# --- guidance


def test_guidance_scale_changes_the_video_without_a_second_evaluation(model: kg.Model) -> None:
    unet, calls = model.net.image_unet, list[int]()
    hook = unet.conv_in.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    weak, strong = (final_latents(model, num_frames=1, guidance_scale=scale) for scale in (2.0, 12.0))
    hook.remove()
    assert calls == [1] * 4, "two steps of one evaluation, twice"
    assert not torch.equal(weak, strong)


@pytest.mark.parametrize("option", ["negative_prompt", "negative_prompt_embeds"])
def test_negative_prompt_is_refused(model: kg.Model, option: str) -> None:
    value = "blurry" if option == "negative_prompt" else torch.zeros(1, 77, 16)
    with pytest.raises(kg.InputError, match=f"`{option}` does nothing here: .* reads `guidance_scale` itself"):
        kg.generate(model, "a cat", **{option: value}, **QUICK)


@pytest.mark.slow
def test_negative_scale_is_not_said_to_turn_guidance_off(model: kg.Model) -> None:
    final_latents(model, num_frames=1, guidance_scale=-1.0)  # warnings are errors


# --- every method


@pytest.mark.slow
def test_text2video_zero(model: kg.Model) -> None:
    assert final_latents(model, num_frames=3, sampler="lcm").shape == (1, 3, 4, 8, 8)
    assert final_latents(model, num_frames=2, sampler="ddim", smooth_background=0.6).shape[1] == 2
    assert final_latents(model, num_frames=2, prompt_at={1: "a dog"}).shape[1] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["animatediff", "freenoise", "video-elevator"])
def test_methods_with_a_video_model(pipeline: LatentConsistencyModelPipeline, model: kg.Model, method: str) -> None:
    with pytest.warns(kg.InputWarning, match="the temporal layers were trained with beta_schedule=linear"):
        video = kg.load(pipeline, motion_module=tiny_models.motion_module())
    if method != "video-elevator":
        weak, strong = (
            final_latents(video, num_frames=4, method=method, guidance_scale=scale, window=4) for scale in (2.0, 12.0)
        )
    else:
        weak, strong = (
            final_latents(model, video_model=video, num_frames=4, video_steps=1, video_guidance_scale=scale)
            for scale in (2.0, 12.0)
        )
    assert weak.shape[1] == 4 and not torch.equal(weak, strong)


# --- files


@pytest.mark.slow
def test_saved_model_keeps_the_layer(model: kg.Model, tmp_path: Path) -> None:
    again = kg.load(kg.save(model, tmp_path / "lcm"), dtype="float32", device="cpu")
    torch.testing.assert_close(final_latents(again, num_frames=1), final_latents(model, num_frames=1))
    found = describe(tmp_path / "lcm")
    assert found is not None and found.reads_guidance_scale


def test_single_file_states_that_it_is_a_latent_consistency_model(tmp_path: Path) -> None:
    tensors = {
        known_configurations.FIRST_LAYER: torch.zeros(320, 4, 1, 1),
        known_configurations.GUIDANCE_EMBEDDING: torch.zeros(320, 256),
        "model.diffusion_model.attn2.to_k.weight": torch.zeros(1, 768),
        "first_stage_model.x": torch.zeros(1),
        "cond_stage_model.x": torch.zeros(1),
    }
    save_file(tensors, tmp_path / "lcm.safetensors")
    found = describe(tmp_path / "lcm.safetensors")
    assert found is not None and found.reads_guidance_scale
    assert found.scheduler is not None and found.scheduler["_class_name"] == "LCMScheduler"
