"""The image-to-video model: the video model is shown a picture, whose patches it reads beside the text.

Only the reading is learnt, everything else frozen: from single pictures that are shown themselves, then from films that
are shown their first frame (after VideoCrafter1, sections 3.2 and 4.1, where the layers along time learn too: a second
set of them would make what ships with the package too large).
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

from kineograph.condition import Condition
from kineograph.models.conditioning import resampler
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
from kineograph_lab.recipe.video.batches import SHORT_SHARE, clip_cell_weights, sample_captions, sample_noised
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.recipe.video.samples import sample_videos, text_condition
from kineograph_lab.recipe.video.text_to_video import training_condition, weighted_noise_error
from kineograph_lab.world import world

RESAMPLER = ResamplerConfig(reads=WIDTH, width=WIDTH, gives=WIDTH, tokens=16, depth=1, heads=5, head_width=32)
IMAGE_DROPOUT = 0.1  # share of pictures left out, for guidance
CAPTION_DROPOUTS = (
    0.6,
    0.25,
)  # share of pictures, and of films, without words: what both say would be read in the words alone
GREY = 127

Rng = np.random.Generator
Report = Callable[["ImageToVideoUNet"], Metrics]
ImageStates = np.ndarray  # float16 [n, patches, width]: what the image encoder says of each picture


class ImageToVideoUNet(nn.Module):
    """The video network with a reading of pictures, all frozen but that."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        self.net = net
        for name, weight in net.named_parameters():
            weight.requires_grad_(is_image_layer(name))


def add_image_attention(net: VideoUNet) -> VideoUNet:
    """The network itself, with a resampler and a second cross-attention that is silent yet."""
    resampler.add_resampler(net.image_unet, RESAMPLER)
    for name, weight in net.image_unet.named_parameters():
        if "to_v_ip" in name:
            nn.init.zeros_(weight)
    return net


def is_image_layer(name: str) -> bool:
    """Whether a parameter belongs to the reading of pictures."""
    return "_ip." in name or "encoder_hid_proj" in name


def load_image_states(encoder: CLIPVisionModel, path: Path, pictures: list[tuple[world.Shot, float]]) -> ImageStates:
    """What the encoder sees of each shot at its time; made once."""
    if not path.exists():
        made = [
            _encode_images(encoder, np.stack([world.render(shot, time) for shot, time in pictures[k : k + 64]]))
            for k in range(0, len(pictures), 64)
        ]
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, np.concatenate(made))
        path.with_suffix(".part").replace(path)
    return np.load(path)


@torch.no_grad()
def _encode_images(encoder: CLIPVisionModel, pictures: np.ndarray) -> ImageStates:
    return encoder(to_tensor(pictures)).last_hidden_state.half().numpy()


def grey_image_states(encoder: CLIPVisionModel) -> ImageStates:
    """What it sees of grey, which stands for no picture."""
    return _encode_images(encoder, np.full((1, SIDE, SIDE, 3), GREY, np.uint8))[0]


def image_times(pool: Pool) -> list[tuple[world.Shot, float]]:
    """The shots and times of a pool of pictures."""
    return [(shot_from_facts(fact), fact["time"]) for fact in pool.facts]


def first_frame_times(pool: Pool) -> list[tuple[world.Shot, float]]:
    """The shots of a pool of films, and when their first frames are."""
    return [(shot_from_facts(fact), world.frame_times(FRAMES, fact["fps"])[0]) for fact in pool.facts]


def image_batches(pool: Pool, seen: ImageStates, grey: ImageStates, batch: int, tokens: CLIPTokenizer) -> SampleBatch:
    """Batches of (pictures, noise, weights, timesteps, words, what is seen of the picture itself, frame rates)."""
    words, empty, heavy = tokenize_captions(pool, tokens), tokenize(tokens, [""])[0], unet.cell_weights(pool)[:, None]

    def sample_batch(rng: Rng, progress: float) -> Batch:
        k = rng.integers(len(words), size=batch)
        rates = torch.zeros(batch)
        told = _drop_captions(rng, words[k], empty, CAPTION_DROPOUTS[0])
        return (*sample_noised(rng, pool.items[k], heavy[k]), told, _drop_images(rng, seen[k], grey), rates)

    return sample_batch


def first_frame_batches(
    pool: Pool, seen: ImageStates, grey: ImageStates, batch: int, tokens: CLIPTokenizer
) -> SampleBatch:
    """The same of films, what is seen being their first frames."""
    words, empty = tokenize_captions(pool, tokens), tokenize(tokens, [""])[0]
    weights = np.stack([clip_cell_weights(fact) for fact in pool.facts])
    rates = np.array([fact["fps"] for fact in pool.facts], np.float32)

    def sample_batch(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < SHORT_SHARE else FRAMES
        k = rng.integers(len(words), size=batch * FRAMES // frames)
        window = slice(0, FRAMES, int(rng.choice((1, 2)))) if frames < FRAMES else slice(0, FRAMES)
        clips, heavy = (each[k][:, window][:, :frames] for each in (pool.items, weights))
        fps = torch.from_numpy(rates[k] / (window.step or 1))
        return (
            *sample_noised(rng, clips, heavy),
            _drop_captions(rng, words[k], empty, CAPTION_DROPOUTS[1]),
            _drop_images(rng, seen[k], grey),
            fps,
        )

    return sample_batch


def _drop_captions(rng: Rng, words: np.ndarray, empty: np.ndarray, wordless: float) -> Tensor:
    told = sample_captions(rng, words, empty)
    told[torch.from_numpy(rng.uniform(size=len(told)) < wordless)] = torch.from_numpy(empty.astype(np.int64))
    return told


def _drop_images(rng: Rng, seen: ImageStates, grey: ImageStates) -> Tensor:
    shown = seen.astype(np.float32)
    shown[rng.uniform(size=len(shown)) < IMAGE_DROPOUT] = grey
    return torch.from_numpy(shown)


def image_to_video_loss(text: CLIPTextModel, animator: ImageToVideoUNet, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise, told and shown."""
    *clips, words, seen, fps = batch
    return {
        "noise": weighted_noise_error(
            animator.net, _add_image(animator.net, training_condition(text, words, fps), seen), *clips
        )
    }


def _add_image(net: VideoUNet, told: Condition, seen: Tensor) -> Condition:
    tokens = cross_attention.project_image_tokens(net.image_unet, [seen[:, None]])
    return Condition(told.tokens, image_tokens=tokens, embedding=told.embedding)


def train_image_to_video(
    animator: ImageToVideoUNet, plan: StagePlan, folder: Path, sample_batch: SampleBatch,
    report: Report, *, text: CLIPTextModel,
) -> VideoUNet:  # fmt: skip
    """The averaged network."""
    ready = use_fast_group_norm(animator).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    return train_loop(
        ready, plan, folder, sample_batch=sample_batch, loss=partial(image_to_video_loss, text), report=report
    ).net


def image_to_video_report(
    folder: Path, held_out: Pool, seen: ImageStates, grey: ImageStates, *, autoencoder: AutoencoderKL, text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Report:  # fmt: skip
    """A sheet of held-out first frames and the videos drawn from them, and what the judge says of those."""
    judge, facts = load_judge(), held_out.facts
    first = np.stack([world.render(shot, time) for shot, time in first_frame_times(Pool(held_out.items, facts))])

    @torch.no_grad()
    def report(animator: ImageToVideoUNet) -> Metrics:
        net = animator.net
        told = text_condition(text, tokenize(tokenizer, [fact["captions"][0] for fact in facts]))
        untold = text_condition(text, tokenize(tokenizer, [""] * len(facts)))
        drawn = sample_videos(
            net,
            _add_image(net, told, torch.from_numpy(seen.astype(np.float32))),
            _add_image(net, untold, torch.from_numpy(np.stack([grey] * len(facts)).astype(np.float32))),
        )
        scale = autoencoder.config["scaling_factor"]
        videos = [to_uint8(vae.decode_latents(autoencoder, each / scale)) for each in drawn]
        rows = [np.concatenate([one[None], video[::2]]) for one, video in zip(first, videos, strict=True)]
        save_contact_sheet(folder / "sheet.png", *rows)
        return _accuracy(judge, videos, facts)

    return report


def _accuracy(judge: Any, videos: list[np.ndarray], facts: list[Any]) -> Metrics:
    main = [fact["things"][0] for fact in facts]
    kinds = [
        np.mean([kind == one["kind"] for kind in judge.classify(v).subject])
        for v, one in zip(videos, main, strict=True)
    ]
    moves = [judge.classify_motion(v) == one["motion"] for v, one in zip(videos, main, strict=True)]
    return {"thing": float(np.mean(kinds)), "motion": float(np.mean(moves))}
