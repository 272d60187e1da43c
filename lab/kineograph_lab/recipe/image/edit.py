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
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image import vae as autoencoder
from kineograph_lab.recipe.image.unet import (
    SCHEDULER,
    cell_weights,
    image_noise_loss,
    load_latents,
    sample_images,
    unet_batches,
)
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import tokenize
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.world.edits import ASPECTS

FAMILY_IMAGES = 1 + len(ASPECTS)
IMAGE_DROPOUT = 0.1  # share of pictures left out, for the guidance by pictures
NUM_SAMPLES = 8


class EditingUNet(nn.Module):
    """The editing U-Net, called with the picture's latents apart."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, t: Tensor, told: Tensor, shown: Tensor) -> UNet2DConditionOutput:
        return self.unet(torch.cat([z, shown.to(z)], dim=1), t, told)


class EditPairs(NamedTuple):
    """Edits: the number of the picture before, of the picture after, and what is said (int16 [edits, texts, words])."""

    before: np.ndarray
    after: np.ndarray
    words: np.ndarray


def flatten_families(families: Pool) -> Pool:
    """The pictures of all families in one row, each with its shot."""
    return Pool(families.pictures.reshape(-1, *families.pictures.shape[2:]), [s for f in families.facts for s in f["shots"]])  # fmt: skip


def edit_pairs(families: Pool, tokens: CLIPTokenizer) -> EditPairs:
    """From each family's shot to its edits, and back."""
    first = FAMILY_IMAGES * np.arange(len(families.facts))[:, None].repeat(len(ASPECTS), 1)
    edited = first + 1 + np.arange(len(ASPECTS))
    said = [text for way in ("there", "back") for fact in families.facts for texts in fact[way] for text in texts]
    words = tokenize(tokens, said).reshape(2 * edited.size, -1, tokenize(tokens, [""]).shape[1])
    before, after = (np.concatenate([a.ravel(), b.ravel()]) for a, b in ((first, edited), (edited, first)))
    return EditPairs(before, after, words)


def train_editing_unet(
    net: UNet2DConditionModel, plan: StagePlan, folder: Path, families: Pool, held_out: Pool,
    *, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
) -> UNet2DConditionModel:  # fmt: skip
    """The averaged editing U-Net, its changes not merged."""
    editing = use_fast_group_norm(EditingUNet(make_trainable(initial_editing_unet(net)))).to(best_device())
    editing.unet.set_attn_processor(AttnProcessor())
    editing.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    schedule, flat, chosen = (
        Schedule.from_config(SCHEDULER),
        flatten_families(families),
        edit_pairs(families, tokenizer),
    )
    latents = load_latents(folder, vae, flat)
    sample_batch = unet_batches(
        latents[chosen.after], chosen.words, cell_weights(flat)[chosen.after], schedule, plan.batch,
        tokenize(tokenizer, [""])[0], _unscale(latents, vae)[chosen.before],
    )  # fmt: skip
    report = edit_report(folder, held_out, schedule, vae, text, tokenizer)
    return train_loop(
        editing,
        plan,
        folder,
        sample_batch=_drop_some_images(sample_batch),
        loss=partial(image_noise_loss, text),
        report=report,
    ).unet


def _unscale(latents: np.ndarray, vae: AutoencoderKL) -> np.ndarray:
    """Pictures are shown as the VAE encodes them, without its scale, as InstructPix2Pix has it."""
    return (latents.astype(np.float32) / vae.config["scaling_factor"]).astype(np.float16)


def _drop_some_images(sample_batch: SampleBatch) -> SampleBatch:
    """Batches in which some pictures are left out."""

    def drawn(rng: np.random.Generator, progress: float) -> Batch:
        *known, shown = sample_batch(rng, progress)
        unseen = torch.from_numpy(rng.uniform(size=len(shown)) < IMAGE_DROPOUT)
        return *known, shown.masked_fill(unseen[:, None, None, None], 0)

    return drawn


def edit_report(
    folder: Path, held_out: Pool, schedule: Schedule, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> Callable[[EditingUNet], Metrics]:
    """A sheet of held-out pictures before, after as the world has it, and after as the network has it."""
    flat, chosen = flatten_families(held_out), edit_pairs(held_out, tokenizer)
    before, after, words = (each[:NUM_SAMPLES] for each in chosen)
    shown = autoencoder.encode_images(vae, flat.pictures[before])

    @torch.no_grad()
    def report(net: EditingUNet) -> Metrics:
        drawn = sample_images(net, schedule, text, words[:, 0], tokenize(tokenizer, [""] * NUM_SAMPLES), shown)
        pictures = to_uint8(autoencoder.decode_latents(vae, drawn / vae.config["scaling_factor"]))
        save_contact_sheet(folder / "sheet.png", flat.pictures[before], flat.pictures[after], pictures)
        off = pictures.astype(float) - flat.pictures[after]
        return {"spread": float(drawn.std()), "psnr": float(10 * np.log10(255**2 / np.square(off).mean()))}

    return report
