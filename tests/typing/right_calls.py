"""Calls that type checkers accept; `test_calls.py` runs mypy on them, and nothing runs them."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch

import kineograph as kg
from kineograph.generation.run import Progress


def show(progress: Progress) -> None:
    print(f"{progress.done} of {progress.total}, at sigma {progress.step.sigma}")


model = kg.load()
editor = kg.load("pocket-edit", device="cpu", dtype="float32", local_files_only=True)
fox = kg.load("pocket-video", adapter="pocket-fox", revision="main", variant="fp16", clip_skip=1)
customised = kg.load(
    Path("model.safetensors"),
    config="folder",
    prediction_type="v_prediction",
    lora=[("style.safetensors", 0.8), "details.safetensors"],
    controlnet={"canny": Path("canny"), "depth": "depth"},
    textual_inversion=["word.pt"],
    cache_dir=Path("cache"),
    token=None,
)
assert_type(model, kg.Model)

assert_type(kg.generate(model, "a red fish"), kg.Video)
assert_type(kg.generate(model, {0: "a calm sea", 4: "a stormy sea"}), kg.Video)
kg.generate(model, ["a red fish", "a blue cat"], prompt_at={4: "a sea"})
assert_type(kg.generate(model, ["a red fish", "a blue cat"], batch_size=2, seed=7), list[kg.Video])
kg.generate(model, "a red fish", num_frames=8, seed=None, camera="pan:12,0", smooth_background=0.6, noise="shared")
kg.generate(model, "a red fish", num_inference_steps=20, guidance_scale=5, fps=8, sampler="lcm", on_step=show)
kg.generate(model, "a red fish", image="fish.png", first_frame="pinned", image_scale=0.5)
kg.generate(editor, "make it snow", video=Path("fish.mp4"), image_guidance_scale=1.2)
together = kg.generate(
    model,
    "a sks cat rising in the desert",
    video_model=fox,
    video_prompt="a cat rising",
    refine_at=(0.9, 0.5),
    video_steps=4,
    low_pass=0.5,
    renoise="same-noise",
    drift_correction=True,
    control={"canny": "in.mp4", "depth": Path("depth.mp4")},
    controlnet_conditioning_scale=0.8,
    clips=3,
    then=("a sks cat in a forest",),
    clip_overlap=3,
    clip_noise_order="kept",
    keep_clips="clips",
    window=16,
    overlap=4,
    motion_strength=0.5,
)
assert_type(together, kg.Video)


def watch(watched: kg.Model, number: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors


assert_type(kg.generate("pocket", "a red fish", video_model="pocket-video"), kg.Video)
assert_type(kg.generate(model, "a red fish", num_videos_per_prompt=2, progress=False), list[kg.Video])
kg.generate(model, ["a red fish", "a cat"], seed=(3, 9), negative_prompt=("blurry", ""), generator=None)
kg.generate(model, prompt_embeds=torch.zeros(1, 77, 768), latents=torch.zeros(1, 8, 4, 64, 64)).save("fish.mp4")
kg.generate(model, "a red fish", output_type="np", callback_on_step_end=watch, generator=torch.Generator()).mean()
assert_type(model.to("cuda", torch.float16).load_lora_weights("style.safetensors", 0.5).unload_lora_weights(), kg.Model)

assert_type(kg.animate(model, "fish.png", "a fish swimming", first_frame="pinned"), kg.Video)
assert_type(kg.animate(model, Path("fish.png"), ["a fish", "a cat"], video_model=fox), list[kg.Video])
assert_type(kg.edit(editor, "fish.mp4", "make it snow", image_guidance_scale=1.5, noise="independent"), kg.Video)
assert_type(kg.edit(editor, Path("fish.mp4"), ["make it snow", "make it night"], on_step=show), list[kg.Video])
assert_type(kg.replay("fish.mp4", model=model, video_model=None), kg.Video)

# Options may be kept in a dictionary of their own.
few: kg.GenerateOptions = {"num_frames": 4, "num_inference_steps": 2}
kg.generate(model, "a red fish", **few)
small: kg.AnimateOptions = {"height": 64, "width": 64}
kg.animate(model, "fish.png", "a fish", **small)
on_cpu: kg.LoadOptions = {"device": "cpu"}
kg.load("pocket", **on_cpu)
