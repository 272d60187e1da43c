"""The image-to-video model: the video model conditioned on an image, whose patches it attends to beside the text.

Only the image layers are trained, all else is frozen: first on single images conditioned on themselves, then on clips
conditioned on their first frame (after VideoCrafter1, sections 3.2 and 4.1, where the temporal layers are trained too: a
second set of them would make the package too large).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from kineograph.models.conditioning import resampler
from kineograph.models.conditioning.condition import Condition
from kineograph.models.conditioning.resampler import ResamplerConfig
from kineograph.models.unet import cross_attention
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.recipe.image import unet, vae
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.images import save_contact_sheet, to_tensor, to_uint8
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import SIDE, WIDTH, tokenize
from kineograph_lab.recipe.pool import Pool, shot_from_facts
from kineograph_lab.recipe.video.batches import (
    SHORT_SHARE,
    clear_first_frames,
    clip_cell_weights,
    sample_captions,
    sample_noised,
)
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.recipe.video.samples import sample_videos, text_condition
from kineograph_lab.recipe.video.text_to_video import training_condition, weighted_noise_error
from kineograph_lab.world import world

RESAMPLER = ResamplerConfig(reads=WIDTH, width=WIDTH, gives=WIDTH, tokens=16, depth=1, heads=5, head_width=32)
IMAGE_DROPOUT = 0.1  # share of images dropped, for guidance
# Shares of images and of clips without a caption: else what image and caption have in common is read from the caption.
CAPTION_DROPOUTS = (0.6, 0.25)
KNOWN_SHARE = 0.6  # share of steps in which the first frame has no noise, as where an animation starts from it
GREY = 127

Rng = np.random.Generator
Report = Callable[["ImageToVideoUNet"], Metrics]
ImageStates = np.ndarray  # float16 [n, patches, width]: the image encoder's states of each image


class ImageToVideoUNet(nn.Module):
    """The video network with image layers, frozen but for those."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        self.net = net
        for name, weight in net.named_parameters():
            weight.requires_grad_(is_image_layer(name))


def add_image_attention(net: VideoUNet) -> VideoUNet:
    """Return the network itself with a resampler and a second cross-attention, which initially adds zero."""
    resampler.add_resampler(net.image_unet, RESAMPLER)
    for name, weight in net.image_unet.named_parameters():
        if "to_v_ip" in name:
            nn.init.zeros_(weight)
    return net


def is_image_layer(name: str) -> bool:
    """Return True if a parameter belongs to the image layers."""
    return "_ip." in name or "encoder_hid_proj" in name


def load_image_states(encoder: CLIPVisionModel, path: Path, shots: list[tuple[world.ShotSpec, float]]) -> ImageStates:
    """Return the encoder's states of each shot at its time, computed once."""
    if not path.exists():
        states = [
            _encode_images(encoder, np.stack([world.render(shot, time) for shot, time in shots[k : k + 64]]))
            for k in range(0, len(shots), 64)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, np.concatenate(states))
        path.with_suffix(".part").replace(path)
    return np.load(path)


@torch.no_grad()
def _encode_images(encoder: CLIPVisionModel, images: np.ndarray) -> ImageStates:
    return encoder(to_tensor(images)).last_hidden_state.half().numpy()


def grey_image_states(encoder: CLIPVisionModel) -> ImageStates:
    """Return the encoder's states of a grey image, which stands for no image."""
    return _encode_images(encoder, np.full((1, SIDE, SIDE, 3), GREY, np.uint8))[0]


def image_times(pool: Pool) -> list[tuple[world.ShotSpec, float]]:
    """Return the shots and times of a pool of images."""
    return [(shot_from_facts(fact), fact["time"]) for fact in pool.facts]


def first_frame_times(pool: Pool) -> list[tuple[world.ShotSpec, float]]:
    """Return the shots of a pool of clips and the times of their first frames."""
    return [(shot_from_facts(fact), world.frame_times(FRAMES, fact["fps"])[0]) for fact in pool.facts]


def image_batches(
    pool: Pool, states: ImageStates, grey_states: ImageStates, batch: int, tokenizer: CLIPTokenizer
) -> SampleBatch:
    """Return a sampler of (images, noise, weights, timesteps, tokens, states of the same images, frame rates)."""
    caption_tokens, empty_caption, cell_weights = (
        tokenize_captions(pool, tokenizer),
        tokenize(tokenizer, [""])[0],
        unet.cell_weights(pool)[:, None],
    )

    def sample_batch(rng: Rng, progress: float) -> Batch:
        chosen = rng.integers(len(caption_tokens), size=batch)
        rates = torch.zeros(batch)
        captions = _drop_captions(rng, caption_tokens[chosen], empty_caption, CAPTION_DROPOUTS[0])
        return (
            *sample_noised(rng, pool.items[chosen], cell_weights[chosen]),
            captions,
            _drop_images(rng, states[chosen], grey_states),
            rates,
        )

    return sample_batch


def first_frame_batches(
    pool: Pool, states: ImageStates, grey_states: ImageStates, batch: int, tokenizer: CLIPTokenizer
) -> SampleBatch:
    """Return a sampler of (clips, noise, weights, timesteps, tokens, states of first frames, frame rates)."""
    caption_tokens, empty_caption = tokenize_captions(pool, tokenizer), tokenize(tokenizer, [""])[0]
    weights = np.stack([clip_cell_weights(fact) for fact in pool.facts])
    rates = np.array([fact["fps"] for fact in pool.facts], np.float32)

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < SHORT_SHARE else FRAMES
        chosen = rng.integers(len(caption_tokens), size=batch * FRAMES // frames)
        window = slice(0, FRAMES, int(rng.choice((1, 2)))) if frames < FRAMES else slice(0, FRAMES)
        latents, cell_weights = (each[chosen][:, window][:, :frames] for each in (pool.items, weights))
        fps = torch.from_numpy(rates[chosen] / (window.step or 1))
        noised = sample_noised(rng, latents, cell_weights)
        return (
            *(clear_first_frames(noised, 1) if rng.uniform() < KNOWN_SHARE else noised),
            _drop_captions(rng, caption_tokens[chosen], empty_caption, CAPTION_DROPOUTS[1]),
            _drop_images(rng, states[chosen], grey_states),
            fps,
        )

    return sample_batch


def _drop_captions(rng: Rng, caption_tokens: np.ndarray, empty_caption: np.ndarray, share: float) -> Tensor:
    captions = sample_captions(rng, caption_tokens, empty_caption)
    captions[torch.from_numpy(rng.uniform(size=len(captions)) < share)] = torch.from_numpy(
        empty_caption.astype(np.int64)
    )
    return captions


def _drop_images(rng: Rng, states: ImageStates, grey_states: ImageStates) -> Tensor:
    states_of_batch = states.astype(np.float32)
    states_of_batch[rng.uniform(size=len(states_of_batch)) < IMAGE_DROPOUT] = grey_states
    return torch.from_numpy(states_of_batch)


def image_to_video_loss(text: CLIPTextModel, net_with_image: ImageToVideoUNet, batch: Batch) -> dict[str, Tensor]:
    """Return the squared error of the predicted noise, conditioned on captions and images."""
    *clip_inputs, caption_tokens, states, fps = batch
    return {
        "noise": weighted_noise_error(
            net_with_image.net,
            _add_image(net_with_image.net, training_condition(text, caption_tokens, fps), states),
            *clip_inputs,
        )
    }


def _add_image(net: VideoUNet, condition: Condition, states: Tensor) -> Condition:
    image_tokens = cross_attention.project_image_tokens(net.image_unet, [states[:, None]])
    return Condition(condition.tokens, image_tokens=image_tokens, embedding=condition.embedding)


def train_image_to_video(
    net_with_image: ImageToVideoUNet, plan: StagePlan, folder: Path, sample_batch: SampleBatch,
    report: Report, *, text: CLIPTextModel,
) -> VideoUNet:  # fmt: skip
    """Train the layers that read image tokens; return the network with averaged weights."""
    prepared = use_fast_group_norm(net_with_image).to(best_device()).eval()
    prepared.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    return train_loop(
        prepared, plan, folder, sample_batch=sample_batch, loss=partial(image_to_video_loss, text), report=report
    ).net


def image_to_video_report(
    folder: Path, held_out: Pool, states: ImageStates, grey_states: ImageStates, *, vae_model: AutoencoderKL, text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Report:  # fmt: skip
    """Return a report that saves held-out first frames with the videos sampled from them, and returns the judge's accuracies."""
    judge, facts = load_judge(), held_out.facts
    first_frames = np.stack([world.render(shot, time) for shot, time in first_frame_times(Pool(held_out.items, facts))])

    @torch.no_grad()
    def report(net_with_image: ImageToVideoUNet) -> Metrics:
        net = net_with_image.net
        cond = text_condition(text, tokenize(tokenizer, [fact["captions"][0] for fact in facts]))
        uncond = text_condition(text, tokenize(tokenizer, [""] * len(facts)))
        latents = sample_videos(
            net,
            _add_image(net, cond, torch.from_numpy(states.astype(np.float32))),
            _add_image(net, uncond, torch.from_numpy(np.stack([grey_states] * len(facts)).astype(np.float32))),
        )
        scale = vae_model.config["scaling_factor"]
        videos = [to_uint8(vae.decode_latents(vae_model, each / scale)) for each in latents]
        rows = [np.concatenate([frame[None], video[::2]]) for frame, video in zip(first_frames, videos, strict=True)]
        save_contact_sheet(folder / "sheet.png", *rows)
        return _accuracy(judge, videos, facts)

    return report


def _accuracy(judge: Any, videos: list[np.ndarray], facts: list[Any]) -> Metrics:
    subjects = [fact["things"][0] for fact in facts]
    subject_shares = [
        np.mean([kind == subject["kind"] for kind in judge.classify(v).subject])
        for v, subject in zip(videos, subjects, strict=True)
    ]
    motion_correct = [
        judge.classify_motion(v) == subject["motion"] for v, subject in zip(videos, subjects, strict=True)
    ]
    return {"subject": float(np.mean(subject_shares)), "motion": float(np.mean(motion_correct))}
