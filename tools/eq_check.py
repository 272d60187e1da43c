"""Hash what the recipe makes."""

import hashlib
import json
import os
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch

os.cpu_count = lambda: 1
from kineograph_lab.judge import geometry, metrics, training
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.recipe import pool, run
from kineograph_lab.recipe.export import export_image_models, export_video_models
from kineograph_lab.recipe.image import unet
from kineograph_lab.recipe.long import growing_pool, text_encoder
from kineograph_lab.recipe.loop import StagePlan
from kineograph_lab.recipe.settings import RecipeSettings
from kineograph_lab.recipe.video import degraded, samples
from kineograph_lab.world import captions, edits, truth, unseen, unseen_subjects, wide, world
from kineograph_lab.world import unseen as unseen_styles

OUT = {}


def h(x, m=None):
    top = m is None
    m = m or hashlib.sha256()
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().contiguous().numpy()
    if isinstance(x, np.ndarray):
        m.update(str(x.dtype).encode() + str(x.shape).encode() + np.ascontiguousarray(x).tobytes())
    elif isinstance(x, dict):
        for k in x:
            m.update(str(k).encode())
            h(x[k], m)
    elif isinstance(x, (list, tuple)):
        m.update(b"(")
        for each in x:
            h(each, m)
    else:
        m.update(repr(x).replace("Thing(", "Subject(").encode())
    return m.hexdigest()[:16] if top else None


def put(name, *x):
    OUT[name] = h(x)


def rng(s=0):
    return np.random.default_rng(s)


def world_part():
    shots = (
        list(islice(world.sample_shots(3), 12))
        + list(islice(world.sample_shots(4, split="held_out"), 6))
        + [wide.sample_wide_shot(rng(k)) for k in range(12)]
    )
    put("shots", shots)
    put("render", [world.render(s, t) for s in shots for t in (0.0, 0.3)])
    put("clip", world.render_clip(shots[0], 4), world.render_clip(shots[20], 4, 12.0))
    r = rng(1)
    put("captions", [(captions.caption_image(s, r), captions.caption_clip(s, r)) for s in shots for _ in range(5)])
    put(
        "wide",
        [
            (
                tuple(wide.caption_wide_image(s, r)),
                tuple(wide.caption_wide_clip(s, r)),
                wide.wide_image_text(s, r),
                wide.wide_clip_text(s, r),
                wide.wide_image_texts(s, r, 3),
            )
            for s in shots
            for _ in range(20)
        ],
    )
    put("widefilm", [wide.sample_wide_clip_shot(rng(k)) for k in range(10)], wide.wide_vocabulary())
    put(
        "edits",
        [edits.edit_family(rng(k), "train") for k in range(3)],
        [edits.wide_edit_family(rng(k), "held_out") for k in range(3)],
        list(edits.instruction_words()),
    )
    put(
        "truth",
        [tuple(truth.ground_truth(s, 0.1, fps=6)) for s in shots],
        [(f(world.render(s), truth.ground_truth(s))) for s in shots[:4] for f in truth.CONTROL_MAPS.values()],
        list(truth.CONTROL_MAPS),
    )
    put(
        "unseen",
        [
            unseen.render_unseen_clip(unseen.unseen_subject_renderer(n), shots[0], 2)
            for n in unseen_subjects.UNSEEN_SUBJECTS
        ],
        [unseen.render_unseen_clip(unseen.unseen_style_renderer(n), shots[1], 2) for n in unseen_styles.UNSEEN_STYLES],
        list(unseen_subjects.UNSEEN_SUBJECTS),
        list(unseen_styles.UNSEEN_STYLES),
    )

    put("growing", [growing_pool.wide_image(rng(k)) for k in range(6)])
    put("texts", [tuple(text_encoder.sample_text(rng(k), "train")) for k in range(40)])
    put("family", training.individual_family(rng(2), "train"), training.motion_clip(rng(2), "held_out"))
    put(
        "pool",
        pool.random_image(rng(3), "train"),
        [pool.subject_cells(pool.random_image(rng(k), "train")[1], 16) for k in range(4)],
    )
    put("asks", [metrics.parse_prompt(captions.caption_clip(s, r)) for s in shots])
    judge = load_judge()
    frames = world.render_clip(shots[0], 16)
    put(
        "judge",
        tuple(judge.classify(frames)),
        judge.classify_motion(frames),
        tuple(geometry.load_geometry_network().predict(frames)),
    )
    put("extract", tuple(metrics.judge_extractor(judge).forward(frames)))
    put("degraded", degraded.degrade_frames(frames[:3]))
    net = torch.nn.Module()


def stages_part(out):
    P = lambda size: StagePlan(minutes=1, steps=1, lr=1e-3, batch=size)
    small = RecipeSettings(
        num_images=12,
        num_held_out_images=64,
        num_held_out_pairs=4,
        num_families=6,
        num_motion_clips=2,
        num_edit_families=2,
        num_judge_held_out=2,
        num_clips=2,
        num_stills=4,
        num_held_out_clips=2,
        num_report_videos=1,
        num_clip_captions=16,
        num_degraded_clips=2,
        num_decoder_clips=2,
        num_panned_clips=2,
    )
    plans = {
        "geometry": 4,
        "vae": 4,
        "text": 2,
        "clip": 2,
        "unet": 2,
        "control": 2,
        "edit": 2,
        "image_classifier": 16,
        "motion_classifier": 2,
    }
    plans |= {
        n: 2
        for n in (
            "moving_text",
            "text_to_video",
            "ablation",
            "image_reading",
            "image_to_video",
            "degraded",
            "vidrd",
            "temporal_decoder",
            "motion_adapter",
            "space_time",
            "vidrd_ablation",
        )
    }
    settings = small.model_copy(update={n: P(s) for n, s in plans.items()})
    unet.STEPS = 2
    samples.STEPS = 2
    torch.set_num_threads(1)
    run.run_stages(list(run.STAGES), settings, out)
    export_image_models(settings, out, out / "weights", out / "weights_lab")
    export_video_models(settings, out, out / "weights", out / "weights_lab")
    for f in sorted(out.rglob("*")):
        if f.is_file() and f.name not in ("log.jsonl",):
            if f.name == "checkpoint.pt":
                k = torch.load(f, weights_only=True)
                k.pop("seconds")
                put("F " + str(f.relative_to(out)), k)
            else:
                put("F " + str(f.relative_to(out)), hashlib.sha256(f.read_bytes()).hexdigest())


if __name__ == "__main__":
    world_part()
    if "stages" in sys.argv:
        with tempfile.TemporaryDirectory() as t:
            stages_part(Path(t))
    Path(sys.argv[1]).write_text(json.dumps(OUT, indent=0))
