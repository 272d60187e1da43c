"""A video model with its loop in view. `python examples/videocrafter.py` writes swimming.gif.

Layers along time around an image network see all frames together; what is left for the loop is a plain walk.
"""

import kineograph as kg
from kineograph.methods.videocrafter import sample
from kineograph.noise import independent, per_sigma
from kineograph.samplers import ddim_eta
from kineograph.sigmas import leading


def draw(
    model: kg.Model, prompt: str, *, frames: int = 16, fps: float = 8.0, steps: int = 50, seed: int = 7
) -> kg.Video:
    told, blank = (model.bind(model.prompt([text], fps=fps)) for text in (prompt, ""))
    shape = (1, *model.latent_shape(*model.default_size))
    walk = sample(
        kg.classifier_free_guidance(told, blank, scale=5.0),
        independent(seed, range(frames), shape).to(model.device),
        leading(model.schedule.sigmas, steps),
        sampler=ddim_eta(1.0, per_sigma(seed, range(frames), shape)),
    )
    for step in walk:
        print(f"{step.x.shape[1]} frames at noise level {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(model.decode(step.x)[0], fps)


if __name__ == "__main__":
    draw(kg.load("pocket-video"), "a red fish swimming to the right over the sea").overwrite("swimming.gif")
