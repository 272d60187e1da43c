"""Stage 5: ControlNets for edges, depth and pose (Zhang et al. 2023), as low-rank changes of the U-Net's first half."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.pocket.networks import initial_controlnet, load_float32, make_trainable
from kineograph.models.schedule import Schedule
from kineograph.training.group_norm import use_fast_group_norm
from kineograph_lab.recipe.image.text_encoder import tokenize_captions
from kineograph_lab.recipe.image.unet import SCHEDULER, cell_weights, image_noise_loss, sample_images, unet_batches
from kineograph_lab.recipe.image.vae import decode_latents
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.loop import Metrics, StagePlan, best_device, train_loop
from kineograph_lab.recipe.networks import tokenize
from kineograph_lab.recipe.pool import Pool, shot_from_facts
from kineograph_lab.world.truth import CONTROL_MAPS, ground_truth

NUM_SAMPLES = 8


class UNetWithControlNet(nn.Module):
    """A frozen U-Net and a trained ControlNet."""

    def __init__(self, unet: UNet2DConditionModel, control: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.control = unet, control

    def forward(self, z: Tensor, t: Tensor, text_states: Tensor, maps: Tensor) -> UNet2DConditionOutput:
        """Return the predicted noise; maps: uint8 [n, h, w, 3]."""
        cond = maps.to(z.device).permute(0, 3, 1, 2).float() / 255
        down, middle = self.control(z, t, text_states, controlnet_cond=cond, return_dict=False)
        return self.unet(z, t, text_states, down_block_additional_residuals=down, mid_block_additional_residual=middle)


def render_control_maps(kind: str, pool: Pool) -> np.ndarray:
    """Return the control maps of all images, uint8 [images, 128, 128, 3]."""
    truths = (ground_truth(shot_from_facts(fact), fact["time"]) for fact in pool.facts)
    return np.stack([CONTROL_MAPS[kind](image, truth) for image, truth in zip(pool.items, truths, strict=True)])


def train_controlnet(
    kind: str, net: UNet2DConditionModel, plan: StagePlan, folder: Path, pool: Pool, held_out: Pool,
    *, latents: np.ndarray, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
    initial: Mapping[str, Tensor],
) -> ControlNetModel:  # fmt: skip
    """Train the ControlNet for one kind of map; return it with averaged, unmerged low-rank weights.

    initial: trained weights from which the training goes on; empty to start anew.
    """
    net.set_attn_processor(AttnProcessor())
    net.requires_grad_(requires_grad=False)
    control = make_trainable(initial_controlnet(net))
    load_float32(control, initial)
    pair = use_fast_group_norm(UNetWithControlNet(net, control)).to(best_device())
    pair.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    text.set_attn_implementation("eager")
    text.to(best_device())
    schedule = Schedule.from_config(SCHEDULER)
    empty_caption = tokenize(tokenizer, [""])[0]
    sample_batch = unet_batches(
        latents,
        tokenize_captions(pool, tokenizer),
        cell_weights(pool),
        schedule,
        plan.batch,
        empty_caption,
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
    """Return a report that saves a contact sheet: held-out images, their maps, images sampled from maps and captions."""
    few = Pool(held_out.items[:NUM_SAMPLES], held_out.facts[:NUM_SAMPLES])
    maps, captions = render_control_maps(kind, few), tokenize(tokenizer, [fact["captions"][0] for fact in few.facts])

    @torch.no_grad()
    def report(pair: UNetWithControlNet) -> Metrics:
        empty_captions = tokenize(tokenizer, [""] * NUM_SAMPLES)
        latents = sample_images(pair, schedule, text, captions, empty_captions, torch.from_numpy(maps))
        images = to_uint8(decode_latents(vae, latents / vae.config["scaling_factor"]))
        save_contact_sheet(folder / "sheet.png", few.items, maps, images)
        return {"spread": float(latents.std())}

    return report
