# ruff: noqa: F811 (a fixture that comes from another file)
"""`kineograph train`: videos and images in stages, resumed after a kill, its data, its estimate and its errors."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from models.conftest import sd_folder  # noqa: F401
from numbered import movie
from safetensors.torch import load_file
from tiny_training import begin
from tiny_video_training import LAYERS, LOOP, ONE, STAGES, both, films, pictures, told, train_until_killed, trained
from torch import Tensor

from kineograph import noise
from kineograph.cli import main
from kineograph.cli.commands import build_command
from kineograph.errors import InputError
from kineograph.media.video import open_video
from kineograph.methods import videocrafter
from kineograph.models.conditioning.condition import Condition
from kineograph.models.loading.load import load
from kineograph.models.unet.forward import call_directly
from kineograph.training import TrainingSettings, load_settings, load_weights
from kineograph.training.temporal_layers import StageProgress, VideoTrainingSettings, prepare_training, train
from kineograph.training.temporal_layers import run as running
from kineograph.training.temporal_layers.batches import (
    StepKind,
    VideoBatch,
    denoising_loss,
    step_kind,
    timestep_sampler,
    truncate_caption,
)
from kineograph.training.temporal_layers.dry_run import activation_bytes
from kineograph.training.temporal_layers.initial_model import call_checkpointed, match_parameters
from kineograph.training.temporal_layers.latent_cache import latent_encoder
from kineograph.training.temporal_layers.settings import DataSource, LogNormalSigmas, Stage, Validation

EXAMPLE = Path(__file__).parents[3] / "examples" / "train_video.yaml"
Tell = Callable[..., VideoTrainingSettings]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return both(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tell(sd_folder: Path, data: Path, tmp_path: Path) -> Tell:
    """Settings of a tiny training in an empty folder; the first argument names it."""

    def tell(name: str = "out", **given: object) -> VideoTrainingSettings:
        return told(sd_folder, data, tmp_path / name, **given)

    return tell


@pytest.fixture(scope="module")
def whole(
    sd_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VideoTrainingSettings, list[StageProgress]]:
    """A training that nothing interrupts, and its steps."""
    drawn = {"prompts": ["a fish", "a cat"], "num_inference_steps": 2}
    often = LOOP | {"validation_steps": 2}
    settings = told(sd_folder, data, tmp_path_factory.mktemp("whole") / "out", validation=drawn, training=often)
    return settings, trained(settings)


Whole = tuple[VideoTrainingSettings, list[StageProgress]]


def ended(settings: VideoTrainingSettings) -> dict[str, Tensor]:
    """Return the final weights of all stages of a training."""
    stages = sorted(settings.output.glob("stage-*"))
    assert len(stages) == len(settings.stages)
    return {f"{stage.name} {name}": value for stage in stages for name, value in load_weights(stage).items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- a whole training


@pytest.mark.slow
def test_output_files(whole: Whole) -> None:
    settings, steps = whole
    assert [(each.stage, each.progress.step) for each in steps] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
    assert [len(each.samples) for each in steps] == [0, 2, 2, 0, 2]
    video = open_video(steps[-1].samples[0])
    assert video.frames.shape == (4, 16, 24, 3) and video.fps == 10 and video.settings["prompt"] == "a fish"
    assert steps[-1].samples[0].with_suffix(".png").exists()
    lines = [json.loads(line) for line in (settings.output / "stage-1" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3] and {"loss/image", "loss/video"} <= set(lines[0])
    assert not (settings.output / "skipped.jsonl").exists()
    final = settings.output / "final"
    config = json.loads((final / "temporal" / "config.json").read_text())
    assert (config["noise_ratio"], config["num_frames"], config["frame_rate"]) == (1.0, 4, True)
    layers = load_file(final / "temporal" / "diffusion_pytorch_model.safetensors")
    came_to = load_weights(settings.output / "stage-2")
    assert all(torch.equal(value, came_to[f"temporal.{name}"]) for name, value in layers.items())


def test_the_trained_model_is_loaded(whole: Whole) -> None:
    settings, _ = whole
    model = load(settings.output / "final", dtype="float32", device="cpu")
    assert model.temporal is not None and model.temporal.num_frames == 4
    came_to = load_weights(settings.output / "stage-2")
    now = model.net.state_dict()
    assert all(torch.equal(now[name], value) for name, value in came_to.items())


def test_only_the_named_parameters_are_trained(tell: Tell) -> None:
    settings = tell(frozen=["temporal.fps.*", "image_unet.*to_q*"], stages=ONE)
    start = prepare_training(settings)
    before = {name: weight.detach().clone() for name, weight in start.model.net.named_parameters()}
    list(train(start))
    after = dict(start.model.net.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    meant = {
        name
        for name in before
        if (name.startswith("temporal.") and not name.startswith("temporal.fps."))
        or (name.startswith("image_unet.") and "attn2" in name and "to_q" not in name)
    }
    assert changed <= meant and set(load_weights(settings.output / "stage-1")) == meant
    assert any("attn2.to_v" in name for name in changed) and any("proj_out" in name for name in changed)


@pytest.mark.slow
def test_a_stage_may_be_added(whole: Whole, tell: Tell) -> None:
    """The weights are those of a training that had it from the start; finished stages are not repeated."""
    trained(tell(stages=STAGES[:1]))
    assert [each.stage for each in trained(tell())] == [2, 2]
    assert equal(ended(whole[0]), ended(tell()))
    assert trained(tell()) == []


def test_a_stage_starts_from_the_averages_of_the_one_before(whole: Whole) -> None:
    settings, _ = whole
    before, after = (load_weights(settings.output / f"stage-{number}") for number in (1, 2))
    far = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < far <= 2 * LOOP["learning_rate"]  # of two steps of AdamW


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(whole: Whole, tell: Tell) -> None:
    often = LOOP | {"checkpointing_steps": 1}
    process = begin(train_until_killed, tell(training=often).model_dump(mode="json"))
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tell().output / "final").exists()
    assert {each.stage for each in trained(tell())} == {2}
    assert equal(ended(whole[0]), ended(tell()))
    files = [each.output / "final" / "unet" / "diffusion_pytorch_model.safetensors" for each in (whole[0], tell())]
    assert equal(*map(load_file, files))


@pytest.mark.slow
def test_an_interrupted_training_resumes_to_the_same_weights(whole: Whole, tell: Tell) -> None:
    for each in train(prepare_training(tell())):
        if each.progress.step == 2:
            break
    assert [(each.stage, each.progress.step) for each in trained(tell())] == [(1, 3), (2, 1), (2, 2)]
    assert equal(ended(whole[0]), ended(tell()))


# -- batches


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_steps_of_images_are_spread_evenly(share: float) -> None:
    turns = [step_kind(7, share, step) for step in range(100)]
    counts = {"video": 0, "image": 0}
    for each in turns:
        assert each == StepKind(each.kind, counts[each.kind])
        counts[each.kind] += 1
    assert counts["image"] == pytest.approx(100 * share, abs=1)
    assert share in (0, 1) or {step_kind(seed, share, 0).kind for seed in range(30)} == {"video", "image"}


def load_steps(settings: VideoTrainingSettings, steps: range, part: range | None = None) -> list[VideoBatch]:
    """Load the batches of steps of the first stage, or of each step the samples with these numbers."""
    start = prepare_training(settings)
    stage = start.stages[0]
    load = running.stage_batch_loader(stage, latent_encoder(start.model), {})
    part = part or range(stage.batch_size)
    firsts = [step * stage.batch_size for step in steps]
    return [load(step, range(first + part.start, first + part.stop)) for step, first in zip(steps, firsts, strict=True)]


def test_a_step_has_as_many_images_as_frames(tell: Tell) -> None:
    drawn = load_steps(tell(), range(4))
    shapes = sorted(each.x0.shape for each in drawn)
    assert shapes == [(2, 3, 4, 8, 8), (2, 3, 4, 8, 8), (6, 1, 4, 8, 8), (6, 1, 4, 8, 8)]
    for each in drawn:
        assert len(each.tokens) == len(each.timesteps) == len(each.embedding) == len(each.x0)
        assert set(each.embedding[:, -1].tolist()) <= ({5.0, 10.0} if each.x0.shape[1] > 1 else {1.0})


def test_batches_do_not_depend_on_how_a_step_is_divided(tell: Tell) -> None:
    settings, steps = tell(training=LOOP | {"train_batch_size": 4}), range(2)
    shares = [load_steps(settings, steps, part) for part in (range(4), range(1), range(1, 4))]
    for whole, first, rest in zip(*shares, strict=True):
        for name in ("x0", "embedding", "timesteps", "dropped"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(rest, name)]))
        assert torch.allclose(whole.tokens, torch.cat([first.tokens, rest.tokens]), atol=1e-5)


def test_captions_are_left_out_as_often_as_set(tell: Tell) -> None:
    drawn = load_steps(tell(caption_dropout=0.25, image_share=1.0, videos=[]), range(12))
    blank = prepare_training(tell()).model.prompt([""]).tokens[0]
    left_out = torch.cat([(each.tokens - blank).abs().amax((1, 2)) < 1e-5 for each in drawn])
    assert torch.equal(left_out, torch.cat([each.dropped for each in drawn]))
    assert 0.1 < left_out.float().mean() < 0.4  # of 72


def test_sigmas_are_log_normal_within_the_schedule(tell: Tell) -> None:
    schedule = prepare_training(tell()).model.schedule
    rng = np.random.default_rng(0)
    table = np.array(schedule.sigmas)
    drawn = np.log(table[timestep_sampler(LogNormalSigmas(mean=0.5, spread=0.6), schedule)(rng, 20_000)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.02) and drawn.std() == pytest.approx(0.6, abs=0.02)
    far = timestep_sampler(LogNormalSigmas(mean=9.0, spread=0.1), schedule)(rng, 10)
    assert set(far.tolist()) == {len(table) - 1}
    every = timestep_sampler("uniform", schedule)(rng, 20_000)
    assert every.mean() == pytest.approx((len(table) - 1) / 2, rel=0.02) and every.max() == len(table) - 1


def test_the_loss_is_videocrafters_with_shared_noise(tell: Tell) -> None:
    settings = tell()
    start = prepare_training(settings)
    loss = denoising_loss(start.model, 3, 1.0)
    for batch in load_steps(settings, range(2)):
        (kind,) = came = loss(start.model.net, batch, 40)
        ratio = 1.0 if kind == "video" else 0.0
        own = torch.cat([noise.partly_shared(ratio, 40 + sample, range(3), (1, 4, 8, 8)) for sample in range(2)])
        own = own if kind == "video" else own.flatten(0, 1)[:, None]
        told_by_hand = Condition(batch.tokens, embedding=batch.embedding)
        each = videocrafter.loss(start.model.net, start.model.schedule, told_by_hand, batch.x0, own, batch.timesteps)
        assert torch.allclose(came[kind], each.mean())


def test_images_give_temporal_layers_no_gradient(tell: Tell) -> None:
    start = prepare_training(tell(layers=LAYERS))
    gradients = {}
    for batch in load_steps(tell(), range(2)):
        ((kind, loss),) = denoising_loss(start.model, 3, 1.0)(start.model.net, batch, 0).items()
        names, kept = zip(*((n, w) for n, w in start.model.net.named_parameters() if w.requires_grad), strict=True)
        found = torch.autograd.grad(loss, kept, allow_unused=True)
        gradients[kind] = {name for name, each in zip(names, found, strict=True) if each is not None}
    assert not [name for name in gradients["image"] if name.startswith("temporal.")] and gradients["image"]
    assert [name for name in gradients["video"] if name.startswith("temporal.")]


@pytest.mark.slow
def test_a_long_caption_is_truncated(tell: Tell) -> None:
    model = prepare_training(tell()).model
    long = " ".join(["fish"] * 40)  # of four tokens each
    assert truncate_caption(model, long) == " ".join(["fish"] * 18)
    assert truncate_caption(model, "a red fish, at sea ") == "a red fish, at sea "
    assert truncate_caption(model, "x" * 100) == ""


def test_sources_are_sampled_by_weight(tell: Tell, tmp_path: Path) -> None:
    pictures(tmp_path / "others", count=1)
    (tmp_path / "others" / "0.txt").write_text("other")
    seen: list[str] = []
    images = [{"source": str(tmp_path / "others"), "weight": 3}, str(tmp_path.parent / "none")]
    images[1] = tell().images[0].source
    start = prepare_training(tell(images=images, image_share=1.0, videos=[]))
    look = running.clip_loaders(start.stages[0], latent_encoder(start.model), {})["image"]
    seen = [look(turn, place, 6).caption for turn in range(20) for place in range(6)]
    assert 0.65 < seen.count("other") / len(seen) < 0.85
    assert seen == [look(turn, place, 6).caption for turn in range(20) for place in range(6)]


def test_the_pocket_world_is_rendered_on_demand(tell: Tell) -> None:
    settings = tell(videos=[{"source": "pocket", "count": 2}], images=["pocket"])
    start = prepare_training(settings)
    looks = running.clip_loaders(start.stages[0], latent_encoder(start.model), {})
    first, second, again = (looks["video"](turn, 0, 1) for turn in range(3))
    assert first.latents.shape == (3, 4, 8, 8) and first.fps in (5.0, 10.0) and first.caption
    assert torch.equal(first.latents, again.latents) and (first.caption, first.fps) == (again.caption, again.fps)
    assert not torch.equal(first.latents, second.latents) and not torch.equal(first.latents[0], first.latents[2])
    pictures_seen = {looks["image"](turn, 0, 1).caption for turn in range(4)}
    assert len(pictures_seen) == 4


# -- memory


def gradients(settings: VideoTrainingSettings) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Return the loss and gradients of a step of videos, and the bytes saved for the backward pass."""
    start = prepare_training(settings)
    batch = next(each for each in load_steps(settings, range(2)) if each.x0.shape[1] > 1)
    kept = {name: weight for name, weight in start.model.net.named_parameters() if weight.requires_grad}
    torch.manual_seed(3)
    for weight in kept.values():
        weight.data += 0.05 * torch.randn_like(weight)  # no layer is silent
    held: dict[int, torch.UntypedStorage] = {}
    own = {weight.untyped_storage()._cdata for weight in start.model.net.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = denoising_loss(start.model, 3, 1.0)(start.model.net, batch, 0)
    found = torch.autograd.grad(losses["video"], [*kept.values()], allow_unused=True)
    size = sum(each.nbytes() for key, each in held.items() if key not in own)
    return losses, {name: each for name, each in zip(kept, found, strict=True) if each is not None}, size


@pytest.mark.slow
def test_gradient_checkpointing_changes_only_the_memory(tell: Tell) -> None:
    kept, recomputed_ = gradients(tell()), gradients(tell(gradient_checkpointing=True))
    assert equal(kept[0], recomputed_[0]) and equal(kept[1], recomputed_[1])
    assert recomputed_[2] < 0.25 * kept[2]


@pytest.mark.slow
def test_training_with_gradient_checkpointing_is_the_same(whole: Whole, tell: Tell) -> None:
    again = tell(gradient_checkpointing=True)
    trained(again)
    assert equal(ended(whole[0]), ended(again))


@pytest.mark.slow
def test_estimated_activations_are_those_that_are_saved(tell: Tell) -> None:
    settings = tell()
    start = prepare_training(settings)
    told_of = activation_bytes(start.model, settings.stages[0], 2, "no")
    assert told_of == pytest.approx(gradients(settings)[2], rel=0.05)
    assert activation_bytes(start.model, settings.stages[0], 4, "no") == pytest.approx(2 * told_of, rel=0.05)
    again = prepare_training(tell(gradient_checkpointing=True))
    assert again.model.net.call_stage is call_checkpointed and start.model.net.call_stage is call_directly
    assert activation_bytes(again.model, settings.stages[0], 2, "no") < 0.6 * told_of


# -- the latent cache


@pytest.mark.slow
def test_cached_clips_are_not_read_again(tell: Tell, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    sources = {"videos": [str(films(tmp_path / "films"))], "images": [str(tmp_path / "pictures")]}
    cached = {"latent_cache": str(tmp_path / "cache"), "clips_per_video": 1, "stages": [STAGES[0] | {"steps": 4}]}
    settings = tell("one", **sources, **cached)
    trained(settings)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(files) == 3 + 4 and not list((tmp_path / "cache").rglob("*.part"))
    kept = load_file(files[0])
    assert kept["latents"].dtype == torch.float16
    for file in (*(tmp_path / "films").glob("*.mp4"), *(tmp_path / "pictures").glob("*.png")):
        stamp = file.stat()
        file.write_bytes(b"x" * stamp.st_size)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = tell("again", **sources, **cached)
    trained(again)
    assert equal(ended(settings), ended(again))
    os.utime(tmp_path / "films" / "0.mp4")  # it is another file now
    assert "0.mp4" in trained(tell("changed", **sources, **cached))[-1].skipped


def test_the_cache_limits_the_windows(tell: Tell, tmp_path: Path) -> None:
    settings = tell(
        latent_cache=str(tmp_path / "cache"),
        clips_per_video=2,
        image_share=0.0,
        images=[],
        stages=[STAGES[0] | {"steps": 5}],
    )
    trained(settings)
    films_kept = [load_file(file) for file in (tmp_path / "cache").rglob("*.safetensors")]
    assert 3 < len(films_kept) <= 6
    assert {float(each["fps"]) for each in films_kept} <= {5.0, 10.0}


def test_an_unwritable_cache_is_an_error(tell: Tell, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="latent_cache .*cache cannot be written .* make room"):
        trained(tell(latent_cache=str(tmp_path / "cache")))


# -- errors


def refused(settings: VideoTrainingSettings) -> str:
    with pytest.raises(InputError) as raised:
        trained(settings)
    assert not (settings.output / "final").exists()
    return str(raised.value)


def test_patterns_without_a_match_are_named_with_similar_names(tell: Tell) -> None:
    said = refused(tell(trained=["tempor.*"]))
    assert "trained: no parameter of the network is called 'tempor.*'; similar names: temporal" in said
    assert "frozen: no parameter" in refused(tell(frozen=["image_unet.*attn9*"]))
    names = ["temporal.after.conv_in.norm.weight", "image_unet.conv_in.bias"]
    assert match_parameters(names, "trained", ["*.bias", "temporal.*"]) == set(names)
    assert not tell().output.exists()


def test_layers_that_do_not_fit_the_model(tell: Tell) -> None:
    assert "heads 64 wide do not fit into 8 channels" in refused(tell(layers="videocrafter"))
    assert "multiples of 2" in refused(tell(stages=[STAGES[0] | {"height": 15}]))
    assert "images train nothing where only temporal layers are trained" in refused(tell(trained=["temporal.*"]))
    positions = {"transformer": {"head_width": 4, "positions": 2}}
    assert "stage 1 has 3 frames, and these layers take at most 2" in refused(tell(layers=positions))


def test_broken_and_short_files_are_skipped_and_listed(tell: Tell, tmp_path: Path) -> None:
    folder = films(tmp_path / "films", count=1)
    movie(folder / "one.mp4", np.zeros((1, 20, 28, 3), np.uint8))
    movie(folder / "odd.mp4", np.zeros((14, 18, 50, 3), np.uint8))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "broken.mp4").write_bytes(b"nonsense" * 99)
    for name in ("one", "odd", "empty", "broken"):
        (folder / f"{name}.txt").write_text(name)
    settings = tell(videos=[str(folder)], images=[], image_share=0.0, stages=STAGES[:1])
    skipped = trained(settings)[-1].skipped
    assert set(skipped) == {"one.mp4", "empty.mp4", "broken.mp4"}
    assert "one.mp4 is too short: it has 1 frames" in skipped["one.mp4"] and "is empty" in skipped["empty.mp4"]
    lines = [json.loads(line) for line in (settings.output / "skipped.jsonl").read_text().splitlines()]
    assert {line["name"]: line["reason"] for line in lines} == skipped
    log = (settings.output / "stage-1" / "log.jsonl").read_text()
    assert '"skipped": ' in log


def test_no_data(tell: Tell, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    assert "holds nothing to train on" in refused(tell(videos=[str(folder)]))
    (folder / "a.mp4").write_bytes(b"")
    (folder / "a.txt").write_text("a")
    assert "nothing can be loaded from the dataset: 1 of 1 were tried. a.mp4 is empty" in refused(
        tell(videos=[str(folder)])
    )
    said = refused(tell(videos=tell().images))
    assert "named among the videos and has none, but 4 of the other kind" in said and "name it under images" in said


def test_a_folder_in_use_or_with_another_training(tell: Tell) -> None:
    steps = train(prepare_training(tell()))
    next(steps)
    assert "is in use by another run" in refused(tell())
    steps.close()
    assert "caption_dropout was 0.3 and is 0.9" in refused(tell(caption_dropout=0.9))
    assert "items was" in refused(tell(videos=[str(films(tell().output.parent / "more", count=4))]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("image_share=0", "image_share: expected the share of the steps that are of images"),
        ("images=[]", "image_share: expected 0 where there are no images, not 0.2"),
        ("videos=[]", "image_share: expected 1 where there are no videos"),
        ("layers=videocraft", "layers: expected videocrafter, videocrafter-512, videocrafter-i2v, or a mapping"),
        ("motion=mm.ckpt", "layers: expected none where motion names the temporal layers"),
        ("training.max_train_steps=5", "training: expected no max_train_steps"),
        ("latent_cache=here", "latent_cache: expected a count for the pocket world"),
        ("stages=[{steps: 1, height: 8, width: 8, fps: [0]}]", "stages.0.fps: expected frame rates above 0"),
        ("trainde=[a]", "trainde (here ['a']) is not a setting: did you mean trained?"),
        ("layers.heads=3", "is not a setting"),
        ("validation.images=[a.png, b.png]", "validation.images: expected one for each prompt, or none"),
    ],
)
def test_invalid_settings(override: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        load_settings(EXAMPLE, VideoTrainingSettings, [override])


def test_the_guide_names_every_setting_and_its_commands_parse() -> None:
    guide = (EXAMPLE.parents[1] / "docs" / "training.md").read_text()
    for settings in (VideoTrainingSettings, Stage, TrainingSettings, Validation, DataSource):
        missing = {name for name in settings.model_fields if f"`{name}`" not in guide and f"{name}:" not in guide}
        assert missing - {"max_train_steps"} == set()
    for line in re.findall(r"^(?:.* -m )?kineograph (.*?)(?:  #.*)?$", guide, re.MULTILINE):
        verb, *arguments = shlex.split(line)
        build_command(verb).make_context(verb, arguments)


# -- the command


Said = tuple[int, str, str]
Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `kineograph` in an empty folder: its status, and what it said where."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    torch.set_num_threads(1)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["kineograph", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            main()
        signal.signal(signal.SIGTERM, before)
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def written(settings: VideoTrainingSettings, path: Path) -> Path:
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
    return path


@pytest.mark.slow
def test_the_command_reports_its_progress(run: Run, tell: Tell, tmp_path: Path) -> None:
    file = written(tell(stages=ONE), tmp_path / "settings.yaml")
    status, out, err = run("train", file, "training.log_every=1")
    assert (status, out) == (0, f"{tmp_path / 'out' / 'final'}\n"), err
    assert (
        re.search(r"stage 1 of 1, step 2 of 2: loss image [\d.]+, video [\d.]+, [\d.]+ samples a second, 0 s left", err)
        or "step 2 of 2" in err
    )
    status, out, err = run("train", file, "--json")
    assert json.loads(out) == {"path": str(tmp_path / "out" / "final"), "stopped": False, "skipped": {}}


@pytest.mark.slow
def test_a_dry_run_estimates_and_writes_nothing(run: Run, tell: Tell, tmp_path: Path) -> None:
    settings = tell()
    file = written(settings, tmp_path / "settings.yaml")
    status, out, err = run("train", file, "--dry-run", "--json")
    assert status == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]
    said = json.loads(out)
    net = prepare_training(settings).model.net
    trained_now = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    assert sum(part["trained"] for part in said["parts"]) == trained_now
    assert said["parts"][1]["frozen"] > 0 == said["parts"][0]["frozen"]
    for stage, (batch, frames) in zip(said["stages"], [(2, 3), (1, 4)], strict=True):
        assert stage["videos"] + stage["images"] / frames == batch * stage["steps"]
        assert abs(stage["videos"] - stage["images"] / frames) <= batch
    assert [found["items"] for found in said["sources"]] == [3, 4]
    assert all(stage["held"] > 4 * trained_now * 5 and stage["activations"] > 0 for stage in said["stages"])
    status, out, err = run("train", file, "--dry-run")
    assert f"{trained_now - said['parts'][1]['trained']:,} parameters trained" in err and "films: 3 videos" in err


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint(tell: Tell, tmp_path: Path) -> None:
    long = tell(stages=[STAGES[0] | {"steps": 500}], training=LOOP | {"checkpointing_steps": 1000, "log_every": 1})
    file, log = written(long, tmp_path / "settings.yaml"), tmp_path / "out" / "stage-1" / "log.jsonl"
    # A process of its own: a signal that comes too early or too late must not end the test's process.
    program = [sys.executable, "-m", "kineograph", "train", str(file)]
    with subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not log.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "is saved: the same command resumes from there" in err, err
    (saved,) = (tmp_path / "out" / "stage-1" / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert f"step {step} of stage 1 is saved" in err and 0 < step < 500
    assert next(train(prepare_training(long))).progress.step == step + 1


@pytest.mark.slow
def test_the_example_runs_on_the_pocket_world(run: Run, tmp_path: Path) -> None:
    few = [
        "stages=[{steps: 2, height: 128, width: 128, num_frames: 2, fps: [8], train_batch_size: 1}]",
        "image_share=0.5",
        "validation.num_inference_steps=1",
    ]
    status, out, err = run("train", EXAMPLE, *few)
    assert (status, out) == (0, "outputs/train_video/final\n"), err
    assert "loss image" in err and "video" in err
    assert (
        tmp_path
        / "outputs"
        / "train_video"
        / "samples"
        / "stage-1_step-000002_1-a-red-fish-moving-to-the-left-over-the-sea.png"
    ).exists()
