"""VideoElevator with its loop in view: one model draws, another moves what it draws. Writes elevated.gif.

`python examples/video_elevator.py`. Any image model goes with any video model: they meet at noise levels.
"""

from functools import partial
from math import inf

import kineograph as kg
from kineograph.latents import low_pass
from kineograph.methods.video_elevator import invert, refine_with_video_model, sample
from kineograph.noise import partly_shared, per_sigma
from kineograph.samplers import dpmpp_2m
from kineograph.sigmas import leading


def draw(image: kg.Model, video: kg.Model, prompt: str, film: str, *, frames: int = 16, steps: int = 50) -> kg.Video:
    told, blank = (image.bind(image.prompt([text]), frame_attention=kg.frame_attention.first) for text in (prompt, ""))
    moving, still = (video.bind(video.prompt([text], fps=8.0)) for text in (film, ""))
    shape, seed = (1, *image.latent_shape(*image.default_size)), 7
    sigmas, lowest = leading(image.schedule.sigmas, steps), image.schedule.sigmas[0]
    walk = sample(
        kg.classifier_free_guidance(told, blank, scale=3.0),
        partly_shared(1.0, seed, range(frames), shape).to(image.device),
        sigmas,
        refine_at=[sigmas[round(part * steps)] for part in (0.1, 0.3, 0.5, 0.7)],
        refine=refine_with_video_model(
            kg.classifier_free_guidance(moving, still, scale=3.0),
            leading(video.schedule.sigmas, steps),
            steps=max(1, steps // 6),
            noise_at=per_sigma(seed, range(frames), shape),
            low_pass=partial(low_pass, spatial=inf, temporal=0.5),
        ),
        renoise=invert(told, [*(rung for rung in sigmas if rung > lowest), lowest], 12, dpmpp_2m),
    )
    for step in walk:
        print(f"{step.x.shape[1]} frames at noise level {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(image.decode(step.x)[0])


if __name__ == "__main__":
    film = "a red fish swimming to the right over the sea"
    draw(kg.load(), kg.load("pocket-video"), "a red fish over the sea", film).overwrite("elevated.gif")
