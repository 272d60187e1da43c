"""Still-Moving's studies: unseen items, and whole studies by the library's own functions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from generation.test_animate import CONFIG
from models.conftest import sd

from kineograph.errors import InputWarning
from kineograph.generation.api import generate
from kineograph.methods.still_moving import attach
from kineograph.metrics import optical_flow
from kineograph.models.loading.load import load
from kineograph.models.temporal.adapters import MOTION_ADAPTER
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise import default_video_settings, inject_customised, with_changes
from kineograph_lab.models import SPACE_TIME
from kineograph_lab.recipe.video.temporal_layers import SPACE_TIME_CONFIG as LUMIERE
from kineograph_lab.studies import reproduce
from kineograph_lab.studies.judges import load_pocket_judges
from kineograph_lab.studies.protocol import FIRST_SEED, moving_cases
from kineograph_lab.studies.still_moving import baselines, customised_models, motion_scales
from kineograph_lab.studies.still_moving.items import (
    MOVING,
    content,
    content_and_motion,
    customisation_cases,
    held_out_case,
    item_of,
    items,
    write_reference_images,
)
from kineograph_lab.studies.study import run_study, summarise_study
from kineograph_lab.world import unseen, world
from kineograph_lab.world.unseen import UNSEEN_STYLES
from kineograph_lab.world.unseen_subjects import UNSEEN_SUBJECTS

STAMP = {"protocol": "test", "commit": "none"}
LOOP = {"max_train_steps": 1, "train_batch_size": 1, "lr_warmup_steps": 0}
ONE_STEP = {
    "image": {"prior_pictures": 1, "drawing": {"num_inference_steps": 1}, "training": LOOP},
    "stills": 1,
    "natural_videos": 1,
    "num_frames": 2,
    "drawing": {"num_inference_steps": 1},
    "training": LOOP,
}


@pytest.fixture(scope="module")
def plain_video():
    return load("pocket-video", dtype="float32")


@pytest.fixture(scope="module")
def video():
    """A tiny video model of the judges' image size, with an untrained motion adapter."""
    torch.manual_seed(0)
    levels = {"block_out_channels": (4,) * 4, "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    pipeline = sd()
    pipeline.unet.register_to_config(sample_size=16)
    pipeline.vae = AutoencoderKL(
        **levels, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4
    )
    model = load(pipeline)
    layers = TemporalLayers(model.net.image_unet, CONFIG)
    net = attach(VideoUNet(model.net.image_unet, layers), motion=MOTION_ADAPTER).requires_grad_(False)
    return replace(model, name="tiny", net=net)


@pytest.fixture(scope="module")
def judges():
    return load_pocket_judges()


@pytest.fixture(autouse=True)
def _short_videos_and_trainings(monkeypatch, tmp_path):
    for study in (baselines, motion_scales):
        monkeypatch.setattr(study, "FRAMES", 2)
    monkeypatch.setattr(customised_models, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(customised_models, "SHARES", (0.5, 0.9))
    monkeypatch.setattr(
        customised_models,
        "default_video_settings",
        lambda video, kind: with_changes(default_video_settings(video, kind), ONE_STEP),
    )


def test_items_are_five_of_each_kind_with_ten_prompts_of_all_motions(plain_video) -> None:
    assert [item.kind for item in items()] == ["subject", "style"] * 5
    every = customisation_cases(1000)
    assert len(every) == 100 == len({case.prompt for case in every}) and customisation_cases(12) == every[:12]
    for item in items():
        own = [case for case in every if item_of(case) is item]
        assert [case.motion for case in own] == list(MOVING) and len({case.scene for case in own}) == len(world.SCENES)
        assert all(item.phrase in case.prompt for case in own) and item_of(held_out_case(item)) is item
        assert held_out_case(item).prompt not in {case.prompt for case in own}
        if item.kind == "style":
            assert not {case.subject for case in own} & {reference.shot.things[0].kind for reference in item.references}
    assert [case.seed for case in every] == [FIRST_SEED + number for number in range(100)]
    plain_video.prompt([case.prompt for case in every])
    assert not {word for case in every for word in plain_video.unknown_words(content_and_motion(case))}


def test_case_captions_with_and_without_the_customised_word() -> None:
    subject, style = customisation_cases(1000)[20], customisation_cases(1000)[10]
    assert subject.prompt.replace("sks ", "") == content_and_motion(subject)
    assert style.prompt == f"{content_and_motion(style)} in neon style"
    assert (
        content_and_motion(subject).startswith("a fish moving to the left ")
        and content(subject) == "a fish in the desert"
    )


def test_unseen_subjects_and_styles_differ_from_the_worlds_and_move_alike() -> None:
    shot = customisation_cases(1)[0].shot
    seen = [world.render(shot), *(unseen.unseen_subject_renderer(name)(shot, 0.0) for name in UNSEEN_SUBJECTS)]
    seen += [unseen.unseen_style_renderer(name)(shot, 0.0) for name in UNSEEN_STYLES]
    assert all(each.shape == (128, 128, 3) and each.dtype == np.uint8 for each in seen)
    apart = [np.abs(a.astype(int) - b).mean() for k, a in enumerate(seen) for b in seen[:k]]
    assert min(apart) > 3
    assert {kind for kind, _ in UNSEEN_SUBJECTS.values()} <= set(world.SUBJECTS) and not set(UNSEEN_SUBJECTS) & set(
        world.SUBJECTS
    )
    assert not set(UNSEEN_STYLES) & set(world.STYLES)
    clip = unseen.render_unseen_clip(unseen.unseen_subject_renderer("fox"), shot, 3, 8.0)
    assert np.array_equal(clip[1], unseen.unseen_subject_renderer("fox")(shot, 0.0)) and not np.array_equal(
        clip[0], clip[2]
    )


def test_judge_classifies_the_motion_of_unseen_subjects(judges) -> None:
    turned = [customisation_cases(1000)[10 * k + 3 * k % 10] for k in range(0, 10, 2)]
    right = [
        judges.classify_motion(unseen.render_unseen_clip(item_of(case).render, case.shot)) == case.motion
        for case in turned
    ]
    assert np.mean(right) > 0.7


def test_reference_images_are_written_with_a_styles_captions(tmp_path) -> None:
    subject, style = items()[:2]
    assert sorted(each.name for each in write_reference_images(subject, tmp_path / "a").iterdir()) == [
        f"{k}.png" for k in range(5)
    ]
    texts = sorted(write_reference_images(style, tmp_path / "b").glob("*.txt"))
    assert [each.read_text() for each in texts] == [reference.caption for reference in style.references]


@pytest.mark.slow
def test_customisation_study(video, judges, tmp_path) -> None:
    study = baselines.customisation_study(video, judges, 1, 1)
    records = {record["arm"]: record for record in run_study(study, tmp_path, STAMP)}
    assert list(records) == list(study.arms)
    home = tmp_path / "runs" / "tiny" / "owl"
    assert {each.name for each in home.iterdir()} == {"photos", "ours", "interleaved", "interpolation.json"}
    assert (home / "ours" / "adapter.safetensors").is_file() and study.analysis.name == "still-moving-tiny"
    chosen = json.loads((home / "interpolation.json").read_text())
    assert chosen["share"] in (0.5, 0.9) and chosen["chosen_for"]["sampling"] == {"steps": 1, "scale": baselines.SCALE}
    true = records[baselines.RENDERING]
    assert all(true["CLIP-I"] > record["CLIP-I"] + 10 for arm, record in records.items() if arm != baselines.RENDERING)
    assert true["individual"] > 0.5 and "CLIP-I, styles" not in true and true["CLIP-I, subjects"] == true["CLIP-I"]
    summary = summarise_study(study.analysis, [*records.values()], tmp_path)
    assert {tuple(cells) for cells in summary.table.values()} == {tuple(study.arms)}
    assert len(summary.claims) == 8 and {claim.clusters for claim in summary.claims} == {1}


@pytest.mark.slow
def test_customisation_ablation_shares_the_image_network(video, judges, tmp_path) -> None:
    study = baselines.customisation_ablation(video, judges, 1, 1)
    assert list(study.arms) == ["ours", "no motion adapter", "all weights learn", "no natural videos", "video model"]
    few = {name: study.arms[name] for name in ("no motion adapter", "all weights learn")}
    records = list(run_study(study._replace(cases=customisation_cases(11)[10:], arms=few), tmp_path, STAMP))
    assert all({"CLIP-I, styles", "moved, styles"} <= set(record) for record in records)
    home = tmp_path / "runs" / "tiny" / "neon"
    ours, other = (home / name / "image" / "final" for name in ("ours", "no-motion-adapter"))
    assert all(file.read_bytes() == (other / file.name).read_bytes() for file in ours.iterdir())
    whole = load(home / "all-weights-learn" / "whole", dtype="float32")
    assert whole.net.motion_adapter is None
    prompt = customisation_cases(11)[10].prompt
    read = [model.prompt([prompt]).tokens for model in (whole, inject_customised(video, ours), video)]
    assert torch.allclose(read[0], read[1], atol=1e-5) and not torch.equal(read[0], read[2])


@pytest.mark.slow
def test_motion_scale_study(video, judges, tmp_path) -> None:
    study = motion_scales.motion_scale_study(video, judges, 2, 1)
    assert [case.prompt for case in study.cases] == [case.prompt for case in moving_cases(2)]
    records = list(run_study(study, tmp_path, STAMP))
    moved = {record["arm"]: record["moved"] for record in records}
    assert list(moved) == [f"scale {scale:g}" for scale in motion_scales.SCALES]
    assert len(set(moved.values())) == 1, "an untrained adapter changes nothing"
    assert not any(claim.holds for claim in motion_scales._state_claims(records))


def test_motion_scale_claims_hold_for_falling_motion() -> None:
    records = [
        {"arm": f"scale {scale:g}", "case": case, "moved": (1.02 - scale) * (1 + 0.1 * case) + 0.001 * case**2}
        for scale in motion_scales.SCALES
        for case in range(6)
    ]
    assert all(claim.holds for claim in motion_scales._state_claims(records))


def test_studies_are_left_out_without_a_motion_adapter(
    plain_video, judges, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"still-moving": reproduce.PAPERS["still-moving"][:3]}
    monkeypatch.setattr(reproduce, "PAPERS", first)
    model = replace(plain_video, net=VideoUNet(plain_video.net.image_unet, plain_video.net.temporal))
    with pytest.warns(InputWarning, match="is not measured") as summary:
        records = reproduce.reproduce("still-moving", model, judges, cases=1, out=tmp_path)
    assert not records.studies and (tmp_path / "still-moving.md").exists()
    assert len(summary) == 3 and all("has no motion adapter" in str(each.message) for each in summary)


@pytest.mark.slow
def test_motion_scale_study_of_the_space_time_model(plain_video, judges) -> None:
    study = motion_scales.space_time_motion_scale_study(plain_video, judges, 100, 1)
    assert study.analysis.name == motion_scales.SPACE_TIME_ANALYSIS.name == "motion-scale-pocket-space-time"
    assert study.analysis.title == motion_scales.SPACE_TIME_ANALYSIS.title.replace("20", "40")
    assert len(study.cases) == motion_scales.MAX_SPACE_TIME_CASES


@pytest.mark.slow
def test_space_time_model_has_a_motion_adapter(plain_video) -> None:
    model = load("pocket-space-time", dtype="float32")
    trained_before = LUMIERE.model_copy(update={"clean_frames": False})
    assert model.temporal == trained_before and model.net.motion_adapter is not None
    assert sum(file.stat().st_size for file in (SPACE_TIME).rglob("*.safetensors")) <= 8e6
    still, in_motion = (
        generate(
            model, "a red fish swimming to the right", num_frames=8, num_inference_steps=8, seed=1, motion_strength=k
        )
        for k in (0.0, 1.0)
    )
    motion = [optical_flow.motion_per_frame(each.frames).mean() for each in (still, in_motion)]
    assert motion[0] < 0.75 * motion[1]
