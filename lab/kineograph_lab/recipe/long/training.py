"""The long training of the pocket models, over many sessions: `python -m kineograph_lab.recipe.long.training --out FOLDER`.

Given again, the command resumes the interrupted stage from its last checkpoint, with the same batches. A process of its own
renders images into the pool that the U-Net is trained on. Everything in the output folder is plain data, and the names of
its files and their keys are a format (`tests/lab/recipe/test_long_training.py`).

Every choice of the built-in model's training and sampling is made on the development prompts only. They were sampled once
from the caption grammar (seed 2900) over pairs of subject and colour that training shows, so that no study's test prompt,
whose pairs training never shows, is among them; a third use the word forms of README and docs.
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
from kineograph_lab.recipe.export import export_finished
from kineograph_lab.recipe.image import unet, vae
from kineograph_lab.recipe.image_stages import Stage
from kineograph_lab.recipe.images import save_contact_sheet, to_uint8
from kineograph_lab.recipe.long import growing_pool, text_encoder
from kineograph_lab.recipe.loop import Metrics
from kineograph_lab.recipe.networks import LATENT_CHANNELS, tokenize
from kineograph_lab.recipe.settings import CLIP_SHARDS, IMAGE_SHARDS, LONG, NUM_TEXTS, RecipeSettings
from kineograph_lab.recipe.unpack import unpack_shipped
from kineograph_lab.world.truth import CONTROL_MAPS

DEVELOPMENT_SEEDS = tuple(range(7100, 7148))  # seed of each prompt's noise

DEVELOPMENT_PROMPTS = (
    "a red fish at sea", "a green fish swimming over the sea", "a yellow fish swimming to the left over the sea",
    "a blue fish rising in the sea", "a fish", "a fish swimming to the right", "a purple whale over the sea",
    "a brown whale swimming to the left over the sea", "an orange turtle on the sand", "a green turtle over the sea",
    "a red crab in the desert", "a pink crab at sea", "a blue bird over the sea", "a yellow bird flying to the right in a forest",
    "a bird in the snow", "a pink butterfly in a meadow", "a purple butterfly flying in a forest", "a brown cat in a room",
    "a yellow cat jumping in a meadow", "a cat", "an orange cat in the snow", "a blue rabbit in a meadow",
    "a yellow rabbit jumping in the snow", "a red elephant in the snow", "a blue elephant in a city", "an elephant facing left in a meadow",
    "a purple snail in a forest", "a red car in a city", "a green car driving to the left in the desert", "a car",
    "an orange truck in a city", "a blue truck growing in the snow", "a red boat at sea", "a green boat sailing to the right over the sea",
    "a purple airplane flying over the sea", "a yellow airplane in space", "a yellow rocket rising in space", "a green tree in a meadow",
    "a pink flower in a meadow swaying", "a green cactus in the desert", "a red mushroom in a meadow", "a blue ball bouncing in a room",
    "a blue robot in a city", "a pink kite over the sea", "an orange balloon rising in a meadow", "a yellow star sinking in space",
    "a brown cat and a red ball in a room", "a cartoon of a red fish and a blue boat over the sea",
)  # fmt: skip

SHIPPED = "shipped"
# results of this training, until all of them ship together
FINISHED = Path(__file__).parents[3] / "weights-in-training"
UNCHANGED = ("vae", "clip", "text/tokenizer")  # shipped parts that later stages read and this training does not change
GUIDANCE_SCALES = (4.0, 7.5)  # of the two contact sheets of a report
NUM_INFERENCE_STEPS, COLUMNS = 20, 8  # sampling steps and columns of a contact sheet


def long_text_stage(plans: RecipeSettings, out: Path) -> None:
    """Train the one text encoder, starting from the video models' own, which knows words for motion."""
    initial = CLIPTextModel.from_pretrained(out / SHIPPED / "moving_text" / "final")
    torch.manual_seed(plans.seed)
    trained = text_encoder.train_text_encoder(
        initial, plans.text, out / "text", NUM_TEXTS, tokenizer=outputs.load_tokenizer(out)
    )
    trained.save_pretrained(out / "moving_text" / "final")
    trained.save_pretrained(out / "text" / "final")


def long_unet_stage(plans: RecipeSettings, out: Path) -> None:
    """Train the shipped U-Net further on the growing pool."""
    images, folder, plan = out / outputs.IMAGE_POOL, out / "unet", plans.unet
    folder.mkdir(parents=True, exist_ok=True)
    if growing_pool.count_shards(images) < growing_pool.MIN_SHARDS:
        raise TooFewShardsError
    assert plan.steps is not None
    text, tokenizer = CLIPTextModel.from_pretrained(out / "text" / "final"), outputs.load_tokenizer(out)
    fetch, schedule = growing_pool.shard_fetcher(images), Schedule.from_config(unet.SCHEDULER)
    count = growing_pool.image_count_ledger(images, folder / "ledger.jsonl", plan.steps)
    sample_batch = unet.unet_batches_from(fetch, count, schedule, plan.batch, tokenize(tokenizer, [""])[0])
    torch.manual_seed(plans.seed)
    net = UNet2DConditionModel.from_pretrained(out / SHIPPED / "unet" / "final")
    report = development_report(folder, schedule, outputs.load_vae(out), text, tokenizer)
    unet.train_unet_on(net, plan, folder, sample_batch, report, text=text).save_pretrained(folder / "final")


class TooFewShardsError(RuntimeError):
    """The pool holds too few images or clips to start."""


def require_clips(train: Stage) -> Stage:
    """Return the stage, started only when all clips exist: their number must not change when it is resumed."""

    def stage(plans: RecipeSettings, out: Path) -> None:
        if growing_pool.count_shards(out / outputs.CLIP_POOL) < CLIP_SHARDS:
            raise TooFewShardsError
        train(plans, out)

    return stage


def development_report(
    folder: Path, schedule: Schedule, vae_model: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer
) -> Callable[[UNet2DConditionModel], Metrics]:
    """Return a report that saves contact sheets of the development prompts and the averaged weights, numbered."""
    sheets = folder / "sheets"
    sheets.mkdir(parents=True, exist_ok=True)
    size = (1, LATENT_CHANNELS, unet.CELLS, unet.CELLS)
    noise = torch.cat([independent(seed, [0], size) for seed in DEVELOPMENT_SEEDS])

    @torch.no_grad()
    def report(net: UNet2DConditionModel) -> Metrics:
        number = len(list(folder.glob("average-*")))
        net.save_pretrained(folder / f"average-{number:03d}", variant="fp32")
        spread = {}
        for scale in GUIDANCE_SCALES:
            latents = unet.sample_images(
                net, schedule, text, tokenize(tokenizer, DEVELOPMENT_PROMPTS), tokenize(tokenizer, [""] * len(DEVELOPMENT_PROMPTS)), scale=scale, steps=NUM_INFERENCE_STEPS,
                noise=noise,
            )  # fmt: skip
            images = to_uint8(vae.decode_latents(vae_model, latents / vae_model.config["scaling_factor"]))
            rows = np.split(images, len(DEVELOPMENT_PROMPTS) // COLUMNS)
            save_contact_sheet(sheets / f"{number:03d}-guidance-{scale:g}.png", *rows)
            spread[f"spread {scale:g}"] = float(latents.std())
        return spread

    return report


STAGES: dict[str, tuple[Stage, str]] = {
    "text": (long_text_stage, "text/final"),
    "unet": (long_unet_stage, "unet/final"),
    "control": (image_stages.control_stage, "control/pose.safetensors"),
    "edit": (image_stages.edit_stage, "edit.safetensors"),
    "text_to_video": (require_clips(video_stages.text_to_video_stage), outputs.TEXT_TO_VIDEO),
    "image_to_video": (require_clips(video_stages.image_to_video_stage), video_stages.IMAGE_TO_VIDEO),
    "motion_adapter": (require_clips(layer_stages.motion_adapter_stage), layer_stages.MOTION_ADAPTER),
    "vidrd": (require_clips(layer_stages.vidrd_stage), layer_stages.VIDRD),
    "degraded": (require_clips(video_stages.degraded_stage), video_stages.DEGRADED),
    "space_time": (require_clips(layer_stages.space_time_stage), layer_stages.SPACE_TIME),
    "space_time_motion": (require_clips(layer_stages.space_time_motion_stage), layer_stages.SPACE_TIME_MOTION),
}


def unpack_inputs(out: Path) -> None:
    """Write the shipped weights into `out/shipped`, and what is finished or does not change into `out`."""
    unpack_shipped(out / SHIPPED)
    unpack_shipped(out, weights=FINISHED, laboratory=FINISHED)
    for name in UNCHANGED:
        if not (out / name).exists():
            shutil.copytree(out / SHIPPED / name, out / name)


def start_renderer(out: Path) -> subprocess.Popen[bytes]:
    """Start the process that renders the pools beside the training; it ends with this one."""
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


def render_pool(out: Path, parent: int) -> None:
    """Render the images, then the clips, while the process `parent` runs."""
    encode, tokenizer = growing_pool.open_encoder(out / "vae" / "final"), outputs.load_tokenizer(out)

    def parent_is_alive() -> bool:
        return os.getppid() == parent

    growing_pool.render_image_shards(
        out / outputs.IMAGE_POOL, encode, tokenizer, IMAGE_SHARDS, LONG.seed, parent_is_alive
    )
    growing_pool.render_clip_shards(out / outputs.CLIP_POOL, encode, CLIP_SHARDS, LONG.seed, parent_is_alive)


def run_long_training(plans: RecipeSettings, out: Path, stages: list[str]) -> None:
    """Train these stages in order, without those that have ended."""
    renderer = start_renderer(out)
    try:
        for name, (train, result) in STAGES.items():
            if name in stages and not (out / result).exists():
                _wait_for_shards(partial(train, plans, out), renderer)
    finally:
        renderer.terminate()


def _wait_for_shards(train: Callable[[], None], renderer: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            return train()
        except TooFewShardsError:
            try:
                renderer.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError("the renderer ended before there were enough images: see painter.log") from None


def long_training_main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train, or render the pools."""
    parser = argparse.ArgumentParser(prog="python -m kineograph_lab.recipe.long.training", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of all outputs")
    parser.add_argument("--stages", default=",".join(STAGES), help="stages, comma-separated (default: all)")
    parser.add_argument("--store", action="store_true", help="only store the finished results in the repository")
    parser.add_argument("--paint", type=int, help="only render the pools, while the process with this number runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the training loop has a thread a core, each of which computes alone
    if options.paint is not None:
        render_pool(options.out, options.paint)
        return
    if options.store:
        export_finished(options.out, FINISHED, {"moving_text", *STAGES, *CONTROL_MAPS})
        return
    unpack_inputs(options.out)
    run_long_training(LONG, options.out, options.stages.split(","))


if __name__ == "__main__":
    long_training_main()
