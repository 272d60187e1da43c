"""Text2Video-Zero guided by control pictures, with its loop in view. `python examples/guided.py` writes purple.gif.

The pocket world paints a fish that swims to the right; its edges guide another fish, elsewhere.
"""

import numpy as np
import torch

import kineograph as kg
from kineograph.media.annotators import canny
from kineograph.models.unet.controlnet import bind_controlnet
from kineograph.noise import shared
from kineograph.samplers import ddim
from kineograph.sigmas import leading
from kineograph_lab.world.world import Shot, Subject, render_clip

FILMED = Shot("sea", "flat", (Subject("fish", "red", individual=5, motion="right"),))


def draw(model: kg.Model, prompt: str, film: np.ndarray, *, steps: int = 20, seed: int = 7) -> kg.Video:
    maps = torch.from_numpy(np.stack([canny(frame) for frame in film])).permute(0, 3, 1, 2).float() / 255
    net = model.control("canny")
    cues = net.embed(maps)

    def bound(text: str) -> kg.denoise.Denoise:
        said = model.prompt([text])
        added = bind_controlnet(net, said, cues, frame_attention=kg.frame_attention.first)
        return model.bind(kg.Condition(said.tokens, residuals=added), frame_attention=kg.frame_attention.first)

    sigmas = leading(model.schedule.sigmas, steps)
    noise = shared(seed, range(len(film)), (1, *model.latent_shape(*film.shape[1:3])))
    for step in ddim(
        kg.classifier_free_guidance(bound(prompt), bound(""), scale=3.0), sigmas[0] * noise.to(model.device), sigmas
    ):
        print(f"noise level {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(model.decode(step.x)[0])


if __name__ == "__main__":
    draw(kg.load(), "a purple fish in a city", render_clip(FILMED, 8, 4.0)).overwrite("purple.gif")
