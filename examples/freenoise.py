"""FreeNoise with its sampling loop spelled out. `python examples/freenoise.py` writes long.gif.

A video model of 16 frames generates 64 together: noise is repeated in another order, temporal attention runs in windows
of 16 frames, and the text changes along the video.
"""

from functools import partial

import kineograph as kg
from kineograph.methods.freenoise import fused_windows, noise_order, permute_by_seed, sample
from kineograph.models.conditioning.condition import interpolate_conditions
from kineograph.noise import independent
from kineograph.samplers import ddim
from kineograph.sigmas import leading


def generate(
    model: kg.Model,
    prompts: dict[int, str],
    *,
    num_frames: int = 64,
    window: int = 16,
    stride: int = 4,
    steps: int = 50,
    seed: int = 7,
) -> kg.Video:
    keyframes = {frame: model.prompt([text], fps=8.0) for frame, text in prompts.items()}
    windows = partial(fused_windows, window, stride, "pyramid")
    denoise_cond, denoise_uncond = (
        model.bind(condition, attention_windows=windows)
        for condition in (interpolate_conditions(keyframes, range(num_frames)), model.prompt([""], fps=8.0))
    )
    denoise = kg.classifier_free_guidance(denoise_cond, denoise_uncond, scale=5.0)
    order = noise_order(range(num_frames), window, stride, partial(permute_by_seed, seed, stride))
    shape = (1, *model.latent_shape(*model.default_size))
    run = sample(
        lambda sigma: denoise,  # the later prompts act at all noise levels
        independent(seed, order, shape).to(model.device),
        leading(model.schedule.sigmas, steps),
        sampler=ddim,
    )
    for step in run:
        print(f"{step.x.shape[1]} frames at sigma {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(model.decode(step.x)[0], 8.0)


if __name__ == "__main__":
    prompts = {0: "a red fish swimming to the right over the sea", 63: "a blue fish swimming to the right over the sea"}
    generate(kg.load("pocket-video"), prompts).overwrite("long.gif")
