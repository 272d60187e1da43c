"""Still-Moving from images to an adapter file: the result, resuming in every phase, natural videos, and errors."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models.conftest import sd
from safetensors.torch import load_file
from tiny_customising import SUBJECT
from tiny_training import begin
from tiny_video_customising import (
    OF_VIDEO,
    customise_until_killed,
    opened,
    pictures,
    save_waves,
    settings,
)
from torch import Tensor

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.media.video import Video
from kineograph.methods import still_moving
from kineograph.models.formats import lora
from kineograph.models.model import Model
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise import (
    PhaseProgress,
    VideoCustomisationSettings,
    batches,
    customise_video,
    default_video_settings,
    inject_customised,
    load_customised_video,
    natural_videos,
    prompts,
    train_interleaved,
    train_motion_adapter,
    video_model,
    with_changes,
)
from kineograph.training.customise import adapters as adapting
from kineograph.training.customise.batches import TrainingSample
from kineograph.training.customise.prompts import CustomisationWords
from kineograph.training.customise.video_model import prepare_video_customisation

PHASES = ["prior", "encoding", "training", "stills", "natural", "motion_adapter", "spatial_adapter"]

Learn = Callable[..., list[PhaseProgress]]


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a video model without a motion adapter."""
    return save_waves(kg.load(sd(), device="cpu", dtype="float32"), tmp_path_factory.mktemp("models") / "waves")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def video(waves: Path) -> Model:
    return opened(waves)


@pytest.fixture(scope="module")
def done(video: Model, few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PhaseProgress]]:
    """Return the folder of a finished customisation, and all its progress."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("done") / "out"
    return output, [*customise_video(video, few, output, subject=SUBJECT, settings=settings())]


@pytest.fixture
def learn(video: Model, few: Path, tmp_path: Path) -> Learn:
    def learn(name: str = "out", **given: object) -> list[PhaseProgress]:
        torch.set_num_threads(1)
        return [*customise_video(video, few, tmp_path / name, subject=SUBJECT, settings=settings(**given))]

    return learn


def phases(reached: list[PhaseProgress]) -> list[str]:
    return [*dict.fromkeys(each.phase for each in reached)]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def estimate(model: Model, prompt: str = "a sks dog", frames: int = 3, scale: float = 0.0) -> Tensor:
    with torch.no_grad():
        x = torch.randn(1, frames, *model.latent_shape(16, 16), generator=torch.Generator().manual_seed(0))
        return model.bind(model.prompt([prompt]), motion_scale=scale)(x, 5.0)


# -- results


@pytest.mark.slow
def test_one_file_adds_the_subject_to_the_video_model(
    done: tuple[Path, list[PhaseProgress]], video: Model, waves: Path
) -> None:
    output, reached = done
    assert phases(reached) == PHASES
    assert [(each.done, each.total) for each in reached if each.phase == "stills"] == [(2, 3), (3, 3)]
    drawn = [file for each in reached for file in each.previews]
    assert [file.name for file in drawn] == ["stills.png", "natural.png"] and all(file.is_file() for file in drawn)
    ours = load_customised_video(video, output)
    theirs = opened(waves, adapter=output, motion_adapter=output)
    plain = inject_customised(video, output / "image" / "final")
    assert ours.subject == theirs.subject == SUBJECT and video.subject is None
    torch.testing.assert_close(estimate(ours), estimate(theirs))
    assert (estimate(ours) - estimate(plain)).abs().max() > 1e-3
    assert (estimate(plain) - estimate(video)).abs().max() > 1e-3
    assert (estimate(theirs, scale=1.0) - estimate(theirs)).abs().max() > 1e-4
    one = load_file(output / "adapter.safetensors")
    assert {name.partition(".")[0] for name in one} == {"unet", "spatial_adapter"}


def test_the_given_model_is_not_changed(done: tuple[Path, list[PhaseProgress]], video: Model, waves: Path) -> None:
    assert equal(video.net.state_dict(), opened(waves).net.state_dict())
    assert video.net.spatial_adapter is None and video.net.motion_adapter is None


def test_only_adapters_are_trained(done: tuple[Path, list[PhaseProgress]], video: Model) -> None:
    """A model that has a motion adapter keeps it."""
    output, reached = done
    kinds = {each.phase: set(each.progress.losses) for each in reached if each.progress}
    assert kinds == {
        "training": {"subject", "prior"}, "motion_adapter": {"still"}, "spatial_adapter": {"still", "natural"},
    }  # fmt: skip
    net = adapting.spatial_adapter_network(load_customised_video(video, output), settings())
    learns = {name.partition(".")[0] for name, weight in net.named_parameters() if weight.requires_grad}
    assert learns == {"spatial_adapter"}


@pytest.mark.slow
def test_an_existing_motion_adapter_is_used(waves: Path, few: Path, done: tuple[Path, list[PhaseProgress]]) -> None:
    """The result is that of a motion adapter trained in the same run."""
    output, _ = done
    model = opened(waves, motion_adapter=output)
    again = output.parent / "again"
    reached = [*customise_video(model, few, again, subject=SUBJECT, settings=settings())]
    assert phases(reached) == [each for each in PHASES if each != "motion_adapter"]
    assert equal(load_file(output / "adapter.safetensors"), load_file(again / "adapter.safetensors"))


@pytest.mark.slow
def test_a_motion_adapter_alone(
    video: Model, waves: Path, done: tuple[Path, list[PhaseProgress]], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    assert phases([*train_motion_adapter(video, tmp_path / "out", settings=settings())]) == [
        "natural",
        "motion_adapter",
    ]
    own = load_file(tmp_path / "out" / "motion_adapter.safetensors")
    assert equal(own, load_file(done[0] / "motion_adapter.safetensors"))
    assert opened(waves, motion_adapter=tmp_path / "out").net.motion_adapter is not None


# -- the loss


def test_the_loss_has_frozen_videos_at_scale_1_and_natural_videos_at_0(
    done: tuple[Path, list[PhaseProgress]], waves: Path
) -> None:
    output, _ = done
    model = load_customised_video(opened(waves, motion_adapter=output), output)
    given = settings(natural_weight=0.5, error="v")
    x0 = torch.randn(4, 3, *model.latent_shape(16, 16), generator=torch.Generator().manual_seed(1))
    said = ("a sks dog", "", "a fish", "a bird")
    batch = batches.CustomisationBatch(x0, torch.tensor([10, 400, 700, 999]), said)
    tell = batches.precomputed_conditions(model, said, (16, 16))
    losses = adapting.adapter_loss(model, given, tell, adapting.spatial_adapter_parts(given))(model.net, batch, 5)
    drawn = torch.cat([kg.noise.independent(5, clip, (2, *x0.shape[2:])) for clip in (range(3), range(3, 6))])
    errors = []
    for number, scale in enumerate((1.0, 1.0, 0.0, 0.0)):
        one = slice(number, number + 1)
        t = batch.timesteps[one]
        told = model.prompt([said[number]])
        off = still_moving.loss(model.net, model.schedule, told, x0[one], drawn[one], t, scale)
        errors.append((off * min(25.0, 1 + model.schedule.sigmas[int(t)] ** 2)).item())
    assert losses["still"].item() == pytest.approx(np.mean(errors[:2]), rel=1e-4)
    assert losses["natural"].item() == pytest.approx(0.5 * np.mean(errors[2:]), rel=1e-4)


def test_every_frame_becomes_a_frozen_video() -> None:
    one = TrainingSample((torch.arange(6.0).view(3, 2, 1, 1),), "a fish")
    views = adapting.freeze_sample(one, 4).views
    assert [view.shape for view in views] == [(4, 2, 1, 1)] * 3
    assert all(torch.equal(view, one.views[0][[k] * 4]) for k, view in enumerate(views))


def test_loras_are_merged_into_the_weights(video: Model, done: tuple[Path, list[PhaseProgress]]) -> None:
    plain = inject_customised(video, done[0] / "image" / "final")
    was = estimate(plain)
    adapting.merge_loras(plain.net.image_unet)
    assert not any(".lora_" in name for name in plain.net.state_dict())
    torch.testing.assert_close(estimate(plain), was, atol=1e-4, rtol=1e-4)


# -- the ablations and a baseline


@pytest.mark.slow
def test_without_a_motion_adapter_and_without_natural_videos(learn: Learn, tmp_path: Path) -> None:
    reached = learn(still_scale=0.0, natural_weight=0.0)
    assert phases(reached) == ["prior", "encoding", "training", "stills", "spatial_adapter"]
    assert set(reached[-1].progress.losses) == {"still"}
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    assert not (tmp_path / "out" / "natural").exists()


@pytest.mark.slow
def test_training_all_weights_saves_a_whole_model(learn: Learn, video: Model, tmp_path: Path) -> None:
    reached = learn(spatial=None, natural_weight=0.0)
    assert phases(reached) == PHASES, "natural videos teach the motion adapter"
    model = load_customised_video(video, tmp_path / "out")
    assert model.subject == SUBJECT and model.net.spatial_adapter is None
    again = kg.load(tmp_path / "out" / "whole", device="cpu", dtype="float32")
    assert torch.equal(estimate(model), estimate(again))
    plain = inject_customised(video, tmp_path / "out" / "image" / "final")
    moved = [
        name
        for name, weight in plain.net.temporal.state_dict().items()
        if not torch.equal(weight, again.net.temporal.state_dict()[name])
    ]
    assert moved and (estimate(model) - estimate(plain)).abs().max() > 1e-3
    assert not (tmp_path / "out" / "adapter.safetensors").exists()


@pytest.mark.slow
def test_interleaved_training_alternates_images_and_videos(video: Model, few: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    of_image = {"training": {"max_train_steps": 6}, "lora": {"text_rank": 2}}  # of 2 pictures: 2 steps of 2 x 3
    told = with_changes(settings(), {"image": of_image})
    start = train_interleaved(video, few, tmp_path / "out", subject=SUBJECT, settings=told)
    reached = [next(start) for _ in range(6)]
    start.close()
    reached += train_interleaved(video, few, tmp_path / "out", subject=SUBJECT, settings=told)
    assert phases(reached) == ["encoding", "natural", "training"]
    seen = {each.done: {*each.progress.losses} for each in reached if each.progress}
    assert seen == {1: {"subject"}, 2: {"natural"}, 3: {"subject"}, 4: {"natural"}}
    learnt = inject_customised(video, tmp_path / "out" / "final")
    assert learnt.subject == SUBJECT and learnt.net.spatial_adapter is None
    assert all(each.startswith("unet.") for each in load_file(tmp_path / "out" / "final" / lora.LORA_FILES[0]))
    assert (estimate(learnt) - estimate(video)).abs().max() > 1e-3


# -- resuming


@pytest.mark.slow
def test_resuming_in_any_phase_is_bit_exact(
    done: tuple[Path, list[PhaseProgress]], video: Model, few: Path, tmp_path: Path
) -> None:
    """Stop in each phase once, after its first yield."""
    torch.set_num_threads(1)
    for phase in PHASES:
        steps = customise_video(video, few, tmp_path / "parts", subject=SUBJECT, settings=settings())
        assert phase in (each.phase for each in iter(lambda steps=steps: next(steps), None) if each.phase == phase)
        steps.close()
        assert not (tmp_path / "parts" / "adapter.safetensors").exists()
    list(customise_video(video, few, tmp_path / "parts", subject=SUBJECT, settings=settings()))
    for name in ("adapter.safetensors", "motion_adapter.safetensors"):
        assert equal(load_file(done[0] / name), load_file(tmp_path / "parts" / name))


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "at"), [("natural", 1), ("spatial_adapter", 2)])
def test_a_killed_customisation_resumes_to_the_same_result(
    done: tuple[Path, list[PhaseProgress]], waves: Path, learn: Learn, few: Path, tmp_path: Path, phase: str, at: int
) -> None:
    process = begin(customise_until_killed, waves, few, tmp_path / "killed", phase, at)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "adapter.safetensors").exists()
    learn("killed")
    assert equal(load_file(done[0] / "adapter.safetensors"), load_file(tmp_path / "killed" / "adapter.safetensors"))


@pytest.mark.slow
def test_finished_phases_are_not_repeated(
    done: tuple[Path, list[PhaseProgress]], video: Model, few: Path, tmp_path: Path
) -> None:
    output, _ = done
    stamps = {file: file.stat().st_mtime_ns for file in output.rglob("*.safetensors")}
    again = [*customise_video(video, few, output, subject=SUBJECT, settings=settings())]
    assert not any(each.progress for each in again)
    assert stamps == {file: file.stat().st_mtime_ns for file in output.rglob("*.safetensors")}
    with pytest.raises(InputError, match="natural_weight was 1.0 and is 0.5"):
        list(customise_video(video, few, output, subject=SUBJECT, settings=settings(natural_weight=0.5)))


# -- natural videos


def test_natural_videos_from_a_folder(learn: Learn, video: Model, few: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    for number in range(2):
        frames = np.random.default_rng(number).integers(255, size=(6, 24, 32, 3), dtype=np.uint8)
        Video(frames, 8.0).save(films / f"{number}.mp4")
        (films / f"{number}.txt").write_text(f"film {number}")
    (films / "broken.mp4").write_bytes(b"nonsense")
    (films / "broken.txt").write_text("nothing")
    given = settings(natural_videos=4)
    wanted = natural_videos.prepare_natural_videos(video, given, films)
    with pytest.warns(InputWarning, match="skipped 1 natural videos: .*broken.mp4"):
        seen = [*natural_videos.natural_samples(wanted, tmp_path / "natural")]
    assert {each.caption for each in seen} == {"film 0", "film 1"} and len(seen) == 4
    assert all(each.views[0].shape == (3, *video.latent_shape(16, 16)) for each in seen)
    (films / "broken.mp4").unlink()
    (films / "broken.txt").unlink()
    whole = natural_videos.prepare_natural_videos(video, given, films)
    assert [*natural_videos.natural_samples(whole, tmp_path / "natural")] and whole.facts() != wanted.facts()
    with pytest.raises(InputError, match="there is no file or folder"):
        natural_videos.prepare_natural_videos(video, given, tmp_path / "none")
    with pytest.raises(InputError, match="has none, but 3 of the other kind"), pytest.warns(InputWarning):
        natural_videos.prepare_natural_videos(video, given, few)


@pytest.mark.slow
def test_generated_natural_videos_are_saved_and_shared(video: Model, tmp_path: Path) -> None:
    wanted = natural_videos.prepare_natural_videos(video, settings(natural_folder=tmp_path / "shared"), None)
    first = [*natural_videos.natural_samples(wanted, tmp_path / "one")]
    files = sorted((tmp_path / "shared").rglob("*.safetensors"))
    stamps = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 2 and not (tmp_path / "one").exists()
    files[0].unlink()
    second = [*natural_videos.natural_samples(wanted, tmp_path / "two")]
    assert all(torch.equal(one.views[0], two.views[0]) for one, two in zip(first, second, strict=True))
    assert files[1].stat().st_mtime_ns == stamps[1]
    other = natural_videos.prepare_natural_videos(
        video, settings(natural_folder=tmp_path / "shared", natural_prompts=["a fish"]), None
    )
    assert {each.caption for each in natural_videos.natural_samples(other, tmp_path)} == {"a fish"}
    assert len(list((tmp_path / "shared").iterdir())) == 2


def test_default_prompts_use_words_that_the_model_knows() -> None:
    pocket = kg.load("pocket-video", device="cpu")
    for said in (
        prompts.natural_video_prompts(pocket, 40),
        prompts.still_prompts(pocket, CustomisationWords("sks cat", (), ("a cat",), ()), 24),
        prompts.still_prompts(pocket, CustomisationWords("clay style", (), (), ()), 24),
    ):
        assert {word for each in said for word in pocket.unknown_words(each)} <= {"sks"}
        assert len(set(said)) >= min(len(said), 7)
    assert len(set(prompts.natural_video_prompts(pocket, 40))) == 40
    style = CustomisationWords("sea style", ("a fish in sea style",), (), ())
    assert prompts.still_prompts(kg.load(sd()), style, 2) == ["a cat in sea style", "a house in the snow in sea style"]


def test_a_styles_images_and_prior_have_captions_with_motions(video: Model, few: Path, tmp_path: Path) -> None:
    shown = shutil.copytree(few, tmp_path / "photos")
    for file in sorted(shown.iterdir()):
        file.with_suffix(".txt").write_text("a fish in the sea")
    start = prepare_video_customisation(
        video, shown, tmp_path / "style", style="ink", settings=settings(image={"prior_pictures": 4})
    )
    said = [caption for _, caption in start.image.captioned]
    assert said[:4] == [
        "a fish in the sea in ink style", "a fish moving to the left in the sea in ink style",
        "a fish in the sea in ink style", "a fish moving to the right in the sea in ink style",
    ]  # fmt: skip
    assert start.image.prior_prompts == [each.removesuffix(" in ink style") for each in said[:4]]
    assert len(said) == len(start.image.photos) * 2 * len(prompts.MOTIONS)
    assert prompts.with_motions("a fish", ["rising"]) == ["a fish", "a fish rising"]
    assert prompts.with_motions("a fish in the sea", []) == ["a fish in the sea"]
    subject = prepare_video_customisation(video, few, tmp_path / "subject", subject="sks cat", settings=settings())
    assert [caption for _, caption in subject.image.captioned] == ["a sks cat"] * len(subject.image.photos)


# -- errors


def refused(video: Model, few: Path, **given: object) -> str:
    asked = {"subject": SUBJECT, "settings": settings(), **given}
    with pytest.raises(InputError) as raised:
        prepare_video_customisation(video, few, "nowhere", **asked)  # type: ignore[arg-type]
    assert not Path("nowhere").exists()
    return str(raised.value)


def test_errors_come_before_anything_is_written(
    video: Model, waves: Path, few: Path, done: tuple[Path, list[PhaseProgress]], tmp_path: Path
) -> None:
    assert "is an image model without temporal layers" in refused(kg.load(sd()), few)
    assert "there is one image, and 3 at least" in refused(video, [few / "0.png"])  # type: ignore[arg-type]
    assert "holds no image" in refused(video, tmp_path)
    assert "expected a subject or a style, got both" in refused(video, few, style="sea")
    assert "is customised already, to 'sks dog'" in refused(load_customised_video(video, done[0]), few)
    assert "the prompt of a still does not contain 'sks dog'" in refused(
        video, few, settings=settings(prompts=["a dog"])
    )
    assert "the preview does not contain 'sks dog'" in refused(video, few, settings=settings(previews=["a dog"]))
    assert "waves is a video model: image_model is for" in refused(video, few, image_model=video)
    other = kg.load(sd(), device="cpu", dtype="float32")
    torch.nn.init.normal_(other.net.image_unet.conv_in.weight)
    assert "is not that of" in refused(video, few, image_model=other)


def test_the_image_model_keeps_its_noise_schedule(video: Model) -> None:
    image = kg.load(sd(), device="cpu", dtype="float32", prediction_type="v_prediction")
    found = video_model.underlying_image_model(video, image)
    assert found.schedule is image.schedule and found.temporal is None
    assert found.net.image_unet is video.net.image_unet


def test_default_video_settings() -> None:
    pocket = kg.load("pocket-video", device="cpu")
    subject, style = default_video_settings(pocket, "subject"), default_video_settings(pocket, "style")
    assert subject.image.prior_weight == style.image.prior_weight == 1.0
    assert with_changes(subject, {"spatial": {"rank": 4}}).spatial.rank == 4
    assert with_changes(subject, {"spatial": None}).spatial is None
    size = sum(weight.numel() for weight in VideoUNet(pocket.net.image_unet, pocket.net.temporal).parameters())
    assert size > 12e6 and isinstance(subject, VideoCustomisationSettings)
    assert set(OF_VIDEO) <= set(VideoCustomisationSettings.model_fields)
