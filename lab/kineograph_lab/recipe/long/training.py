"""The long training of the pocket models, over many sessions: `python -m kineograph_lab.recipe.long.training --out FOLDER`.

Given again, it goes on from the last checkpoint of the stage that was running, with the same batches. A process of its
own paints images into the pool that the U-Net is trained on. Everything in the output folder is plain data.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from kineograph.models.schedule import Schedule
from kineograph.noise import independent
from kineograph_lab.recipe import image_stages, layer_stages, outputs, video_stages
from kineograph_lab.recipe.contact_sheets import as_pictures, save_sheet
from kineograph_lab.recipe.image import unet, vae
from kineograph_lab.recipe.image.tokenizer import ids
from kineograph_lab.recipe.image_stages import Stage
from kineograph_lab.recipe.long import growing_pool, text_encoder
from kineograph_lab.recipe.long.development import PROMPTS, SEEDS
from kineograph_lab.recipe.loop import Figures
from kineograph_lab.recipe.networks import LATENT_CHANNELS
from kineograph_lab.recipe.settings import FILM_SHARDS, LONG, SHARDS, TEXTS, Settings
from kineograph_lab.recipe.unpack import unpack

SHIPPED = "shipped"
KEPT_FROM_SHIPPED = ("vae", "clip", "text/tokenizer")  # what later stages read and this training leaves alone
GUIDANCE = (4.0, 7.5)  # of the two contact sheets in a report
STEPS, ACROSS = 20, 8  # sampling steps and columns of a sheet


def train_text(plans: Settings, out: Path) -> None:
    """Train the one text encoder, from the video models' own, which knows words for motion."""
    start = CLIPTextModel.from_pretrained(out / SHIPPED / "moving_text" / "final")
    torch.manual_seed(plans.seed)
    trained = text_encoder.train(start, plans.text, out / "text", TEXTS, tokens=outputs.tokens(out))
    trained.save_pretrained(out / "moving_text" / "final")
    trained.save_pretrained(out / "text" / "final")


def train_unet(plans: Settings, out: Path) -> None:
    """Train the U-Net that ships further on the growing pool."""
    images, folder, plan = out / outputs.IMAGE_POOL, out / "unet", plans.unet
    folder.mkdir(parents=True, exist_ok=True)
    if growing_pool.shards_in(images) < growing_pool.FEWEST:
        raise FewImages
    assert plan.steps is not None
    text, tokens = CLIPTextModel.from_pretrained(out / "text" / "final"), outputs.tokens(out)
    shards, schedule = growing_pool.Shards(images), Schedule.from_config(unet.SCHEDULER)
    count = growing_pool.ledger(images, folder / "ledger.jsonl", plan.steps)
    draw = unet.draws_from(shards.fetch, count, schedule, plan.batch, ids(tokens, [""])[0])
    torch.manual_seed(plans.seed)
    net = UNet2DConditionModel.from_pretrained(out / SHIPPED / "unet" / "final")
    report = reporter(folder, schedule, outputs.autoencoder(out), text, tokens)
    unet.train_on(net, plan, folder, draw, report, text=text).save_pretrained(folder / "final")


class FewImages(Exception):
    """The pool holds too few images or films to begin."""


def with_films(train: Stage) -> Stage:
    """Return the stage, begun when all films are there: their number must not change when it is resumed."""

    def trained(plans: Settings, out: Path) -> None:
        if growing_pool.shards_in(out / outputs.FILM_POOL) < FILM_SHARDS:
            raise FewImages
        train(plans, out)

    return trained


def reporter(
    folder: Path, schedule: Schedule, autoencoder: AutoencoderKL, text: CLIPTextModel, tokens: CLIPTokenizer
) -> Callable[[UNet2DConditionModel], Figures]:
    """Save contact sheets of the development prompts and the averaged weights, numbered, with every report."""
    sheets = folder / "sheets"
    sheets.mkdir(parents=True, exist_ok=True)
    size = (1, LATENT_CHANNELS, unet.CELLS, unet.CELLS)
    noise = torch.cat([independent(seed, [0], size) for seed in SEEDS])

    @torch.no_grad()
    def report(net: UNet2DConditionModel) -> Figures:
        number = len(list(folder.glob("average-*")))
        net.save_pretrained(folder / f"average-{number:03d}", variant="fp32")
        spread = {}
        for scale in GUIDANCE:
            latents = unet.draw_pictures(
                net, schedule, text, ids(tokens, PROMPTS), ids(tokens, [""] * len(PROMPTS)), scale=scale, steps=STEPS,
                noise=noise,
            )  # fmt: skip
            images = as_pictures(vae.decode(autoencoder, latents / autoencoder.config["scaling_factor"]))
            rows = np.split(images, len(PROMPTS) // ACROSS)
            save_sheet(sheets / f"{number:03d}-guidance-{scale:g}.png", *rows)
            spread[f"spread {scale:g}"] = float(latents.std())
        return spread

    return report


STAGES: dict[str, tuple[Stage, str]] = {
    "text": (train_text, "text/final"),
    "unet": (train_unet, "unet/final"),
    "control": (image_stages.train_control, "control/pose.safetensors"),
    "edit": (image_stages.train_edit, "edit.safetensors"),
    "text_to_video": (with_films(video_stages.train_text_to_video), outputs.TEXT_TO_VIDEO),
    "image_reading": (with_films(video_stages.train_image_reading), video_stages.READING),
    "image_to_video": (with_films(video_stages.train_image_to_video), video_stages.IMAGE_TO_VIDEO),
    "motion_adapter": (with_films(layer_stages.train_motion_adapter), layer_stages.MOTION_ADAPTER),
    "vidrd": (with_films(layer_stages.train_vidrd), layer_stages.VIDRD),
    "degraded": (with_films(video_stages.train_degraded), video_stages.DEGRADED),
    "space_time": (with_films(layer_stages.train_space_time), layer_stages.SPACE_TIME),
    "space_time_motion": (with_films(layer_stages.train_space_time_motion), layer_stages.SPACE_TIME_MOTION),
}


def prepare(out: Path) -> None:
    """Write what ships into `out/shipped`, and of it what this training leaves alone into `out`."""
    unpack(out / SHIPPED)
    for name in KEPT_FROM_SHIPPED:
        if not (out / name).exists():
            shutil.copytree(out / SHIPPED / name, out / name)


def start_painter(out: Path) -> subprocess.Popen[bytes]:
    """Paint the pool beside the training; the process ends with this one."""
    command = (
        sys.executable,
        "-m",
        "kineograph_lab.recipe.long.training",
        "--out",
        str(out),
        "--paint",
        str(os.getpid()),
    )
    with (out / "painter.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def paint(out: Path, parent: int) -> None:
    """Paint a third of the images, then all films, then the other images, as long as the process `parent` lives."""
    encode, tokens = growing_pool.encoder(out / "vae" / "final"), outputs.tokens(out)

    def lives() -> bool:
        return os.getppid() == parent

    growing_pool.paint(out / outputs.IMAGE_POOL, encode, tokens, SHARDS // 3, LONG.seed, lives)
    growing_pool.paint_films(out / outputs.FILM_POOL, encode, FILM_SHARDS, LONG.seed, lives)
    growing_pool.paint(out / outputs.IMAGE_POOL, encode, tokens, SHARDS, LONG.seed, lives)


def run(plans: Settings, out: Path, stages: list[str]) -> None:
    """Train these stages in order, those that have ended left alone."""
    painter = start_painter(out)
    try:
        for name, (train, result) in STAGES.items():
            if name in stages and not (out / result).exists():
                _when_there_are_images(partial(train, plans, out), painter)
    finally:
        painter.terminate()


def _when_there_are_images(train: Callable[[], None], painter: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            return train()
        except FewImages:
            try:
                painter.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError("the painter ended before there were enough images: see painter.log") from None


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kineograph_lab.recipe.long.training", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, with commas between (default: all)")
    parser.add_argument("--paint", type=int, help="only paint the pool, as long as the process with this number lives")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)  # `fit` has a thread a core, and each works alone
    if asked.paint is not None:
        paint(asked.out, asked.paint)
        return
    prepare(asked.out)
    run(LONG, asked.out, asked.stages.split(","))


if __name__ == "__main__":
    main()
