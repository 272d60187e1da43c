"""One video at several scales of a Still-Moving motion adapter. `python examples/still_moving.py` writes stilled.gif.

Negative scales give more motion than the model's own, 0 the model's own, 1 none. The scale is bound with the prompt.
"""

import numpy as np

import kineograph as kg
from kineograph.noise import independent
from kineograph.samplers import ddim, final_latents
from kineograph.sigmas import leading


def generate(
    model: kg.Model, prompt: str, scale: float, *, num_frames: int = 16, steps: int = 25, seed: int = 7
) -> kg.Video:
    denoise_cond, denoise_uncond = (
        model.bind(model.prompt([text], fps=8.0), motion_scale=scale) for text in (prompt, "")
    )
    noise = independent(seed, range(num_frames), (1, *model.latent_shape(*model.default_size))).to(model.device)
    sigmas = leading(model.schedule.sigmas, steps)
    denoise = kg.classifier_free_guidance(denoise_cond, denoise_uncond, scale=5.0)
    x0 = final_latents(ddim(denoise, sigmas[0] * noise, sigmas))
    return kg.Video.from_tensor(model.decode(x0)[0], 8.0)


def side_by_side(videos: list[kg.Video]) -> kg.Video:
    return kg.Video(np.concatenate([video.frames for video in videos], axis=2), videos[0].fps)


if __name__ == "__main__":
    model = kg.load("pocket-video")
    prompt = "a red fish swimming to the right over the sea"
    side_by_side([generate(model, prompt, scale) for scale in (-1.0, 0.0, 0.5, 1.0)]).overwrite("stilled.gif")
