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
from kineograph.training.norms import use_fast_group_norm
from kineograph_lab.recipe.contact_sheets import as_pictures, save_sheet
from kineograph_lab.recipe.image import vae as autoencoder
from kineograph_lab.recipe.image.text_encoder import captions_as_ids
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.image.unet import SCHEDULER, draw_pictures, draws, emphasis, noise_loss
from kineograph_lab.recipe.loop import Figures, Plan, best_device, fit
from kineograph_lab.recipe.pool import Pool, shot_of
from kineograph_lab.world.truth import MAPS, truth

SHOWN = 8


class Controlled(nn.Module):
    """A U-Net that no longer learns and a ControlNet that does."""

    def __init__(self, unet: UNet2DConditionModel, control: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.control = unet, control

    def forward(self, z: Tensor, t: Tensor, told: Tensor, maps: Tensor) -> UNet2DConditionOutput:
        """maps: uint8 [n, h, w, 3]."""
        cond = maps.to(z.device).permute(0, 3, 1, 2).float() / 255
        down, middle = self.control(z, t, told, controlnet_cond=cond, return_dict=False)
        return self.unet(z, t, told, down_block_additional_residuals=down, mid_block_additional_residual=middle)


def maps_of(kind: str, pool: Pool) -> np.ndarray:
    """The maps of all pictures: uint8 [pictures, 128, 128, 3]."""
    known = (truth(shot_of(fact), fact["time"]) for fact in pool.facts)
    return np.stack([MAPS[kind](picture, each) for picture, each in zip(pool.pictures, known, strict=True)])


def train(
    kind: str, net: UNet2DConditionModel, plan: Plan, folder: Path, pool: Pool, held_out: Pool,
    *, latents: np.ndarray, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
) -> ControlNetModel:  # fmt: skip
    """The averaged ControlNet for one kind of map, its changes not merged."""
    net.set_attn_processor(AttnProcessor())
    net.requires_grad_(requires_grad=False)
    pair = use_fast_group_norm(Controlled(net, make_trainable(initial_controlnet(net)))).to(best_device())
    pair.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    schedule = Schedule.from_config(SCHEDULER)
    nothing = ids(tokenizer, [""])[0]
    draw = draws(
        latents, captions_as_ids(pool, tokenizer), emphasis(pool), schedule, plan.batch, nothing, maps_of(kind, pool)
    )
    report = reporter(kind, folder, held_out, schedule, vae, text, tokenizer)
    return fit(pair, plan, folder, draw=draw, loss=partial(noise_loss, text), report=report).control


def reporter(
    kind: str, folder: Path, held_out: Pool, schedule: Schedule, vae: AutoencoderKL, text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Callable[[Controlled], Figures]:  # fmt: skip
    """A sheet of held-out pictures, their maps, and what is drawn by these and the captions."""
    few = Pool(held_out.pictures[:SHOWN], held_out.facts[:SHOWN])
    maps, told = maps_of(kind, few), ids(tokenizer, [fact["captions"][0] for fact in few.facts])

    @torch.no_grad()
    def report(pair: Controlled) -> Figures:
        blank = ids(tokenizer, [""] * SHOWN)
        drawn = draw_pictures(pair, schedule, text, told, blank, torch.from_numpy(maps))
        pictures = as_pictures(autoencoder.decode(vae, drawn / vae.config["scaling_factor"]))
        save_sheet(folder / "sheet.png", few.pictures, maps, pictures)
        return {"spread": float(drawn.std())}

    return report
