"""Text2Video-Zero with a ControlNet, its sampling loop spelled out. `python examples/controlnet.py` writes purple.gif.

The edges of a rendered clip, a fish that swims to the right (from the laboratory's pocket world), control another fish.
"""

import numpy as np
import torch

import kineograph as kg
from kineograph.models.annotators import canny
from kineograph.models.unet.controlnet import bind_controlnet
from kineograph.noise import shared
from kineograph.samplers import ddim
from kineograph.sigmas import leading
from kineograph_lab.world.world import ShotSpec, Subject, render_clip

SHOT = ShotSpec("sea", "flat", (Subject("fish", "red", individual=5, motion="right"),))


def generate(model: kg.Model, prompt: str, clip: np.ndarray, *, steps: int = 20, seed: int = 7) -> kg.Video:
    maps = torch.from_numpy(np.stack([canny(frame) for frame in clip])).permute(0, 3, 1, 2).float() / 255
    controlnet = model.control("canny")
    embedding = controlnet.embed(maps)

    def bind(text: str) -> kg.denoise.Denoise:
        condition = model.prompt([text])
        residuals = bind_controlnet(controlnet, condition, embedding, frame_attention=kg.frame_attention.first)
        return model.bind(kg.Condition(condition.tokens, residuals=residuals), frame_attention=kg.frame_attention.first)

    sigmas = leading(model.schedule.sigmas, steps)
    noise = shared(seed, range(len(clip)), (1, *model.latent_shape(*clip.shape[1:3]))).to(model.device)
    denoise = kg.classifier_free_guidance(bind(prompt), bind(""), scale=3.0)
    for step in ddim(denoise, sigmas[0] * noise, sigmas):
        print(f"sigma {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(model.decode(step.x)[0])


if __name__ == "__main__":
    generate(kg.load(), "a purple fish in a city", render_clip(SHOT, 8, 4.0)).overwrite("purple.gif")
