"""A video model with its sampling loop spelled out. `python examples/videocrafter.py` writes swimming.gif.

The temporal layers denoise all frames together, so that the loop is that of an image model.
"""

import kineograph as kg
from kineograph.methods.videocrafter import sample
from kineograph.noise import independent, per_sigma
from kineograph.samplers import ddim_eta
from kineograph.sigmas import leading


def generate(
    model: kg.Model, prompt: str, *, num_frames: int = 16, fps: float = 8.0, steps: int = 50, seed: int = 7
) -> kg.Video:
    denoise_cond, denoise_uncond = (model.bind(model.prompt([text], fps=fps)) for text in (prompt, ""))
    shape = (1, *model.latent_shape(*model.default_size))
    run = sample(
        kg.classifier_free_guidance(denoise_cond, denoise_uncond, scale=5.0),
        independent(seed, range(num_frames), shape).to(model.device),
        leading(model.schedule.sigmas, steps),
        sampler=ddim_eta(1.0, per_sigma(seed, range(num_frames), shape)),
    )
    for step in run:
        print(f"{step.x.shape[1]} frames at sigma {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(model.decode(step.x)[0], fps)


if __name__ == "__main__":
    generate(kg.load("pocket-video"), "a red fish swimming to the right over the sea").overwrite("swimming.gif")
