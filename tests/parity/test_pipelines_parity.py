"""ControlNet and InstructPix2Pix with one frame equal diffusers' image pipelines."""

import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
)
from models.conftest import sd

import kineograph as kg
from kineograph.denoise import classifier_free_guidance, text_and_image_guidance
from kineograph.generation.check import complete
from kineograph.generation.resolve import open_inputs, resolve
from kineograph.media.video import Video
from kineograph.methods.controlnet import bind_controls
from kineograph.methods.instruct_pix2pix import encode_input
from kineograph.models.model import Model
from kineograph.models.unet.controlnet import bind_controlnet, sum_residuals
from kineograph.models.unet.frame_attention import first
from kineograph.plan import Plan
from kineograph.samplers import ddim, euler_ancestral, final_latents
from kineograph.sigmas import leading

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # diffusers' warnings about safety checkers
PROMPT, NEGATIVE, STEPS, SCALE, IMAGE_SCALE = "a red fish", "blurry", 5, 7.5, 1.5


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def initial_latents(z: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the latents for noise that the pipelines take as scaled latents of their first timestep."""
    return (z * (1 + sigma**2) ** 0.5)[:, None]


def controlnet(pipe) -> ControlNetModel:
    torch.manual_seed(4)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)).eval()
    for name, weight in net.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(weight, std=0.1)  # which are zero before training
    return net


@pytest.mark.parametrize("count", [1, 2])
@torch.no_grad()
def test_controlnet_with_one_frame_equals_the_controlnet_pipeline(count) -> None:
    base = sd()
    nets = [controlnet(base) for _ in range(count)]
    images = [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(k)) for k in range(count)]
    pipe = StableDiffusionControlNetPipeline(**base.components, controlnet=nets if count > 1 else nets[0])
    window = {"control_guidance_start": 0.2, "control_guidance_end": 0.9}
    theirs = pipe(
        PROMPT, image=images if count > 1 else images[0], negative_prompt=NEGATIVE, num_inference_steps=STEPS,
        guidance_scale=SCALE, latents=noise(), output_type="latent", controlnet_conditioning_scale=[0.7] * count
        if count > 1 else 0.7, **{k: [v] * count if count > 1 else v for k, v in window.items()},
    ).images  # fmt: skip

    model = kg.load(base, controlnet={str(k): net for k, net in enumerate(nets)})
    sigmas = leading(model.schedule.sigmas, STEPS, last=model.schedule.sigmas[0])

    def bind(text):
        cond = model.prompt([text])
        ours = [model.control(str(k)) for k in range(count)]
        residuals = [
            bind_controlnet(net, cond, net.embed(image), frame_attention=first, scale=0.7, start=0.2, end=0.9)
            for net, image in zip(ours, images, strict=True)
        ]
        return model.bind(kg.Condition(cond.tokens, residuals=sum_residuals(*residuals)), frame_attention=first)

    x = final_latents(
        ddim(classifier_free_guidance(bind(PROMPT), bind(NEGATIVE), SCALE), initial_latents(noise(), sigmas[0]), sigmas)
    )
    z = x[:, 0] / (1 + sigmas[-1] ** 2) ** 0.5
    assert theirs.std() > 0.1
    torch.testing.assert_close(z, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("image_scale", [IMAGE_SCALE, 1.0])
@torch.no_grad()
def test_editing_with_one_frame_equals_the_instruct_pix2pix_pipeline(tmp_path, image_scale) -> None:
    base = sd(in_channels=8)
    base.scheduler = EulerAncestralDiscreteScheduler.from_config(base.scheduler.config, timestep_spacing="leading")
    pipe = StableDiffusionInstructPix2PixPipeline(**base.components, requires_safety_checker=False)
    image = (torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(5)) * 255).byte().numpy()
    path = Video(image[None]).save(tmp_path / "in.png")
    theirs = pipe(
        PROMPT, image=Video(image[None]).pil[0], negative_prompt=NEGATIVE, num_inference_steps=STEPS,
        guidance_scale=SCALE, image_guidance_scale=image_scale, latents=noise(), output_type="latent",
        generator=torch.Generator().manual_seed(6),
    ).images  # fmt: skip

    model = kg.load(sd(in_channels=8))
    image_latents = encode_input(resolved(model, video=path, num_frames=1, height=16, width=16))
    sigmas = leading(model.schedule.sigmas, STEPS)
    cond, uncond = (model.prompt([text]).tokens for text in (PROMPT, NEGATIVE))
    denoisers = [
        model.bind(kg.Condition(tokens, channels=channels), frame_attention=first)
        for tokens, channels in ((cond, image_latents), (uncond, image_latents), (uncond, 0 * image_latents))
    ]
    generator = torch.Generator().manual_seed(6)
    sampler = euler_ancestral(lambda sigma: torch.randn(1, 1, 4, 8, 8, generator=generator))
    x = final_latents(
        sampler(text_and_image_guidance(*denoisers, SCALE, image_scale), initial_latents(noise(), sigmas[0]), sigmas)
    )
    assert theirs.std() > 0.1
    torch.testing.assert_close(x[:, 0], theirs, rtol=1e-3, atol=1e-3)


def resolved(model: Model, **given: object) -> Plan:
    options = complete({"seed": 0, **given})
    return resolve(model, (PROMPT,), options, open_inputs(options))


@torch.no_grad()
def test_bind_controls_equals_the_controlnet_times_its_scale(tmp_path) -> None:
    base = sd()
    model = kg.load(base, controlnet=controlnet(base))
    frames = (torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(7)) * 255).byte().numpy()
    path = Video(frames).save(tmp_path / "maps")
    plan = resolved(model, control={"seg-map": path}, controlnet_conditioning_scale=0.5, height=16, width=16)
    cond = bind_controls(plan).add_conditions(model.prompt([PROMPT]))
    z, t = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(8)), torch.tensor(500.0)
    net = model.control("seg")
    maps = net.embed(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)
    skips, middle = net(z, t, cond, maps, frame_attention=first)
    got = cond.residuals(z, t, range(3), None)
    torch.testing.assert_close(got.mid, [0.5 * middle])
    torch.testing.assert_close(got.skips, [0.5 * skip for skip in skips])
