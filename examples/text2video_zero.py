"""Text2Video-Zero with its sampling loop spelled out. `python examples/text2video_zero.py` writes fish.gif.

Every argument can be exchanged: the sampler, the sigmas, the motion, the frame attention policy.
"""

import kineograph as kg
from kineograph.methods.text2video_zero import paper_sigmas, sample
from kineograph.motion import frame_warp, parse
from kineograph.noise import independent
from kineograph.samplers import ddim
from kineograph.sigmas import leading


def generate(model: kg.Model, prompt: str, *, num_frames: int = 8, steps: int = 50, seed: int = 7) -> kg.Video:
    denoise_cond, denoise_uncond = (
        model.bind(model.prompt([text]), frame_attention=kg.frame_attention.first) for text in (prompt, "")
    )
    shape = (1, *model.latent_shape(*model.default_size))
    sigmas = leading(model.schedule.sigmas, steps)
    renoise_to, warp_at = paper_sigmas(shape, highest=sigmas[0])
    run = sample(
        kg.classifier_free_guidance(denoise_cond, denoise_uncond, scale=7.5),
        independent(seed, range(num_frames), shape).to(model.device),
        sigmas,
        warp=frame_warp(parse("pan:12,0+zoom:1.01"), frames=num_frames, seed=seed),
        warp_at=warp_at,
        renoise_to=renoise_to,
        sampler=ddim,
    )
    for step in run:
        print(f"{step.x.shape[1]} frames at sigma {step.sigma:.2f}", end="\r")
    return kg.Video.from_tensor(model.decode(step.x)[0])


if __name__ == "__main__":
    generate(kg.load(), "a red fish swimming over the sea").overwrite("fish.gif")
