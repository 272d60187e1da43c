"""Stage 6: the editing U-Net (InstructPix2Pix, Brooks et al. 2023), conditioned on an image and an instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

from kineograph.models.pocket.networks import initial_editing_unet, load_float32, make_trainable
from kineograph.models.schedule import Schedule
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image.unet import (
    SCHEDULER,
    cell_weights,
    image_noise_loss,
    load_latents,
    sample_images,
    unet_batches,
)
from kineograph_lab.recipe.image.vae import decode_latents, encode_images
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.loop import Batch, Metrics, SampleBatch, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import tokenize
from kineograph_lab.recipe.pool import Pool
from kineograph_lab.world.edits import ASPECTS

FAMILY_IMAGES = 1 + len(ASPECTS)
IMAGE_DROPOUT = 0.1  # share of image latents dropped, for the guidance by images
NUM_SAMPLES = 8


class EditingUNet(nn.Module):
    """The editing U-Net, called with the image's latents as a separate argument."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, z: Tensor, t: Tensor, text_states: Tensor, image_latents: Tensor) -> UNet2DConditionOutput:
        return self.unet(torch.cat([z, image_latents.to(z)], dim=1), t, text_states)


class EditPairs(NamedTuple):
    """Edits: index of the image before and of the image after, tokens of instructions (int16 [edits, texts, tokens])."""

    before: np.ndarray
    after: np.ndarray
    words: np.ndarray


def flatten_families(families: Pool) -> Pool:
    """Return the images of all families as one pool, each with its shot."""
    return Pool(families.items.reshape(-1, *families.items.shape[2:]), [s for f in families.facts for s in f["shots"]])  # fmt: skip


def edit_pairs(families: Pool, tokenizer: CLIPTokenizer) -> EditPairs:
    """Return the edits from each family's shot to its edits, and back."""
    first = FAMILY_IMAGES * np.arange(len(families.facts))[:, None].repeat(len(ASPECTS), 1)
    edited = first + 1 + np.arange(len(ASPECTS))
    texts_of_edits = [
        text for way in ("there", "back") for fact in families.facts for texts in fact[way] for text in texts
    ]
    words = tokenize(tokenizer, texts_of_edits).reshape(2 * edited.size, -1, tokenize(tokenizer, [""]).shape[1])
    before, after = (np.concatenate([a.ravel(), b.ravel()]) for a, b in ((first, edited), (edited, first)))
    return EditPairs(before, after, words)


def train_editing_unet(
    net: UNet2DConditionModel, plan: StagePlan, folder: Path, families: Pool, held_out: Pool,
    *, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, initial: Mapping[str, Tensor],
) -> UNet2DConditionModel:  # fmt: skip
    """Train the editing U-Net; return it with averaged, unmerged low-rank weights.

    initial: trained weights from which the training goes on; empty to start anew.
    """
    trainable = make_trainable(initial_editing_unet(net))
    load_float32(trainable, initial)
    editing = use_fast_group_norm(EditingUNet(trainable)).to(best_device())
    editing.unet.set_attn_processor(AttnProcessor())
    editing.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    schedule, images, pairs_of_images = (
        Schedule.from_config(SCHEDULER),
        flatten_families(families),
        edit_pairs(families, tokenizer),
    )
    latents = load_latents(folder, vae, images)
    sample_batch = unet_batches(
        latents[pairs_of_images.after], pairs_of_images.words, cell_weights(images)[pairs_of_images.after], schedule, plan.batch,
        tokenize(tokenizer, [""])[0], _unscale(latents, vae)[pairs_of_images.before],
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
    """Return the image latents without the VAE's scale, the convention of InstructPix2Pix."""
    return (latents.astype(np.float32) / vae.config["scaling_factor"]).astype(np.float16)


def _drop_some_images(sample_batch: SampleBatch) -> SampleBatch:
    """Return the sampler with a share of the image latents set to zero, for the guidance by images."""

    def sample_with_dropout(rng: np.random.Generator, progress: float) -> Batch:
        *others, image_latents = sample_batch(rng, progress)
        dropped = torch.from_numpy(rng.uniform(size=len(image_latents)) < IMAGE_DROPOUT)
        return *others, image_latents.masked_fill(dropped[:, None, None, None], 0)

    return sample_with_dropout


def edit_report(
    folder: Path, held_out: Pool, schedule: Schedule, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> Callable[[EditingUNet], Metrics]:
    """Return a report that saves a sheet of held-out images before and after, by the world and by the network."""
    images, pairs_of_images = flatten_families(held_out), edit_pairs(held_out, tokenizer)
    before, after, words = (each[:NUM_SAMPLES] for each in pairs_of_images)
    image_latents = encode_images(vae, images.items[before])

    @torch.no_grad()
    def report(net: EditingUNet) -> Metrics:
        latents = sample_images(
            net, schedule, text, words[:, 0], tokenize(tokenizer, [""] * NUM_SAMPLES), image_latents
        )
        edited = to_uint8(decode_latents(vae, latents / vae.config["scaling_factor"]))
        save_contact_sheet(folder / "sheet.png", images.items[before], images.items[after], edited)
        difference = edited.astype(float) - images.items[after]
        return {"spread": float(latents.std()), "psnr": float(10 * np.log10(255**2 / np.square(difference).mean()))}

    return report
