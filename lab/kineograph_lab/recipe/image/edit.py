"""Stage 6: the editing U-Net (InstructPix2Pix, Brooks et al. 2023): it reads a picture and what to change in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.pocket.networks import initial_editing_unet, make_trainable
from kineograph.models.schedule import Schedule
from kineograph.training.norms import use_fast_group_norm
from kineograph_lab.recipe.contact_sheets import as_pictures, save_sheet
from kineograph_lab.recipe.image import vae as autoencoder
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.image.unet import SCHEDULER, cached_latents, draw_pictures, draws, emphasis, noise_loss
from kineograph_lab.recipe.loop import Batch, Draw, Figures, Plan, best_device, fit
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.world.edits import ASPECTS

MEMBERS = 1 + len(ASPECTS)
UNSEEN = 0.1  # share of pictures left out, for the guidance by pictures
SHOWN = 8


class Editing(nn.Module):
    """The editing U-Net, called with the picture's latents apart."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, t: Tensor, told: Tensor, shown: Tensor) -> UNet2DConditionOutput:
        return self.unet(torch.cat([z, shown.to(z)], dim=1), t, told)


class Pairs(NamedTuple):
    """Edits: the number of the picture before, of the picture after, and what is said (int16 [edits, texts, words])."""

    before: np.ndarray
    after: np.ndarray
    words: np.ndarray


def flattened(families: Pool) -> Pool:
    """The pictures of all families in one row, each with its shot."""
    return Pool(families.pictures.reshape(-1, *families.pictures.shape[2:]), [s for f in families.facts for s in f["shots"]])  # fmt: skip


def pairs(families: Pool, tokens: CLIPTokenizer) -> Pairs:
    """From each family's shot to its edits, and back."""
    first = MEMBERS * np.arange(len(families.facts))[:, None].repeat(len(ASPECTS), 1)
    edited = first + 1 + np.arange(len(ASPECTS))
    said = [text for way in ("there", "back") for fact in families.facts for texts in fact[way] for text in texts]
    words = ids(tokens, said).reshape(2 * edited.size, -1, ids(tokens, [""]).shape[1])
    before, after = (np.concatenate([a.ravel(), b.ravel()]) for a, b in ((first, edited), (edited, first)))
    return Pairs(before, after, words)


def train(
    net: UNet2DConditionModel, plan: Plan, folder: Path, families: Pool, held_out: Pool,
    *, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
) -> UNet2DConditionModel:  # fmt: skip
    """The averaged editing U-Net, its changes not merged."""
    editing = use_fast_group_norm(Editing(make_trainable(initial_editing_unet(net)))).to(best_device())
    editing.unet.set_attn_processor(AttnProcessor())
    editing.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    schedule, flat, chosen = Schedule.from_config(SCHEDULER), flattened(families), pairs(families, tokenizer)
    latents = cached_latents(folder, vae, flat)
    draw = draws(
        latents[chosen.after], chosen.words, emphasis(flat)[chosen.after], schedule, plan.batch,
        ids(tokenizer, [""])[0], _unscaled(latents, vae)[chosen.before],
    )  # fmt: skip
    report = reporter(folder, held_out, schedule, vae, text, tokenizer)
    return fit(editing, plan, folder, draw=_some_unseen(draw), loss=partial(noise_loss, text), report=report).unet


def _unscaled(latents: np.ndarray, vae: AutoencoderKL) -> np.ndarray:
    """Pictures are shown as the VAE encodes them, without its scale, as InstructPix2Pix has it."""
    return (latents.astype(np.float32) / vae.config["scaling_factor"]).astype(np.float16)


def _some_unseen(draw: Draw) -> Draw:
    """Batches in which some pictures are left out."""

    def drawn(rng: np.random.Generator, progress: float) -> Batch:
        *known, shown = draw(rng, progress)
        unseen = torch.from_numpy(rng.uniform(size=len(shown)) < UNSEEN)
        return *known, shown.masked_fill(unseen[:, None, None, None], 0)

    return drawn


def reporter(
    folder: Path, held_out: Pool, schedule: Schedule, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> Callable[[Editing], Figures]:
    """A sheet of held-out pictures before, after as the world has it, and after as the network has it."""
    flat, chosen = flattened(held_out), pairs(held_out, tokenizer)
    before, after, words = (each[:SHOWN] for each in chosen)
    shown = autoencoder.encode(vae, flat.pictures[before])

    @torch.no_grad()
    def report(net: Editing) -> Figures:
        drawn = draw_pictures(net, schedule, text, words[:, 0], ids(tokenizer, [""] * SHOWN), shown)
        pictures = as_pictures(autoencoder.decode(vae, drawn / vae.config["scaling_factor"]))
        save_sheet(folder / "sheet.png", flat.pictures[before], flat.pictures[after], pictures)
        off = pictures.astype(float) - flat.pictures[after]
        return {"spread": float(drawn.std()), "psnr": float(10 * np.log10(255**2 / np.square(off).mean()))}

    return report
