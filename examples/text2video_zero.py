"""Text2Video-Zero with its loop in view. `python examples/text2video_zero.py` writes fish.gif.

Each line is something to exchange: another solver, another ladder, another motion, another rule of who sees whom.
"""

import kineograph as kg
from kineograph.methods.text2video_zero import paper_sigmas, sample
from kineograph.motion import frame_warp, parse
from kineograph.noise import independent
from kineograph.samplers import ddim
from kineograph.sigmas import leading


def draw(model: kg.Model, prompt: str, *, frames: int = 8, steps: int = 50, seed: int = 7) -> kg.Video:
    told, blank = (model.bind(model.prompt([text]), frame_attention=kg.frame_attention.first) for text in (prompt, ""))
    shape = (1, *model.latent_shape(*model.default_size))
    sigmas = leading(model.schedule.sigmas, steps)
    renoise_to, warp_at = paper_sigmas(shape, highest=sigmas[0])
    walk = sample(
        kg.classifier_free_guidance(told, blank, scale=7.5),
        independent(seed, range(frames), shape).to(model.device),
        sigmas,
        warp=frame_warp(parse("pan:12,0+zoom:1.01"), frames=frames, seed=seed),
        warp_at=warp_at,
        renoise_to=renoise_to,
        sampler=ddim,
    )
    for step in walk:
        print(f"{step.x.shape[1]} frames at noise level {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(model.decode(step.x)[0])


if __name__ == "__main__":
    draw(kg.load(), "a red fish swimming over the sea").overwrite("fish.gif")
