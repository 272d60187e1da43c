"""Rows of equal quality: this library's preset end to end beside 50 steps, on prompts that no tuning has seen.

The quality of both sides is compared by paired differences, whose errors are over prompts, with the lower one-sided
95 % bound of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from kineograph.generation.api import generate
from kineograph.metrics.features import Frames
from kineograph.metrics.statistics import Estimate, mean, mean_difference
from kineograph.models.loading.load import load
from kineograph.models.placement import choose_placement
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab.bench import text2video_zero
from kineograph_lab.bench.frames import time_short
from kineograph_lab.bench.setting import Setting
from kineograph_lab.bench.text2video_zero import load_pipeline
from kineograph_lab.bench.timing import Pair, find_fastest, summarise_pairs, threads, time_pairs, time_run
from kineograph_lab.judge.metrics import parse_prompt
from kineograph_lab.recipe.long.training import DEVELOPMENT_PROMPTS
from kineograph_lab.studies.frame_metrics import clip_score, frame_shifts, global_motion
from kineograph_lab.studies.judges import Judges, load_pocket_judges
from kineograph_lab.studies.splits import combination, fresh_combinations
from kineograph_lab.world.captions import caption_clip, caption_image
from kineograph_lab.world.world import sample_shots

Kind = Literal["image", "video"]

PROMPT_SEED, FIRST_SEED = 20_261_201, 9_000_000  # of the prompts, and of their videos
FRAMES: Mapping[Kind, int] = {"image": 8, "video": 16}
QUICK_FRAMES, QUICK_STEPS, BASELINE_STEPS = 2, 7, 50
PAN = -12 / 512  # motion of the content against Text2Video-Zero's camera, in frame widths a frame
MARGIN = -3.0  # points: least lower bound of a difference for equal quality


class QualityCase(NamedTuple):
    """A prompt, its number and a seed of a video."""

    number: int
    prompt: str
    seed: int


def compare_quality(kind: Kind, setting: Setting) -> dict[str, Any]:
    """Return a row of a warm `generate` with the preset beside 50 steps of guidance 7.5 by DDIM.

    kind: "image", Text2Video-Zero with the image model, beside diffusers' pipeline at its fastest; or "video", the video
    model, whose layers diffusers cannot load: beside the same model by torch.
    """
    judges, frames = load_pocket_judges(), QUICK_FRAMES if setting.quick else FRAMES[kind]
    steps = QUICK_STEPS if setting.quick else BASELINE_STEPS
    ours = _make_ours(kind, frames, setting)
    theirs, tried = (_make_pipeline if kind == "image" else _make_baseline)(frames, steps, setting)
    cases = list(list_cases(kind, setting.prompts, setting.seeds))
    ours(cases[0]), theirs(cases[0])  # converts and warms up
    pairs, rows, done = list[Pair](), list[tuple[dict[str, float], dict[str, float]]](), list[QualityCase]()
    for case in cases:
        if setting.is_over and done:
            break
        videos: dict[str, Frames] = {}
        own, other = (partial(_keep, videos, name, make, case) for name, make in (("ours", ours), ("theirs", theirs)))
        swapped = case.number % 2 == 1  # the side that starts alternates
        found = time_pairs(*((other, own) if swapped else (own, other)), 1)
        pairs += [Pair(*reversed(each)) if swapped else each for each in found]
        judged = {name: judge_video(judges, kind, case.prompt, video) for name, video in videos.items()}
        rows.append((judged["ours"], judged["theirs"]))
        done.append(case)
        setting.log(f"{len(done)} of {len(cases)}: {pairs[-1].seconds:.2f} s, theirs {pairs[-1].their_seconds:.2f} s")
    quality = compare_measures(rows, [case.number for case in done])
    bounds = [each["lower_bound"] for each in quality.values()]  # None of a single prompt
    return {
        **summarise_pairs(pairs),
        "difference": min(each["difference"] for each in quality.values()),
        "quality": quality,
        "equal_quality": all(bound is not None and bound >= MARGIN for bound in bounds),
        "prompts": len({case.number for case in done}),
        "seeds": setting.seeds,
        "preset": setting.preset,
        "dtype": str(choose_placement().dtype).removeprefix("torch."),
        "frames": frames,
        "steps": steps,
        "tried": tried,
    }


def compare_measures(
    rows: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], prompts: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Return, for each measure in points, both means, the paired difference, its error over prompts and lower bound.

    A single prompt has neither error nor bound.
    """
    compared = dict[str, dict[str, Any]]()
    for name in dict.fromkeys(name for ours, _ in rows for name in ours):
        at = [number for number, (ours, theirs) in enumerate(rows) if name in ours and name in theirs]
        ours, theirs = ([100 * rows[number][side][name] for number in at] for side in (0, 1))
        difference: Estimate = mean_difference(ours, theirs, [prompts[number] for number in at])
        compared[name] = {
            "ours": mean(ours).value,
            "theirs": mean(theirs).value,
            "difference": difference.value,
            "error": difference.error if difference.clusters > 1 else None,
            "lower_bound": difference.lower_bound() if difference.clusters > 1 else None,
        }
    return compared


def judge_video(judges: Judges, kind: Kind, prompt: str, frames: Frames) -> dict[str, float]:
    """Return shares from 0 to 1 of what a video should show, CLIP-T, and the similarity of later frames to the first.

    The motion is that of the subject; in a video of the image model that of the camera: 1 less the relative error of what
    Text2Video-Zero is asked for.
    """
    expected, found = parse_prompt(prompt), judges.classify(frames)
    labels = {"subject": found.subjects, "colour": found.colours, "scene": found.scenes}
    row = {
        name: float(np.mean([word == expected[name] for word in words]))
        for name, words in labels.items()
        if name in expected
    }
    if kind == "image":
        moved = global_motion(frames, frame_shifts(frames))
        row["motion"] = max(0.0, 1 - float(np.hypot(moved["right"] - PAN, moved["down"] - PAN) / np.hypot(PAN, PAN)))
    elif "motion" in expected:
        row["motion"] = float(judges.classify_motion(frames) == expected["motion"])
    row["CLIP-T"] = clip_score(judges.text_similarity(frames, prompt)) / 100
    return {**row, "similarity": float((found.identities[1:] @ found.identities[0]).mean())}


def list_cases(kind: Kind, prompts: int, seeds: int) -> Iterator[QualityCase]:
    """Yield the first prompts of an endless list, each with all its seeds.

    Subjects in colours and scenes that training never showed; neither of the development prompts nor of the
    combinations that are kept for the studies' test split.
    """
    for number, prompt in enumerate(islice(_fresh_prompts(kind), prompts)):
        yield from (QualityCase(number, prompt, FIRST_SEED + number + 100_000 * turn) for turn in range(seeds))


def _fresh_prompts(kind: Kind) -> Iterator[str]:
    rng, used = np.random.default_rng(PROMPT_SEED), {*DEVELOPMENT_PROMPTS}
    caption = caption_image if kind == "image" else caption_clip
    for shot in sample_shots(PROMPT_SEED, split="held_out"):
        if len(shot.things) > 1 or shot.camera != "still" or combination(shot) in fresh_combinations():
            continue
        prompt = caption(shot, rng)
        if prompt not in used:
            used.add(prompt)
            yield prompt


def _model_name(kind: Kind) -> str:
    return "pocket" if kind == "image" else "pocket-video"


def _make_ours(kind: Kind, frames: int, setting: Setting) -> Callable[[QualityCase], Frames]:
    model = load(_model_name(kind))
    options = {"num_inference_steps": QUICK_STEPS} if setting.quick else {"preset": setting.preset}

    def make(case: QualityCase) -> Frames:
        return generate(
            model, case.prompt, seed=case.seed, num_frames=frames, engine=setting.engine, **options
        ).frames  # fmt: skip

    return make


def _make_baseline(
    frames: int, steps: int, setting: Setting
) -> tuple[Callable[[QualityCase], Frames], list[dict[str, Any]]]:
    model = load(_model_name("video"))
    options = {"num_inference_steps": steps} if setting.quick else {"preset": "paper"}

    def make(case: QualityCase) -> Frames:
        return generate(model, case.prompt, seed=case.seed, num_frames=frames, engine="torch", **options).frames

    return make, []


def _make_pipeline(
    frames: int, steps: int, setting: Setting
) -> tuple[Callable[[QualityCase], Frames], list[dict[str, Any]]]:
    """Return diffusers' pipeline with its own defaults, in the fastest dtype, attention and number of threads."""
    dtypes = ("float32", "bfloat16")
    trials = find_fastest(lambda variant: time_short(text2video_zero.SIDES, POCKET, variant, frames), dtypes)
    variant = trials[0].variant
    pipe = load_pipeline(POCKET, variant)
    setting.log(f"diffusers is fastest with {variant}")
    early = {"t0": steps - 6, "t1": steps - 3}  # 44 and 47 of 50 steps, its defaults

    def make(case: QualityCase) -> Frames:
        with threads(variant.threads):
            images = pipe(
                case.prompt, video_length=frames, num_inference_steps=steps, output_type="np",
                generator=torch.Generator().manual_seed(case.seed), **early,
            ).images  # fmt: skip
        return (np.asarray(images) * 255).round().astype(np.uint8)

    return make, [{**trial.variant._asdict(), "seconds": trial.seconds} for trial in trials]


def _keep(videos: dict[str, Frames], name: str, make: Callable[[QualityCase], Frames], case: QualityCase) -> float:
    """Make a video, keep its frames under a name and return its seconds."""

    def run() -> None:
        videos[name] = make(case)

    return time_run(run)
