"""Videos sampled during the training of the video models, always from the same noise, and their evaluation by the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.denoise import classifier_free_guidance
from kineograph.latents import Latents
from kineograph.models.conditioning.condition import Condition
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.noise import partly_shared
from kineograph.samplers import dpmpp_2m, final_latents
from kineograph.sigmas import leading
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.recipe.image import vae
from kineograph_lab.recipe.image.unet import CELLS, STEPS
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.loop import Metrics, bf16_autocast
from kineograph_lab.recipe.networks import LATENT_CHANNELS, tokenize
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.recipe.video.motion_readout import HasMotionReadout
from kineograph_lab.recipe.video.text_to_video import NOISE_RATIO, SCHEDULE
from kineograph_lab.world.captions import MOTIONS

REPORT_PROMPTS = tuple(
    f"a {colour} {subject} {words[0]} {scene}"
    for (motion, words), colour, subject, scene in zip(
        MOTIONS.items(),
        ("red", "blue", "green", "purple", "yellow", "orange", "pink", "brown", "red", "blue", "green"),
        ("fish", "car", "rabbit", "balloon", "turtle", "ball", "star", "mushroom", "rocket", "boat", "kite"),
        ("over the sea", "in a city", "in the snow", "in the desert", "at sea", "in a room", "in space", "in a forest",
         "in space", "at sea", "in a meadow"),
        strict=True,
    )
)  # fmt: skip


def video_report(
    folder: Path, vae_model: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, num_videos: int
) -> Callable[[HasMotionReadout], Metrics]:
    """Return a report that saves a contact sheet of so many videos, each of another motion, and returns the judge's accuracies."""
    judge = load_judge()
    cases = list(zip(REPORT_PROMPTS, MOTIONS, strict=True))[1::2][:num_videos]
    if not cases:
        return lambda net: {}

    @torch.no_grad()
    def report(net: HasMotionReadout) -> Metrics:
        cond, uncond = (
            text_condition(text, tokenize(tokenizer, texts))
            for texts in ([prompt for prompt, _ in cases], [""] * len(cases))
        )
        latents = sample_videos(net.net, cond, uncond)
        scale = vae_model.config["scaling_factor"]
        videos = [to_uint8(vae.decode_latents(vae_model, each / scale)) for each in latents]
        save_contact_sheet(folder / "sheet.png", *(video[::2] for video in videos))
        motion_correct = [
            judge.classify_motion(video) == motion for video, (_, motion) in zip(videos, cases, strict=True)
        ]
        recognised = [judge.classify(video).subject for video in videos]
        subject_shares = [
            np.mean([subject in prompt for subject in subjects])
            for subjects, (prompt, _) in zip(recognised, cases, strict=True)
        ]
        return {"motion": float(np.mean(motion_correct)), "subject": float(np.mean(subject_shares)),
                "moved": float(np.mean([np.abs(np.diff(v.astype(float), axis=0)).mean() for v in videos]))}  # fmt: skip

    return report


@torch.no_grad()
def sample_videos(net: VideoUNet, cond: Condition, uncond: Condition, *, scale: float = 5.0) -> Latents:
    """Return latents [b f c h w] sampled by DPM-Solver++ (2M) with classifier-free guidance."""
    device = next(net.parameters()).device

    def network_for(conditions: list[Condition]) -> Callable[[Latents, Tensor], Latents]:
        def network(z: Latents, t: Tensor) -> Latents:
            with bf16_autocast(device):
                return torch.cat([net(z[k : k + 1], t, each).float() for k, each in enumerate(conditions)])

        return network

    denoise = classifier_free_guidance(
        SCHEDULE.denoise(network_for(split_condition(cond))),
        SCHEDULE.denoise(network_for(split_condition(uncond))),
        scale,
    )
    sigmas = leading(SCHEDULE.sigmas, STEPS)
    noise = partly_shared(NOISE_RATIO, 0, range(FRAMES), (len(cond.tokens), LATENT_CHANNELS, CELLS, CELLS))
    return final_latents(dpmpp_2m(denoise, sigmas[0] * noise, sigmas))


def text_condition(text: CLIPTextModel, tokens: np.ndarray, fps: float = 8.0) -> Condition:
    """Return the condition of these tokens at this frame rate."""
    device = next(text.parameters()).device
    states = text(torch.from_numpy(tokens.astype(np.int64)).to(device)).last_hidden_state
    return Condition(states, embedding=torch.full((len(tokens), 1), fps, device=device))


def split_condition(condition: Condition) -> list[Condition]:
    """Return the condition of each video alone."""
    parts = [
        [None] * len(condition.tokens) if values is None else list(values.split(1))
        for values in (condition.tokens, condition.image_tokens, condition.embedding)
    ]
    return [
        Condition(tokens, image_tokens=image, embedding=rate)
        for tokens, image, rate in zip(*parts, strict=True)
        if tokens is not None
    ]
