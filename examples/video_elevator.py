"""VideoElevator with its sampling loop spelled out: an image model samples, and a video model refines its latents.

`python examples/video_elevator.py` writes elevated.gif. Any image model goes with any video model, since they exchange
latents at a sigma, not at a step index.
"""

from functools import partial
from math import inf

import kineograph as kg
from kineograph.latents import low_pass
from kineograph.methods.video_elevator import invert, refine_with_video_model, sample
from kineograph.noise import partly_shared, per_sigma
from kineograph.samplers import dpmpp_2m
from kineograph.sigmas import leading


def generate(
    image_model: kg.Model,
    video_model: kg.Model,
    image_prompt: str,
    video_prompt: str,
    *,
    num_frames: int = 16,
    steps: int = 50,
) -> kg.Video:
    image_cond, image_uncond = (
        image_model.bind(image_model.prompt([text]), frame_attention=kg.frame_attention.first)
        for text in (image_prompt, "")
    )
    video_cond, video_uncond = (video_model.bind(video_model.prompt([text], fps=8.0)) for text in (video_prompt, ""))
    shape, seed = (1, *image_model.latent_shape(*image_model.default_size)), 7
    sigmas, lowest = leading(image_model.schedule.sigmas, steps), image_model.schedule.sigmas[0]
    run = sample(
        kg.classifier_free_guidance(image_cond, image_uncond, scale=3.0),
        partly_shared(1.0, seed, range(num_frames), shape).to(image_model.device),
        sigmas,
        refine_at=[sigmas[round(part * steps)] for part in (0.1, 0.3, 0.5, 0.7)],
        refine=refine_with_video_model(
            kg.classifier_free_guidance(video_cond, video_uncond, scale=3.0),
            leading(video_model.schedule.sigmas, steps),
            steps=max(1, steps // 6),
            noise_at=per_sigma(seed, range(num_frames), shape),
            low_pass=partial(low_pass, spatial=inf, temporal=0.5),
        ),
        renoise=invert(image_cond, [*(sigma for sigma in sigmas if sigma > lowest), lowest], 12, dpmpp_2m),
    )
    for step in run:
        print(f"{step.x.shape[1]} frames at sigma {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(image_model.decode(step.x)[0])


if __name__ == "__main__":
    video = generate(
        kg.load(),
        kg.load("pocket-video"),
        "a red fish over the sea",
        "a red fish swimming to the right over the sea",
    )
    video.overwrite("elevated.gif")
