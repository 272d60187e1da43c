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
from kineograph.training.norms import use_fast_group_norm
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.recipe.contact_sheets import as_pictures, as_tensor, save_sheet
from kineograph_lab.recipe.image import unet, vae
from kineograph_lab.recipe.image.text_encoder import captions_as_ids
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.loop import Batch, Draw, Figures, Plan, best_device, fit
from kineograph_lab.recipe.networks import SIDE, WIDTH
from kineograph_lab.recipe.pool import Pool, shot_of
from kineograph_lab.recipe.video.batches import SHORT, noised, said, weights_of
from kineograph_lab.recipe.video.clips import FRAMES
from kineograph_lab.recipe.video.samples import condition, draw_videos
from kineograph_lab.recipe.video.text_to_video import error, told_of
from kineograph_lab.world import world

RESAMPLER = ResamplerConfig(reads=WIDTH, width=WIDTH, gives=WIDTH, tokens=16, depth=1, heads=5, head_width=32)
UNSEEN = 0.1  # share of pictures left out, for guidance
WORDLESS = 0.6, 0.25  # share of pictures, and of films, without words: what both say would be read in the words alone
GREY = 127

Rng = np.random.Generator
Report = Callable[["Animator"], Figures]
Seen = np.ndarray  # float16 [n, patches, width]: what the image encoder says of each picture


class Animator(nn.Module):
    """The video network with a reading of pictures, all frozen but that."""

    def __init__(self, net: VideoUNet) -> None:
        super().__init__()
        self.net = net
        for name, weight in net.named_parameters():
            weight.requires_grad_(reads(name))


def with_reading(net: VideoUNet) -> VideoUNet:
    """The network itself, with a resampler and a second cross-attention that is silent yet."""
    resampler.add_resampler(net.image_unet, RESAMPLER)
    for name, weight in net.image_unet.named_parameters():
        if "to_v_ip" in name:
            nn.init.zeros_(weight)
    return net


def reads(name: str) -> bool:
    """Whether a parameter belongs to the reading of pictures."""
    return "_ip." in name or "encoder_hid_proj" in name


def looks(encoder: CLIPVisionModel, path: Path, pictures: list[tuple[world.Shot, float]]) -> Seen:
    """What the encoder sees of each shot at its time; made once."""
    if not path.exists():
        made = [
            _seen(encoder, np.stack([world.render(shot, time) for shot, time in pictures[k : k + 64]]))
            for k in range(0, len(pictures), 64)
        ]
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, np.concatenate(made))
        path.with_suffix(".part").replace(path)
    return np.load(path)


@torch.no_grad()
def _seen(encoder: CLIPVisionModel, pictures: np.ndarray) -> Seen:
    return encoder(as_tensor(pictures)).last_hidden_state.half().numpy()


def blank(encoder: CLIPVisionModel) -> Seen:
    """What it sees of grey, which stands for no picture."""
    return _seen(encoder, np.full((1, SIDE, SIDE, 3), GREY, np.uint8))[0]


def of_pictures(pool: Pool) -> list[tuple[world.Shot, float]]:
    """The shots and times of a pool of pictures."""
    return [(shot_of(fact), fact["time"]) for fact in pool.facts]


def of_films(pool: Pool) -> list[tuple[world.Shot, float]]:
    """The shots of a pool of films, and when their first frames are."""
    return [(shot_of(fact), world.clip_times(FRAMES, fact["fps"])[0]) for fact in pool.facts]


def stills(pool: Pool, seen: Seen, grey: Seen, batch: int, tokens: CLIPTokenizer) -> Draw:
    """Batches of (pictures, noise, weights, timesteps, words, what is seen of the picture itself, frame rates)."""
    words, empty, heavy = captions_as_ids(pool, tokens), ids(tokens, [""])[0], unet.emphasis(pool)[:, None]

    def draw(rng: Rng, progress: float) -> Batch:
        k = rng.integers(len(words), size=batch)
        rates = torch.zeros(batch)
        told = _told(rng, words[k], empty, WORDLESS[0])
        return (*noised(rng, pool.pictures[k], heavy[k]), told, _shown(rng, seen[k], grey), rates)

    return draw


def films(pool: Pool, seen: Seen, grey: Seen, batch: int, tokens: CLIPTokenizer) -> Draw:
    """The same of films, what is seen being their first frames."""
    words, empty = captions_as_ids(pool, tokens), ids(tokens, [""])[0]
    weights = np.stack([weights_of(fact) for fact in pool.facts])
    rates = np.array([fact["fps"] for fact in pool.facts], np.float32)

    def draw(rng: Rng, progress: float) -> Batch:
        frames = FRAMES // 2 if rng.uniform() < SHORT else FRAMES
        k = rng.integers(len(words), size=batch * FRAMES // frames)
        window = slice(0, FRAMES, int(rng.choice((1, 2)))) if frames < FRAMES else slice(0, FRAMES)
        clips, heavy = (each[k][:, window][:, :frames] for each in (pool.pictures, weights))
        fps = torch.from_numpy(rates[k] / (window.step or 1))
        return (*noised(rng, clips, heavy), _told(rng, words[k], empty, WORDLESS[1]), _shown(rng, seen[k], grey), fps)

    return draw


def _told(rng: Rng, words: np.ndarray, empty: np.ndarray, wordless: float) -> Tensor:
    told = said(rng, words, empty)
    told[torch.from_numpy(rng.uniform(size=len(told)) < wordless)] = torch.from_numpy(empty.astype(np.int64))
    return told


def _shown(rng: Rng, seen: Seen, grey: Seen) -> Tensor:
    shown = seen.astype(np.float32)
    shown[rng.uniform(size=len(shown)) < UNSEEN] = grey
    return torch.from_numpy(shown)


def noise_loss(text: CLIPTextModel, animator: Animator, batch: Batch) -> dict[str, Tensor]:
    """The squared error of the predicted noise, told and shown."""
    *clips, words, seen, fps = batch
    return {"noise": error(animator.net, _with_picture(animator.net, told_of(text, words, fps), seen), *clips)}


def _with_picture(net: VideoUNet, told: Condition, seen: Tensor) -> Condition:
    tokens = cross_attention.project_image_tokens(net.image_unet, [seen[:, None]])
    return Condition(told.tokens, image_tokens=tokens, embedding=told.embedding)


def train(
    animator: Animator, plan: Plan, folder: Path, draw: Draw,
    report: Report, *, text: CLIPTextModel,
) -> VideoUNet:  # fmt: skip
    """The averaged network."""
    ready = use_fast_group_norm(animator).to(best_device()).eval()
    ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    return fit(ready, plan, folder, draw=draw, loss=partial(noise_loss, text), report=report).net


def reporter(
    folder: Path, held_out: Pool, seen: Seen, grey: Seen, *, autoencoder: AutoencoderKL, text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Report:  # fmt: skip
    """A sheet of held-out first frames and the videos drawn from them, and what the judge says of those."""
    judge, facts = load_judge(), held_out.facts
    first = np.stack([world.render(shot, time) for shot, time in of_films(Pool(held_out.pictures, facts))])

    @torch.no_grad()
    def report(animator: Animator) -> Figures:
        net = animator.net
        told = condition(text, ids(tokenizer, [fact["captions"][0] for fact in facts]))
        untold = condition(text, ids(tokenizer, [""] * len(facts)))
        drawn = draw_videos(
            net,
            _with_picture(net, told, torch.from_numpy(seen.astype(np.float32))),
            _with_picture(net, untold, torch.from_numpy(np.stack([grey] * len(facts)).astype(np.float32))),
        )
        scale = autoencoder.config["scaling_factor"]
        videos = [as_pictures(vae.decode(autoencoder, each / scale)) for each in drawn]
        rows = [np.concatenate([one[None], video[::2]]) for one, video in zip(first, videos, strict=True)]
        save_sheet(folder / "sheet.png", *rows)
        return _judged(judge, videos, facts)

    return report


def _judged(judge: Any, videos: list[np.ndarray], facts: list[Any]) -> Figures:
    main = [fact["things"][0] for fact in facts]
    kinds = [
        np.mean([kind == one["kind"] for kind in judge.look(v).thing]) for v, one in zip(videos, main, strict=True)
    ]
    moves = [judge.motion(v) == one["motion"] for v, one in zip(videos, main, strict=True)]
    return {"thing": float(np.mean(kinds)), "motion": float(np.mean(moves))}
