"""Stage 5: ControlNets for edges, depth and pose (Zhang et al. 2023), each told as a change of the U-Net's first half."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.pocket.networks import initial_controlnet, make_trainable
from kineograph.models.schedule import Schedule
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image import vae as autoencoder
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.image.unet import SCHEDULER, cell_weights, image_noise_loss, sample_images, unet_batches
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.loop import Metrics, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import tokenize
from kineograph_lab.recipe.pool import Pool, shot_from_facts
from kineograph_lab.world.truth import CONTROL_MAPS, ground_truth

NUM_SAMPLES = 8


class UNetWithControlNet(nn.Module):
    """A U-Net that no longer learns and a ControlNet that does."""

    def __init__(self, unet: UNet2DConditionModel, control: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.control = unet, control

    def forward(self, z: Tensor, t: Tensor, told: Tensor, maps: Tensor) -> UNet2DConditionOutput:
        """maps: uint8 [n, h, w, 3]."""
        cond = maps.to(z.device).permute(0, 3, 1, 2).float() / 255
        down, middle = self.control(z, t, told, controlnet_cond=cond, return_dict=False)
        return self.unet(z, t, told, down_block_additional_residuals=down, mid_block_additional_residual=middle)


def render_control_maps(kind: str, pool: Pool) -> np.ndarray:
    """The maps of all pictures: uint8 [pictures, 128, 128, 3]."""
    known = (ground_truth(shot_from_facts(fact), fact["time"]) for fact in pool.facts)
    return np.stack([CONTROL_MAPS[kind](picture, each) for picture, each in zip(pool.pictures, known, strict=True)])


def train_controlnet(
    kind: str, net: UNet2DConditionModel, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool,
    *, latents: np.ndarray, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
) -> ControlNetModel:  # fmt: skip
    """The averaged ControlNet for one kind of map, its changes not merged."""
    net.set_attn_processor(AttnProcessor())
    net.requires_grad_(requires_grad=False)
    pair = use_fast_group_norm(UNetWithControlNet(net, make_trainable(initial_controlnet(net)))).to(best_device())
    pair.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    schedule = Schedule.from_config(SCHEDULER)
    nothing = tokenize(tokenizer, [""])[0]
    sample_batch = unet_batches(
        latents,
        tokenize_captions(pool, tokenizer),
        cell_weights(pool),
        schedule,
        plan.batch,
        nothing,
        render_control_maps(kind, pool),
    )
    report = controlnet_report(kind, folder, held_out, schedule, vae, text, tokenizer)
    return train_loop(
        pair, plan, folder, sample_batch=sample_batch, loss=partial(image_noise_loss, text), report=report
    ).control


def controlnet_report(
    kind: str, folder: Path, held_out: Pool, schedule: Schedule, vae: AutoencoderKL, text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Callable[[UNetWithControlNet], Metrics]:  # fmt: skip
    """A sheet of held-out pictures, their maps, and what is drawn by these and the captions."""
    few = Pool(held_out.pictures[:NUM_SAMPLES], held_out.facts[:NUM_SAMPLES])
    maps, told = render_control_maps(kind, few), tokenize(tokenizer, [fact["captions"][0] for fact in few.facts])

    @torch.no_grad()
    def report(pair: UNetWithControlNet) -> Metrics:
        blank = tokenize(tokenizer, [""] * NUM_SAMPLES)
        drawn = sample_images(pair, schedule, text, told, blank, torch.from_numpy(maps))
        pictures = to_uint8(autoencoder.decode_latents(vae, drawn / vae.config["scaling_factor"]))
        save_contact_sheet(folder / "sheet.png", few.pictures, maps, pictures)
        return {"spread": float(drawn.std())}

    return report
