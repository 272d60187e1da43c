"""Still-Moving: its losses and baselines, adapter files, and customised models through the front doors."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Run
from diffusers import ControlNetModel, StableDiffusionPipeline
from models.conftest import sd
from models.formats.test_lora import UNET, deltas, spelled
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_temporal import BETAS, COND, CONFIGS, B, Z, random_tensor, trained
from tiny_unets import randomised, with_temporal_layers
from tiny_videos import shaken
from torch import Tensor, nn

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.media.metadata import read_settings
from kineograph.media.video import Video
from kineograph.methods import still_moving as method
from kineograph.models.formats import adapter_files
from kineograph.models.formats.adapter_files import weight_signature
from kineograph.models.schedule import Schedule
from kineograph.models.temporal.adapters import MOTION_ADAPTER, SPATIAL_ADAPTER, AdapterConfig
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.video_unet import VideoUNet

LAYERS = TransformerConfig(head_width=8, relative=4)
CONFIG = TemporalConfig(
    num_frames=4, layers=((Site("conv_in"), LAYERS), (Site("transformer"), LAYERS)), frame_rate=True
)
FEW = {"num_inference_steps": 2, "seed": 3, "num_frames": 3}
SUBJECT = "sks dog"


def test_a_frozen_video_is_one_frame_repeated() -> None:
    still = method.repeat_frame(Z, torch.tensor([1, 3]), 4)
    assert still.shape == (B, 4, *Z.shape[2:])
    assert torch.equal(still[0, 2], Z[0, 1]) and torch.equal(still[1, 0], Z[1, 3])


def test_only_the_new_adapter_is_trained_and_each_sample_has_its_scale() -> None:
    plain = randomised(with_temporal_layers(CONFIGS["videocrafter t2v"])).requires_grad_(False)
    schedule = Schedule.from_config(BETAS)
    begun = method.attach(plain, motion=MOTION_ADAPTER)
    trained(begun.motion_adapter).requires_grad_(False)
    net = method.attach(begun, spatial=SPATIAL_ADAPTER)
    assert net.motion_adapter is begun.motion_adapter and begun.spatial_adapter is None
    noise, t, scales = random_tensor(*Z.shape), torch.tensor([300, 700]), torch.tensor([1.0, 0.0])
    errors = method.loss(net, schedule, COND, Z, noise, t, scales)
    natural = replace(COND, tokens=COND.tokens[1:], embedding=COND.embedding[1:])
    alone = method.loss(plain, schedule, natural, Z[1:], noise[1:], t[1:], 0.0)
    torch.testing.assert_close(errors[1:], alone, atol=1e-4, rtol=1e-4)
    errors.mean().backward()
    assert all(w.grad is None for name, w in net.named_parameters() if not name.startswith("spatial_adapter"))
    ups = [w for name, w in net.spatial_adapter.named_parameters() if "lora_B" in name]
    assert all(w.grad.abs().sum() > 0 for w in ups)
    with pytest.raises(ValueError, match="belong to temporal layers"):
        method.attach(VideoUNet(plain.image_unet), motion=MOTION_ADAPTER)


@pytest.mark.slow
def test_the_baselines_are_injected_and_interpolated_weights() -> None:
    net = method.attach(randomised(with_temporal_layers(CONFIGS["videocrafter t2v"])), motion=MOTION_ADAPTER)
    other = shaken(with_temporal_layers(CONFIGS["videocrafter t2v"]).image_unet)
    injected = method.inject(other, net)
    assert injected.image_unet is other and injected.temporal is net.temporal
    assert injected.motion_adapter is net.motion_adapter
    for share in (0.0, 0.25, 1.0):
        mixed = method.interpolate_weights(other, net.image_unet, share).state_dict()
        for name, weight in other.state_dict().items():
            assert torch.allclose(mixed[name], share * weight + (1 - share) * net.image_unet.state_dict()[name])
    with pytest.raises(ValueError, match="same layers"):
        method.interpolate_weights(other, sd().unet, 0.5)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a video model."""
    image = kg.load(sd())
    unet = image.net.image_unet
    model = replace(image, net=VideoUNet(unet, shaken(TemporalLayers(unet, CONFIG))))
    return kg.save(model, tmp_path_factory.mktemp("models") / "waves")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, video: Path) -> Path:
    """A second folder of the same shapes, whose temporal layers have other weights."""
    model = kg.load(video)
    nn.init.normal_(model.net.temporal.after.conv_in.proj_in.weight)
    return kg.save(model, tmp_path_factory.mktemp("models") / "ripples")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, video: Path) -> Path:
    """A motion adapter for it."""
    net = method.attach(kg.load(video).net, motion=AdapterConfig(rank=2, layers=("to_q", "to_v")))
    file = tmp_path_factory.mktemp("adapters") / "still.safetensors"
    return adapter_files.save_motion_adapter(trained(net.motion_adapter), net.temporal, file, name="waves")


@pytest.fixture(scope="module")
def lora(video: Path) -> dict[str, Tensor]:
    names = spelled("unet.", deltas(kg.load(video).net.image_unet, UNET), "lora_A", "lora_B")
    return {name: 0.3 * each for name, each in names.items()}


@pytest.fixture(scope="module")
def dog(tmp_path_factory: pytest.TempPathFactory, video: Path, lora: dict[str, Tensor]) -> Path:
    """An adapter file of a customised model."""
    net = method.attach(kg.load(video).net, spatial=AdapterConfig(rank=2, layers=("conv_in", "attentions")))
    trained(net.spatial_adapter)
    file = tmp_path_factory.mktemp("adapters") / "dog.safetensors"
    return adapter_files.save_customised_adapter(net, lora, file, subject=SUBJECT, image="sea", video="waves")


@pytest.mark.slow
def test_a_motion_adapter_file_is_small_and_round_trips_with_its_description(video: Path, still: Path) -> None:
    with safe_open(still, "pt") as file:
        about = json.loads(file.metadata()[adapter_files.HEADER])
    assert (about["kind"], about["branches"]["rank"], about["temporal"]["name"]) == ("motion", 2, "waves")
    tensors = load_file(still)
    assert all(each.dtype == torch.float16 for each in tensors.values())
    assert "motion_adapter.after.conv_in.transformer_blocks.0.attn1.to_q.lora_A.weight" in tensors
    model = kg.load(video, motion_adapter=still)
    assert len(model.net.motion_adapter.state_dict()) == len(tensors)
    assert [*still.parent.iterdir()] == [still]  # nothing half-written beside it
    z, say = random_tensor(1, 3, *model.latent_shape(16, 16)), model.prompt(["a fish"])
    looks = [model.bind(say, motion_scale=scale)(z, 1.0) for scale in (0.0, 1.0, -1.0)]
    assert torch.equal(looks[0], kg.load(video).bind(say)(z, 1.0))
    assert not torch.allclose(looks[1], looks[0]) and not torch.allclose(looks[2], looks[0])
    assert kg.load(video, motion_adapter=still, dtype="bfloat16").net.motion_adapter.state_dict().popitem()[
        1
    ].dtype == (torch.bfloat16)


def test_a_saved_model_keeps_its_motion_adapter(video: Path, still: Path, tmp_path: Path) -> None:
    model = kg.load(video, motion_adapter=still)
    again = kg.load(kg.save(model, tmp_path / "copy"))
    for name, weight in model.net.motion_adapter.state_dict().items():
        assert torch.equal(weight, again.net.motion_adapter.state_dict()[name])


@pytest.mark.slow
def test_an_adapter_of_another_model_is_refused_with_both_names(
    video: Path, other: Path, still: Path, dog: Path
) -> None:
    with pytest.raises(InputError, match=r"for the temporal layers of waves, and ripples has layers with other wei"):
        kg.load(other, motion_adapter=still)
    with pytest.raises(InputError, match=r"waves, and ripples has .* can be loaded as `lora`"):
        kg.load(other, adapter=dog)
    with pytest.raises(InputError, match="waves, and pocket-video has layers of other shapes"):
        kg.load("pocket-video", motion_adapter=still)
    with pytest.raises(InputError, match=r"for sea, and .* has an image network of other shapes"):
        kg.load(sd(reads=48), adapter=dog)
    with pytest.raises(InputError, match="is an image model without temporal layers"):
        kg.load(sd(), motion_adapter=still)


def test_an_image_network_with_other_weights_is_warned_of(video: Path, dog: Path) -> None:
    shape = sd()
    shaken(shape.unet)
    with pytest.warns(InputWarning, match="made for sea, and the image network .* other weights: sks dog may not"):
        kg.load(shape, adapter=dog)


def test_files_of_other_kinds_are_refused(video: Path, still: Path, dog: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds a customised subject or style: pass it as `adapter`"):
        kg.load(video, motion_adapter=dog)
    with pytest.raises(InputError, match=r"holds a motion adapter: pass it as `motion_adapter`"):
        kg.load(video, adapter=still)
    with pytest.raises(InputError, match="no such file|there is no"):
        kg.load(video, adapter=tmp_path / "cat.safetensors")
    tensors, bad = load_file(still), tmp_path / "bad.safetensors"
    with safe_open(still, "pt") as file:
        header = file.metadata()
    save_file(tensors, bad)
    with pytest.raises(InputError, match="is no adapter that Kineograph wrote"):
        kg.load(video, motion_adapter=bad)
    save_file(tensors, bad, {adapter_files.HEADER: '{"kind": "sound"}'})
    with pytest.raises(InputError, match="damaged, or from a newer Kineograph"):
        kg.load(video, motion_adapter=bad)
    first = next(iter(tensors))
    more = tensors.pop(first)
    save_file({**tensors, "more": more}, bad, header)
    with pytest.raises(InputError, match=rf"1 are missing \({first}\); 1 are not known \(more\)"):
        kg.load(video, motion_adapter=bad)


def test_the_weight_signature_does_not_depend_on_the_dtype() -> None:
    net = shaken(sd().unet)
    was = weight_signature(net, "one")
    assert weight_signature(net.bfloat16(), "two").same_weights(was)
    nn.init.normal_(net.conv_in.weight)
    now = weight_signature(net, "two")
    assert now.shapes == was.shapes and not now.same_weights(was)


def test_a_customised_model_is_its_lora_under_the_temporal_layers(
    video: Path, dog: Path, lora: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(lora, tmp_path / "lora.safetensors")
    exact = {"dtype": "float32"}
    plain, model = kg.load(video, lora=tmp_path / "lora.safetensors", **exact), kg.load(video, adapter=dog, **exact)
    assert model.subject == SUBJECT
    z, say = random_tensor(1, 3, *model.latent_shape(16, 16)), model.prompt(["a fish"])
    near = {"atol": 1e-2, "rtol": 1e-2}  # of float16 in the file
    torch.testing.assert_close(model.bind(say, spatial_scale=0.0)(z, 1.0), plain.bind(say)(z, 1.0), **near)
    assert not torch.allclose(model.bind(say)(z, 1.0), plain.bind(say)(z, 1.0), **near)
    with pytest.raises(InputError, match="LoRAs on it"):
        kg.save(model, tmp_path / "folder")


def test_diffusers_loads_the_lora_in_it_and_an_image_model_takes_only_that(dog: Path, video: Path) -> None:
    pipeline: StableDiffusionPipeline = sd()
    pipeline.load_lora_weights(dog)
    ours = kg.load(sd(), adapter=dog)
    assert ours.net.spatial_adapter is None and ours.subject == SUBJECT
    z, told = random_tensor(2, 4, 8, 8), random_tensor(2, 5, 32)
    with torch.no_grad():
        wanted, got = (net(z, 9, told).sample for net in (pipeline.unet, ours.net.image_unet))
    assert torch.equal(got, wanted) and not torch.equal(got, sd().unet(z, 9, told).sample)


def test_a_spatial_adapter_without_lora_is_for_a_fully_fine_tuned_model(video: Path, tmp_path: Path) -> None:
    net = method.attach(kg.load(video).net, spatial=SPATIAL_ADAPTER)
    file = tmp_path / "toy.safetensors"
    adapter_files.save_customised_adapter(net, {}, file, subject="toy", image="toys", video="waves")
    model = kg.load(video, adapter=file)
    assert model.net.spatial_adapter is not None
    with pytest.raises(InputError, match="holds a spatial adapter alone, and"):
        kg.load(sd(), adapter=file)
    with pytest.raises(InputError, match="has a spatial adapter"):
        kg.save(model, tmp_path / "folder")
    with pytest.raises(ValueError, match=r"unet\.<layer>"):
        adapter_files.save_customised_adapter(
            net, {"conv": torch.ones(1)}, file, subject="toy", image="toys", video="waves"
        )
    with pytest.raises(ValueError, match="spatial adapter"):
        adapter_files.save_customised_adapter(kg.load(video).net, {}, file, subject="toy", image="toys", video="waves")


@pytest.mark.slow
def test_a_motion_scale_is_applied_recorded_and_replayed(video: Path, still: Path, tmp_path: Path) -> None:
    model = kg.load(video, motion_adapter=still)
    usual, calm = (kg.generate(model, "a fish", motion_strength=strength, **FEW) for strength in (1.0, 0.5))
    assert np.array_equal(usual.frames, kg.generate(kg.load(video), "a fish", **FEW).frames)
    assert not np.array_equal(calm.frames, usual.frames)
    assert calm.settings["motion_strength"] == 0.5
    assert calm.settings["model"]["load"]["motion_adapter"] == str(still)
    path = calm.save(tmp_path / "calm")
    assert np.array_equal(kg.replay(path, trust=True).frames, calm.frames)


@pytest.mark.slow
def test_a_motion_scale_without_an_adapter_is_an_error_with_a_hint(video: Path) -> None:
    with pytest.raises(InputError, match=r"waves has no motion adapter, .*`motion_adapter`"):
        kg.generate(kg.load(video), "a fish", motion_strength=0.0, **FEW)
    with pytest.raises(InputError, match="no temporal layers, and so no motion adapter"):
        kg.generate(kg.load(sd()), "a fish", motion_strength=0.0, **FEW)
    with pytest.raises(InputError, match="`motion_strength` is a number"):
        kg.generate(kg.load(video), "a fish", motion_strength=float("nan"), **FEW)


def test_a_subject_that_the_prompt_does_not_name_is_warned_of(video: Path, dog: Path) -> None:
    model = kg.load(video, adapter=dog)
    with pytest.warns(InputWarning, match="customised to 'sks dog', and the prompt does not say"):
        kg.generate(model, "a dog surfing", **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kg.generate(model, "a SKS dog surfing", **FEW)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    net = shaken(ControlNetModel.from_unet(sd().unet, conditioning_embedding_out_channels=(4, 8)))
    net.save_pretrained(folder := tmp_path_factory.mktemp("net"))
    return folder


@pytest.mark.slow
def test_a_subject_works_with_clips_controls_and_both_models_of_video_elevator(
    video: Path, dog: Path, still: Path, controlled: Path, tmp_path: Path
) -> None:
    model = kg.load(video, adapter=dog, motion_adapter=still, controlnet={"seg": controlled})
    image, plain = kg.load(sd(), adapter=dog, controlnet={"seg": controlled}), kg.load(video)
    maps = Video(np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8), 8).save(tmp_path / "maps")
    say = f"a {SUBJECT} surfing"
    two = kg.generate(model, say, clips=2, motion_strength=2.0, **FEW)
    assert len(two.frames) == 6
    assert not np.array_equal(two.frames[:3], kg.generate(model, say, **FEW).frames)
    steered = kg.generate(model, say, control={"seg-map": maps}, motion_strength=0.0, **FEW)
    assert not np.array_equal(steered.frames, kg.generate(model, say, motion_strength=0.0, **FEW).frames)
    asked = {"refine_at": (0.5,), "video_steps": 1, **FEW}
    elevated = [
        kg.generate(first, say, video_model=second, **asked).frames
        for first, second in ((image, plain), (image, model), (kg.load(sd()), model))
    ]
    elevated.append(kg.generate(image, say, video_model=model, motion_strength=0.0, **asked).frames)
    assert not any(np.array_equal(one, two) for k, one in enumerate(elevated) for two in elevated[:k])
    with pytest.warns(InputWarning, match="customised to"):
        kg.generate(kg.load(sd()), "a dog", video_model=model, **asked)


def test_the_command_line_takes_adapters(run: Run, video: Path, dog: Path, still: Path, tmp_path: Path) -> None:
    few = ["--model", video, "--steps", 2, "--device", "cpu", "-n", 2]
    calm = ["--motion-adapter", still, "--motion-strength", "1.5", "--adapter", dog]
    said = run("generate", "a sks dog surfing", *few, *calm, "-o", "dog.gif")
    assert (said.status, said.out) == (0, "dog.gif\n"), said.err
    settings = read_settings(tmp_path / "dog.gif")
    assert settings["motion_strength"] == 1.5
    assert settings["model"]["load"]["adapter"] == str(dog)
    refused = run("generate", "a dog", *few, "--motion-strength", 0)
    assert refused.status == 2 and "waves has no motion adapter" in refused.err
