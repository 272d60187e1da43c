# ruff: noqa: F811 (a fixture that comes from another file)
"""Customisation of an image model: its loss, its files, resuming, photos, words and errors."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from models.conftest import scheduler, sd, sd_folder, sdxl_folder  # noqa: F401
from PIL import Image
from safetensors.torch import load_file
from tiny_customising import SIDE, SUBJECT, customise_until_killed, settings
from tiny_training import begin
from tiny_videos import two_levels
from tiny_videos import videocrafter as videocrafter_net
from torch import Tensor

from kineograph import noise
from kineograph.errors import InputError, InputWarning
from kineograph.methods import dreambooth, videocrafter
from kineograph.models.conditioning.condition import Condition
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.training import load_weights
from kineograph.training.customise import (
    PhaseProgress,
    batches,
    customise_image,
    default_settings,
    load_customised,
    networks,
    with_changes,
)
from kineograph.training.customise import image_model as running
from kineograph.training.customise.image_data import (
    Crop,
    crop_photo,
    generate_images,
    load_photo,
    load_photos,
    random_crops,
)
from kineograph.training.customise.image_model import prepare_image_customisation
from kineograph.training.customise.networks import read_description
from kineograph.training.customise.prompts import (
    check_prompt_contains,
    knows_word,
    rare_word,
    style_words,
    subject_words,
)
from kineograph.training.gradients import sample_seed
from kineograph.training.optimisers import copy_weights
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.latent_cache import cached_latent_encoder

WHOLE: dict[str, object] = {"lora": None}
TEXTS: dict[str, object] = {"lora": {"text_rank": 2}}

Learn = Callable[..., list[PhaseProgress]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three images of different shapes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate([(20, 16), (16, 25), (31, 31)]):
        pixels = np.random.default_rng(number).integers(255, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def tiny(sd_folder: Path) -> Model:
    return load(sd_folder, device="cpu", dtype="float32")


@pytest.fixture
def learn(tiny: Model, few: Path, tmp_path: Path) -> Learn:
    """Return the function that customises the tiny model in a folder of a given name."""

    def learn(name: str = "out", **given: object) -> list[PhaseProgress]:
        torch.set_num_threads(1)
        return list(customise_image(tiny, few, tmp_path / name, subject=SUBJECT, settings=settings(**given)))

    return learn


def ended(output: Path) -> dict[str, Tensor]:
    return load_weights(output / "training")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened)


def estimate(model: Model, prompt: str = "a sks dog") -> Tensor:
    with torch.no_grad():
        x = torch.randn(1, 1, *model.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(0))
        return model.bind(model.prompt([prompt], size=(SIDE, SIDE)))(x, 5.0)


# -- the loss


def by_hand(model: Model, batch: batches.CustomisationBatch, seed: int, alphas: Tensor, target: str) -> list[float]:
    """Return each image's error, by diffusers' own network and the formulas with alpha-bar."""
    errors, count = [], len(batch.x0) // 2
    for number, (x0, t, text) in enumerate(zip(batch.x0[:, 0], batch.timesteps, batch.prompts, strict=True)):
        part, sample = divmod(number, count)
        eps = noise.independent(seed + sample, [part], (1, *x0.shape))[0, 0]
        a, b = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        with torch.no_grad():
            said = model.prompt([text]).tokens
            found = model.net.image_unet((a * x0 + b * eps)[None], t, said).sample[0]
        errors.append(float((found - (eps if target == "epsilon" else a * eps - b * x0)).square().mean()))
    return errors


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_the_loss_is_dreambooths(sd_folder: Path, few: Path, tmp_path: Path, target: str) -> None:
    model = load(sd_folder, device="cpu", dtype="float32", prediction_type=target)
    chosen = settings(prior_weight=0.7)
    start = prepare_image_customisation(model, few, tmp_path / "out", subject=SUBJECT, settings=chosen)
    x0 = noise.independent(5, [0], (6, *model.latent_shape(SIDE, SIDE)))
    texts = ("a sks dog", "a sks dog", "", "a dog", "a dog", "")
    batch = batches.CustomisationBatch(x0, torch.tensor([1, 500, 999, 20, 700, 300]), texts)
    loss = batches.dreambooth_loss(model, chosen, batches.precomputed_conditions(model, texts, (SIDE, SIDE)))
    begun = networks.trainable_copy(start.model, start.settings)
    found = loss(begun, batch, 11)
    errors = by_hand(model, batch, 11, scheduler().alphas_cumprod, target)
    assert found["subject"].item() == pytest.approx(np.mean(errors[:3]), rel=1e-4)
    assert found["prior"].item() == pytest.approx(0.7 * np.mean(errors[3:]), rel=1e-4)
    as_v = batches.dreambooth_loss(
        model, with_changes(chosen, {"error": "v"}), batches.precomputed_conditions(model, texts, (SIDE, SIDE))
    )
    heavier = 1 / scheduler().alphas_cumprod[batch.timesteps] if target == "epsilon" else torch.ones(6)
    expected = np.mean(heavier[:3].clamp(max=25).numpy() * errors[:3])
    assert as_v(begun, batch, 11)["subject"].item() == pytest.approx(expected, rel=1e-3)


def test_without_a_prior_it_is_plain_fine_tuning() -> None:
    errors = torch.tensor([1.0, 2.0, 6.0, 7.0])
    x0 = torch.zeros(4, 1, 4, 2, 2)
    given = (lambda *seen: errors, Condition(torch.zeros(4, 1, 1)), x0, x0, torch.tensor([0, 1, 2, 3]))
    assert dreambooth.loss(*given, prior_weight=0.0) == {"subject": torch.tensor(4.0)}
    assert dreambooth.loss(*given, prior_weight=2.0) == {"subject": torch.tensor(1.5), "prior": torch.tensor(13.0)}


@pytest.mark.slow
def test_without_a_prior_it_trains_as_plain_fine_tuning_does(
    learn: Learn, tiny: Model, few: Path, tmp_path: Path
) -> None:
    """Compare with ten lines: AdamW on the mean error of the subject's images."""
    plain = {"prior_weight": 0.0, "caption_dropout": 0.0}
    assert {each.phase for each in learn(**plain)} == {"encoding", "training"}
    assert not (tmp_path / "out" / "prior").exists()
    start = prepare_image_customisation(tiny, few, tmp_path / "by-hand", subject=SUBJECT, settings=settings(**plain))
    see = cached_latent_encoder(tiny, tmp_path / "out" / "latents")
    shown = [running.encode_photo(start, see, each, "a sks dog") for each in start.photos]
    draw = batches.sample_batch_loader([shown], 0, 0.0, timestep_sampler("uniform", tiny.schedule))
    begun = networks.trainable_copy(start.model, start.settings)
    learns = {name: weight for name, weight in begun.named_parameters() if weight.requires_grad}
    optimiser, condition = torch.optim.AdamW(learns.values(), lr=0.01), tiny.prompt(["a sks dog"])
    for step in range(4):
        batch = draw(step, range(2 * step, 2 * step + 2))
        eps = noise.independent(sample_seed(0, 2 * step), [0], (2, *batch.x0.shape[2:]))
        errors = videocrafter.loss(begun.unet, tiny.schedule, condition, batch.x0, eps, batch.timesteps)
        errors.mean().backward()
        torch.nn.utils.clip_grad_norm_(learns.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    for name, value in ended(tmp_path / "out").items():
        torch.testing.assert_close(value, learns[name].detach(), rtol=1e-3, atol=1e-4)


def test_the_loss_does_not_depend_on_how_the_batch_is_divided(tiny: Model, few: Path, tmp_path: Path) -> None:
    start = prepare_image_customisation(tiny, few, tmp_path / "out", subject=SUBJECT, settings=settings())
    shown = [
        [batches.TrainingSample((torch.randn(1, *tiny.latent_shape(SIDE, SIDE)),), text) for _ in range(3)]
        for text in ("a sks dog", "a dog")
    ]
    levels = timestep_sampler("uniform", tiny.schedule)
    draw = batches.sample_batch_loader(shown, 0, 0.3, levels)
    loss = batches.dreambooth_loss(
        tiny, start.settings, batches.precomputed_conditions(tiny, ["", "a sks dog", "a dog"], (SIDE, SIDE))
    )
    begun = networks.trainable_copy(start.model, start.settings)
    whole = loss(begun, draw(0, range(4)), 100)
    parts = [loss(begun, draw(0, range(first, first + 2)), 100 + first) for first in (0, 2)]
    for name, value in whole.items():
        assert value.item() == pytest.approx(np.mean([part[name].item() for part in parts]), rel=1e-5)


def test_every_image_is_used_equally_often() -> None:
    shown = [[batches.TrainingSample((torch.full((1, 1, 1, 1), float(number)),), str(number)) for number in range(3)]]
    draw = batches.sample_batch_loader(shown, 7, 0.0, lambda rng, count: rng.integers(9, size=count))
    texts = [text for step in range(6) for text in draw(step, range(2 * step, 2 * step + 2)).prompts]
    assert all(sorted(texts[first : first + 3]) == ["0", "1", "2"] for first in range(0, 12, 3))
    assert texts != sorted(texts) and len({tuple(texts[first : first + 3]) for first in range(0, 12, 3)}) > 1


# -- results


@pytest.mark.slow
def test_a_lora_is_loaded_by_kineograph_and_diffusers(
    learn: Learn,
    tiny: Model,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    before = {name: value.clone() for name, value in tiny.net.state_dict().items()}
    steps = learn(lora={"alpha": 3.0, "layers": "all"}, previews=["a sks dog at sea"])
    assert equal(before, tiny.net.state_dict()), "the given model is not changed"
    assert [(each.phase, each.done, each.total) for each in steps[:2]] == [("prior", 2, 3), ("prior", 3, 3)]
    assert [each.done for each in steps if each.phase == "training"] == [1, 2, 3, 4]
    (file,) = steps[-1].previews
    assert file.name == "step-000004_1-a-sks-dog-at-sea.png" and pixels(file).shape == (SIDE, SIDE, 3)
    final = tmp_path / "out" / "final"
    ours, plain = load(sd_folder, lora=final, device="cpu", dtype="float32"), estimate(tiny)
    theirs = StableDiffusionPipeline.from_pretrained(sd_folder)
    theirs.load_lora_weights(final)
    mine = load_customised(tiny, final)
    learnt = estimate(mine)
    assert (learnt - plain).abs().max() > 1e-3 and torch.equal(estimate(tiny), plain)
    torch.testing.assert_close(estimate(ours), learnt)
    torch.testing.assert_close(estimate(load(theirs)), learnt)
    assert all(value.dtype == torch.float16 for value in load_file(final / "pytorch_lora_weights.safetensors").values())
    card = read_description(final)
    assert mine.subject == SUBJECT and tiny.subject is None
    assert (card["name"], card["words"], card["model"]["name"]) == (SUBJECT, ["sks"], tiny.name)


@pytest.mark.slow
def test_the_file_has_the_trained_weights(learn: Learn, tiny: Model, few: Path, tmp_path: Path) -> None:
    """They are in half precision, with alpha over rank multiplied in."""
    learn(lora={"alpha": 3.0, "rank": 2})
    start = prepare_image_customisation(
        tiny, few, tmp_path / "x", subject=SUBJECT, settings=settings(lora={"alpha": 3.0, "rank": 2})
    )
    begun = networks.trainable_copy(start.model, start.settings)
    copy_weights(begun, ended(tmp_path / "out"))
    trained = estimate(networks.model_with(tiny, begun))
    torch.testing.assert_close(
        estimate(load_customised(tiny, tmp_path / "out" / "final")), trained, rtol=1e-2, atol=1e-2
    )


@pytest.mark.slow
def test_a_whole_network_is_saved_as_a_diffusers_folder(learn: Learn, tiny: Model, tmp_path: Path) -> None:
    learn(**WHOLE)
    final = tmp_path / "out" / "final"
    ours = load(final, device="cpu", dtype="float32")
    came_to = ended(tmp_path / "out")
    now = {f"unet.{name}": value for name, value in ours.net.state_dict().items()}
    assert equal({name: now[name] for name in came_to}, came_to) and set(came_to) == set(now)
    theirs = StableDiffusionPipeline.from_pretrained(final)
    assert torch.equal(theirs.unet.conv_in.weight, came_to["unet.image_unet.conv_in.weight"])
    assert torch.equal(estimate(load_customised(tiny, final)), estimate(ours))


@pytest.mark.slow
def test_the_text_encoder_is_trained_too(learn: Learn, tiny: Model, sd_folder: Path, tmp_path: Path) -> None:
    learn(**TEXTS)
    final = tmp_path / "out" / "final"
    names = set(load_file(final / "pytorch_lora_weights.safetensors"))
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
    assert any(name.startswith("text.") for name in ended(tmp_path / "out"))
    theirs = StableDiffusionPipeline.from_pretrained(sd_folder)
    theirs.load_lora_weights(final)
    now = load_customised(tiny, final)
    torch.testing.assert_close(now.prompt(["a sks dog"]).tokens, load(theirs).prompt(["a sks dog"]).tokens)
    assert (now.prompt(["a sks dog"]).tokens - tiny.prompt(["a sks dog"]).tokens).abs().max() > 1e-4
    torch.testing.assert_close(estimate(load(theirs)), estimate(now))


@pytest.mark.slow
def test_sdxl_is_customised_by_a_lora(sdxl_folder: Path, few: Path, tmp_path: Path) -> None:
    model = load(sdxl_folder, device="cpu", dtype="float32")
    list(customise_image(model, few, tmp_path / "out", subject=SUBJECT, settings=settings()))
    theirs = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    theirs.load_lora_weights(tmp_path / "out" / "final")
    torch.testing.assert_close(estimate(load(theirs)), estimate(load_customised(model, tmp_path / "out" / "final")))
    with pytest.raises(InputError, match="has several text encoders"):
        prepare_image_customisation(model, few, tmp_path / "x", subject=SUBJECT, settings=settings(**TEXTS))


# -- resuming


@pytest.mark.slow
@pytest.mark.parametrize("given", [WHOLE, TEXTS], ids=["whole", "lora"])
def test_resuming_is_bit_exact(learn: Learn, tiny: Model, few: Path, tmp_path: Path, given: dict[str, object]) -> None:
    """Stop in each phase, and remove what a kill would lose: the last checkpoint, and an image of the prior."""
    learn("whole", **given)
    phases = []
    for leave_at in (1, 3, 10, 9):
        steps = customise_image(tiny, few, tmp_path / "parts", subject=SUBJECT, settings=settings(**given))
        phases += [next(steps).phase for _ in range(leave_at)][-1:]
        steps.close()
    assert phases == ["prior", "encoding", "training", "training"]
    next((tmp_path / "parts" / "prior").rglob("*.png")).unlink()
    learn("parts", **given)
    assert equal(ended(tmp_path / "whole"), ended(tmp_path / "parts"))
    one, other = (load_file(next((tmp_path / name / "final").rglob("*.safetensors"))) for name in ("whole", "parts"))
    assert equal(one, other)


@pytest.mark.slow
def test_a_killed_customisation_resumes_to_the_same_weights(
    learn: Learn, sd_folder: Path, few: Path, tmp_path: Path
) -> None:
    learn("whole")
    process = begin(customise_until_killed, sd_folder, few, tmp_path / "killed", 3)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "final").exists()
    again = learn("killed")
    assert [each.done for each in again if each.phase == "training"] == [3, 4]
    assert equal(ended(tmp_path / "whole"), ended(tmp_path / "killed"))


@pytest.mark.slow
def test_finished_steps_are_not_repeated(learn: Learn, tmp_path: Path) -> None:
    learn()
    stamp = (tmp_path / "out" / "final").stat().st_mtime_ns
    assert {each.phase for each in learn()} == {"prior", "encoding"}
    assert (tmp_path / "out" / "final").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_another_customisation_needs_another_folder(learn: Learn, tiny: Model, few: Path, tmp_path: Path) -> None:
    steps = customise_image(tiny, few, tmp_path / "out", subject=SUBJECT, settings=settings())
    next(steps)
    with pytest.raises(InputError, match="is in use by another run"):
        learn()
    steps.close()
    learn()
    with pytest.raises(InputError, match=r"lora was .* and is "):
        learn(lora={"rank": 3})
    with pytest.raises(InputError, match="prior_weight was 1.0 and is 0.5"):
        learn(prior_weight=0.5)
    more = [*sorted(few.glob("*.png")), np.random.default_rng(9).integers(255, size=(16, 16, 3), dtype=np.uint8)]
    with pytest.raises(InputError, match="images was"):
        list(customise_image(tiny, more, tmp_path / "out", subject=SUBJECT, settings=settings()))


@pytest.mark.slow
def test_the_prior_is_shared_by_equal_model_and_sampling(learn: Learn, tiny: Model, tmp_path: Path) -> None:
    shared = {"prior_folder": tmp_path / "prior"}
    learn("one", **shared)
    files = sorted((tmp_path / "prior").rglob("*.png"))
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    assert files[0].parent.name.startswith("a-dog-")
    stamps = [file.stat().st_mtime_ns for file in files]
    learn("two", training={"learning_rate": 0.02}, **shared)
    assert stamps == [file.stat().st_mtime_ns for file in sorted((tmp_path / "prior").rglob("*.png"))]
    learn("three", drawing={"num_inference_steps": 3}, **shared)
    assert len(list((tmp_path / "prior").iterdir())) == 2
    seen = pixels(files[0])
    again = generate_images(tiny, ["a dog"] * 2, settings().drawing, size=(SIDE, SIDE), seed=0)
    assert np.array_equal(seen, again[0]) and not np.array_equal(again[0], again[1])


# -- photos


def test_photos_are_rotated_put_on_white_and_centre_cropped(tmp_path: Path) -> None:
    turned = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8)[None, :, None], (20, 1, 3)))
    exif = turned.getexif()
    exif[0x0112] = 6  # turned a quarter
    turned.save(tmp_path / "a.png", exif=exif)
    clear = np.zeros((20, 20, 4), np.uint8)
    clear[:10, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a black half\n")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    first, second = load_photos(tmp_path, least=2, side=20)
    assert first.pixels.shape == (40, 20, 3) and first.caption is None
    assert second.pixels[0, 0].tolist() == [0, 0, 0] and second.pixels[-1, 0].tolist() == [255, 255, 255]
    assert second.caption == "a black half"
    middle = crop_photo(first, Crop(), 1, (20, 20)).frames[0]
    assert np.array_equal(middle, first.pixels[10:30])
    assert np.array_equal(crop_photo(first, Crop(), -1, (20, 20)).frames[0], middle[:, ::-1])
    corner = crop_photo(first, Crop(0.0, 1.0, 0.5), 1, (10, 10)).frames[0]
    assert np.array_equal(corner, first.pixels[30:40, :10])


def test_crops_and_mirror_images(tiny: Model, few: Path, tmp_path: Path) -> None:
    given = settings(crops=3, flips=True)
    start = prepare_image_customisation(tiny, few, tmp_path / "out", subject=SUBJECT, settings=given)
    see = cached_latent_encoder(tiny, tmp_path / "latents")
    shown = running.encode_photo(start, see, start.photos[1], "a sks dog")
    assert len(shown.views) == 6 and not any(torch.equal(shown.views[0], each) for each in shown.views[1:])
    assert len(list((tmp_path / "latents").rglob("*.safetensors"))) == 6
    assert [*random_crops(start.photos[0], 1, 1.0, 0)] == [Crop()] != [*random_crops(start.photos[0], 1, 0.6, 0)]
    random = [*random_crops(start.photos[0], 20, 0.6, 0)]
    assert all(0.6 <= each.share <= 1 for each in random) and len(set(random)) == 20
    assert random == [*random_crops(start.photos[0], 20, 0.6, 0)] != [*random_crops(start.photos[1], 20, 0.6, 0)]
    plain = running.encode_photo(start._replace(settings=settings()), see, start.photos[1], "a sks dog")
    assert len(plain.views) == 1


def refused(pictures: object, least: int = 3) -> str:
    with pytest.raises(InputError) as raised:
        load_photos(pictures, least=least, side=8)
    return str(raised.value)


def test_unusable_photos_are_named(few: Path, tmp_path: Path) -> None:
    files = sorted(few.glob("*.png"))
    assert f"{tmp_path} holds no image, and 3 at least are needed" in refused(tmp_path)
    assert "there is no folder" in refused(tmp_path / "none")
    assert "there is one image, and 3 at least are needed" in refused(files[:1])
    assert "there are 2 different images" in refused([*files[:2], files[0]])
    assert len(load_photos(files[:1], least=1, side=8)) == 1 and len(load_photos(files[0], least=1, side=8)) == 1
    (tmp_path / "broken.jpg").write_bytes(b"nonsense")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("RGB", (30, 7)).save(tmp_path / "tiny.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "black.png")
    said = refused(tmp_path)
    assert said.startswith("4 of 4 images cannot be used. ")
    for message in (
        "broken.jpg is not an image",
        "phone.heic is not an image",
        "tiny.png is 30 x 7 pixels, too small: expected 8 x 8 at least",
        "black.png is all one colour",
    ):
        assert message in said
    assert "image 1 is float32 [4, 4, 3]: expected uint8 [h w 3]" in refused([np.zeros((4, 4, 3), np.float32)])
    (tmp_path / "odd.png").write_bytes(files[0].read_bytes())
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\xff")
    assert "odd.txt, the caption of odd.png, cannot be read" in refused(tmp_path)


# -- words


def test_a_rare_word_is_chosen() -> None:
    pocket = load(device="cpu")
    assert rare_word(pocket) == "sks" and knows_word(pocket, "cat") and not knows_word(pocket, "sks")
    one = load_photo(np.zeros((9, 9, 3), np.uint8))
    assert subject_words(pocket, "cat", [one]).captions == ("a sks cat",)
    told = subject_words(pocket, "zwx beach ball", [one, one._replace(caption="a zwx beach ball in the snow")])
    assert told == ("zwx beach ball", ("a zwx beach ball", "a zwx beach ball in the snow"), ("a beach ball",), ("zwx",))
    assert subject_words(pocket, "airplane", [one]).prior == ("an airplane",)
    with pytest.warns(InputWarning, match="pocket knows the word 'red' already.* such as 'sks'"):
        subject_words(pocket, "red cat", [one])
    with pytest.warns(InputWarning, match="pocket does not know the words dog"):
        subject_words(pocket, "sks dog", [one])


def test_invalid_words(tiny: Model) -> None:
    one = load_photo(np.zeros((9, 9, 3), np.uint8))
    for subject, said in ((" ", "the subject is empty"), ("sks", "without its class: say what it is, 'sks dog'")):
        with pytest.raises(InputError, match=said):
            subject_words(tiny, subject, [one])
    with pytest.raises(InputError, match="the caption of the image does not contain 'sks dog'"):
        subject_words(tiny, SUBJECT, [one._replace(caption="a dog")])
    with pytest.raises(InputError, match="the style is called ' style'"):
        style_words(tiny, " style", [one])
    with pytest.raises(InputError, match="the prompt does not contain 'sks dog'"):
        check_prompt_contains(SUBJECT, "a dog surfing")
    check_prompt_contains(SUBJECT, "A  SKS dog surfing")


@pytest.mark.slow
def test_a_style_is_learnt_from_one_image(tiny: Model, few: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes((few / "0.png").read_bytes())
    (tmp_path / "photos" / "a.txt").write_text("a fish")
    given = settings(previews=["a cat in ink style"])
    start = prepare_image_customisation(tiny, tmp_path / "photos", tmp_path / "out", style="ink style", settings=given)
    assert start.words.captions == ("a fish in ink style",)
    assert start.prior_prompts == ["a fish", "a fish", "a fish"]  # not in the style
    alone = prepare_image_customisation(
        tiny, tmp_path / "photos", tmp_path / "no", style="ink style", settings=settings(prior_weight=0.0)
    )
    assert alone.prior_prompts == []
    (tmp_path / "photos" / "a.txt").write_text("a fish drawn in ink")
    named = prepare_image_customisation(
        tiny, tmp_path / "photos", tmp_path / "no", style="ink style", settings=settings()
    )
    assert named.prior_prompts == [] and named.settings.prior_weight == 0, "the caption without the style is not known"
    steps = list(running.run_image_customisation(start))
    assert len(steps[-1].previews) == 1 and read_description(tmp_path / "out" / "final")["name"] == "ink style"
    with pytest.warns(InputWarning, match="have no caption beside"):
        assert style_words(tiny, "ink", [load_photo(few / "1.png")]).captions == ("a picture in ink style",)


# -- errors


@pytest.mark.slow
def test_models_that_cannot_be_customised(tiny: Model, few: Path, learn: Learn, tmp_path: Path) -> None:
    def said(model: Model = tiny, **given: object) -> str:
        asked = {"subject": SUBJECT, "settings": settings()} | given
        with pytest.raises(InputError) as raised:
            customise_image(model, few, tmp_path / "none", **asked)  # refused before the first step is asked for
        assert not (tmp_path / "none").exists()
        return str(raised.value)

    assert "expected a subject or a style, got neither" in said(subject=None)
    assert "got both" in said(style="ink")
    assert "the preview does not contain 'sks dog'" in said(settings=settings(previews=["a dog"]))
    assert "multiples of 2 above 0, got 15 x 16" in said(settings=settings(height=15))
    assert "no layer of UNet2DConditionModel has a name that ends in to_nothing" in said(
        settings=settings(lora={"layers": ["to_q", "to_nothing"]})
    )
    assert "has 4 input channels beside the latents" in said(load(sd(in_channels=8)))
    learn()
    assert "has LoRAs on it" in said(load_customised(tiny, tmp_path / "out" / "final"))
    moves = replace(tiny, net=videocrafter_net(two_levels()))
    assert "tiny-sd is a video model" in said(moves)
    with pytest.raises(InputError, match="holds no customised model"):
        load_customised(tiny, tmp_path)


def test_default_settings(tiny: Model) -> None:
    subject, style = default_settings(tiny, "subject"), default_settings(tiny, "style")
    assert subject.lora is not None and subject.lora.layers == "all" and subject.prior_weight == 1
    assert style.lora is not None and style.lora.layers == "transformers" and style.prior_weight == 1
    assert (
        default_settings(tiny, "subject", "whole").lora is None
        and default_settings(tiny, "style", "whole").lora is None
    )
    assert with_changes(subject, {"lora": {"rank": 2}}).lora.layers == "all"
    assert with_changes(subject, {"lora": None}).lora is None
    with pytest.raises(ValueError, match="expected attention, transformers, all"):
        with_changes(subject, {"lora": {"layers": "everything"}})
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        with_changes(subject, {"rank": 2})


@pytest.mark.slow
def test_the_pocket_model_is_customised(few: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pocket = load(device="cpu", dtype="float32")
    pictures = [np.random.default_rng(number).integers(255, size=(150, 128, 3), dtype=np.uint8) for number in range(3)]
    few_steps = {"drawing": {"num_inference_steps": 1, "at_once": 1}, "prior_pictures": 1}
    few_steps["training"] = {"max_train_steps": 2, "train_batch_size": 1, "mixed_precision": "no"}
    given = with_changes(default_settings(pocket, "subject"), few_steps)
    steps = list(customise_image(pocket, pictures, tmp_path / "out", subject="cat", settings=given))
    assert steps[-1].progress.losses.keys() == {"subject", "prior"}
    learnt = load_customised(pocket, tmp_path / "out" / "final")
    assert learnt.unknown_words("a sks cat") == [] and pocket.unknown_words("a sks cat") == ["sks"]
    size = sum(file.stat().st_size for file in (tmp_path / "out" / "final").iterdir())
    assert size < 1.2e6
