"""DreamBooth LoRAs of subjects of the pocket world that no model was trained on.

Source: DreamBooth (Ruiz et al. 2023): a rare token and the class name stand for the subject in the captions of a few
images. The LoRA is of the image U-Net, in diffusers' layout. It is trained here, not by `kineograph customise`, because
records carry its numbers (docs/decisions/0010).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from kineograph.media.files import replace_atomically
from kineograph.metrics.features import Frames
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph_lab.recipe.loop import bf16_autocast
from kineograph_lab.studies.protocol import Case
from kineograph_lab.studies.splits import DEVELOPMENT, TEST, Split, seed_offset
from kineograph_lab.world.captions import SCENES as WHERE
from kineograph_lab.world.world import SCENES, ShotSpec, render, sample_shots

SEED, IMAGES = 60_007, 5
COUNTS: Mapping[Split, int] = {DEVELOPMENT: 4, TEST: 20}
WORD = "sks"
RANK, LEARNING_RATE, STEPS, BATCH = 8, 1e-3, 250, 10
UNCOND_PROBABILITY = 0.1


class DreamBoothSubject(NamedTuple):
    """An individual: its kind, the shots of its training images, and those images, uint8 [n h w 3]."""

    split: Split
    number: int
    kind: str
    shots: tuple[ShotSpec, ...]
    images: Frames

    def prompt(self, scene: str) -> str:
        """Return the prompt for the subject in a scene."""
        return f"a {WORD} {self.kind} {WHERE[scene][0]}"


def dreambooth_subjects(split: Split = DEVELOPMENT) -> tuple[DreamBoothSubject, ...]:
    """Return individuals, each of another kind, with images in several scenes and sizes, in one drawing style."""
    return _dreambooth_subjects(split)


@cache
def _dreambooth_subjects(split: Split) -> tuple[DreamBoothSubject, ...]:
    chosen: dict[str, ShotSpec] = {}
    for shot in sample_shots(SEED + seed_offset(split), split="held_out"):
        if len(shot.things) == 1:
            chosen.setdefault(shot.things[0].kind, shot)
        if len(chosen) == COUNTS[split]:
            break
    return tuple(_subject(split, number, shot) for number, shot in enumerate(chosen.values()))


def subject_of(case: Case) -> DreamBoothSubject:
    """Return the subject of a case; subjects take turns."""
    return dreambooth_subjects(case.split)[case.number % COUNTS[case.split]]


def _subject(split: Split, number: int, shot: ShotSpec) -> DreamBoothSubject:
    rng = np.random.default_rng((SEED + seed_offset(split), number))
    scenes = [str(scene) for scene in rng.choice(SCENES, IMAGES, replace=False)]
    shots = []
    for scene in scenes:
        facing, size = int(rng.choice((-1, 1))), float(rng.uniform(0.26, 0.36))
        main = replace(shot.things[0], facing=facing, size=size, x=float(rng.uniform(0.42, 0.58)))
        shots.append(replace(shot, scene=scene, things=(main,), camera="still"))
    return DreamBoothSubject(
        split, number, shot.things[0].kind, tuple(shots), np.stack([render(each) for each in shots])
    )


def train_lora_once(subject: DreamBoothSubject, folder: Path, steps: int) -> Path:
    """Train the LoRA of a subject unless its file exists, and return the file."""
    prefix = "" if subject.split == DEVELOPMENT else f"{subject.split}-"
    file = folder / f"{prefix}{subject.number}-{subject.kind}-{steps}" / "pytorch_lora_weights.safetensors"
    if file.exists():
        return file
    model = load(dtype=torch.float32)
    unet = model.net.image_unet
    unet.requires_grad_(requires_grad=False)
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"])
    )
    _train(model, subject, steps)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    with replace_atomically(file.parent) as part:
        StableDiffusionPipeline.save_lora_weights(part, unet_lora_layers=layers)
    return file


def _train(model: Model, subject: DreamBoothSubject, steps: int) -> None:
    torch.manual_seed(subject.number)
    x0 = model.encode(torch.from_numpy(subject.images).permute(0, 3, 1, 2)[:, None].float() / 255)[:, 0]
    cond = model.prompt([subject.prompt(shot.scene) for shot in subject.shots]).tokens
    uncond = model.prompt([""]).tokens
    trained = [weight for weight in model.net.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(subject.number)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 20) * (1 - step / steps)
        chosen = torch.randint(len(x0), (BATCH,), generator=generator)
        tokens = torch.where(
            (torch.rand(BATCH, generator=generator) < UNCOND_PROBABILITY)[:, None, None], uncond, cond[chosen]
        )
        optimiser.zero_grad()
        _loss(model, x0[chosen], tokens, generator).backward()
        optimiser.step()


def _loss(model: Model, x0: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Return the diffusion loss of DreamBooth, at log-normal sigmas, weighted by min(1 + sigma^2, 25)."""
    table = torch.tensor(model.schedule.sigmas)
    wanted = torch.exp(0.7 + 1.1 * torch.randn(len(x0), generator=generator))
    t = torch.searchsorted(table, wanted).clamp(0, len(table) - 1)
    sigma = table[t][:, None, None, None]
    noise = torch.randn(x0.shape, generator=generator)
    z = ((x0 + sigma * noise) / (1 + sigma**2).sqrt()).to(memory_format=torch.channels_last)
    with bf16_autocast(z.device):
        predicted = model.net.image_unet(z, t, tokens).sample
    return ((1 + sigma**2).clamp(max=25) * (predicted.float() - noise).square()).mean()
