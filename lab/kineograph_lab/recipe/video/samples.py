"""What the video models sample_batch while they train: always from the same noise, for the eye and for the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.condition import Condition
from kineograph.denoise import classifier_free_guidance
from kineograph.latents import Latents
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
    f"a {colour} {thing} {words[0]} {scene}"
    for (motion, words), colour, thing, scene in zip(
        MOTIONS.items(),
        ("red", "blue", "green", "purple", "yellow", "orange", "pink", "brown", "red", "blue", "green"),
        ("fish", "car", "rabbit", "balloon", "turtle", "ball", "star", "mushroom", "rocket", "boat", "kite"),
        ("over the sea", "in a city", "in the snow", "in the desert", "at sea", "in a room", "in space", "in a forest",
         "in space", "at sea", "in a meadow"),
        strict=True,
    )
)  # fmt: skip


def video_report(
    folder: Path, autoencoder: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, sketched: int
) -> Callable[[HasMotionReadout], Metrics]:
    """A sheet of so many videos, each of another motion, always from the same noise; and what the judge says of them."""
    judge = load_judge()
    shown = list(zip(REPORT_PROMPTS, MOTIONS, strict=True))[1::2][:sketched]
    if not shown:
        return lambda films: {}

    @torch.no_grad()
    def report(films: HasMotionReadout) -> Metrics:
        told, untold = (
            text_condition(text, tokenize(tokenizer, texts))
            for texts in ([look for look, _ in shown], [""] * len(shown))
        )
        drawn = sample_videos(films.net, told, untold)
        scale = autoencoder.config["scaling_factor"]
        videos = [to_uint8(vae.decode_latents(autoencoder, each / scale)) for each in drawn]
        save_contact_sheet(folder / "sheet.png", *(video[::2] for video in videos))
        right = [judge.classify_motion(video) == motion for video, (_, motion) in zip(videos, shown, strict=True)]
        seen = [judge.classify(video).subject for video in videos]
        named = [np.mean([thing in look for thing in things]) for things, (look, _) in zip(seen, shown, strict=True)]
        return {"motion": float(np.mean(right)), "thing": float(np.mean(named)),
                "moved": float(np.mean([np.abs(np.diff(v.astype(float), axis=0)).mean() for v in videos]))}  # fmt: skip

    return report


@torch.no_grad()
def sample_videos(net: VideoUNet, told: Condition, untold: Condition, *, scale: float = 5.0) -> Latents:
    """Latents [b f c h w] of videos, by guided steps of DPM-Solver++."""
    device = next(net.parameters()).device

    def bound(conditions: list[Condition]) -> Callable[[Latents, Tensor], Latents]:
        def network(z: Latents, t: Tensor) -> Latents:
            with bf16_autocast(device):
                return torch.cat([net(z[k : k + 1], t, each).float() for k, each in enumerate(conditions)])

        return network

    look = classifier_free_guidance(
        SCHEDULE.denoise(bound(split_condition(told))), SCHEDULE.denoise(bound(split_condition(untold))), scale
    )
    sigmas = leading(SCHEDULE.sigmas, STEPS)
    noise = partly_shared(NOISE_RATIO, 0, range(FRAMES), (len(told.tokens), LATENT_CHANNELS, CELLS, CELLS))
    return final_latents(dpmpp_2m(look, sigmas[0] * noise, sigmas))


def text_condition(text: CLIPTextModel, words: np.ndarray, fps: float = 8.0) -> Condition:
    """What the network is told of these words at this frame rate."""
    device = next(text.parameters()).device
    states = text(torch.from_numpy(words.astype(np.int64)).to(device)).last_hidden_state
    return Condition(states, embedding=torch.full((len(words), 1), fps, device=device))


def split_condition(told: Condition) -> list[Condition]:
    """The condition of each video alone."""
    parts = [
        [None] * len(told.tokens) if each is None else list(each.split(1))
        for each in (told.tokens, told.image_tokens, told.embedding)
    ]
    return [
        Condition(tokens, image_tokens=image, embedding=rate)
        for tokens, image, rate in zip(*parts, strict=True)
        if tokens is not None
    ]
