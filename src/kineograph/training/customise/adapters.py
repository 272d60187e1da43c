"""Motion and spatial adapters in training: steps I and II of Still-Moving.

Step I trains on frozen videos only; step II on frozen videos and as many natural ones, with the motion adapter off for
the latter.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn

from kineograph import noise
from kineograph.hub import HubOptions
from kineograph.latents import Latents
from kineograph.methods import still_moving
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import adapter_files
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.unet.forward import call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise import batches
from kineograph.training.customise.batches import CustomisationBatch, EncodePrompts, TrainingSample
from kineograph.training.customise.natural_videos import (
    NaturalVideos,
    check_natural_videos,
    natural_videos_phase,
    prepare_natural_videos,
)
from kineograph.training.customise.networks import temporal_layers_name
from kineograph.training.customise.phases import MOTION_ADAPTER_FILE, PhaseProgress, train_phase
from kineograph.training.customise.settings import VideoCustomisationSettings, default_video_settings
from kineograph.training.gradients import LossFunction, seeded
from kineograph.training.group_norm import prepare_for_device
from kineograph.training.lock import lock_folder
from kineograph.training.settings import TrainingSettings
from kineograph.training.temporal_layers.batches import timestep_sampler
from kineograph.training.temporal_layers.initial_model import call_checkpointed

STEP_I_PARTS = {"still": (still_moving.STILL, 1.0)}  # parts of a batch: scale of the motion adapter, weight of the loss


def motion_adapter_network(video: Model, settings: VideoCustomisationSettings) -> VideoUNet:
    """Return a copy of the network with a new motion adapter in float32, which alone is trained."""
    net = _freeze(deepcopy(video.net.image_unet), video.net, settings, settings.motion_training)
    with seeded(settings.training.seed):
        net = still_moving.attach(net, motion=settings.motion)
    return prepare_for_device(net, video.device, video.dtype).eval()


def spatial_adapter_network(video: Model, settings: VideoCustomisationSettings) -> VideoUNet:
    """Return the network with a new spatial adapter in float32, which alone is trained.

    video: a model whose image network is customised; that is used itself and changed, the other layers are copied.
    Without a spatial adapter in the settings all weights are trained but those of the motion adapter.
    """
    net = _freeze(video.net.image_unet, video.net, settings, settings.training)
    if settings.spatial is not None:
        with seeded(settings.training.seed):
            net = still_moving.attach(net, spatial=settings.spatial)
    else:
        merge_loras(net.image_unet)
        for part in (net.image_unet, net.temporal):
            assert part is not None
            part.float().requires_grad_(requires_grad=True)
    return prepare_for_device(net, video.device, video.dtype).eval()


def _freeze(
    image: UNet2DConditionModel, video: VideoUNet, settings: VideoCustomisationSettings, loop: TrainingSettings
) -> VideoUNet:
    """Return this image network with copies of the video network's other layers, all weights frozen.

    They are in float32 unless the loop computes in mixed precision.
    """
    call_stage = call_checkpointed if settings.gradient_checkpointing else call_directly
    temporal, motion = deepcopy((video.temporal, video.motion_adapter))
    net = VideoUNet(image, temporal, call_stage, motion_adapter=motion).requires_grad_(requires_grad=False)
    return net.float() if loop.mixed_precision == "no" else net


@torch.no_grad()
def merge_loras(network: nn.Module) -> None:
    """Merge LoRAs into the weights of their layers, in place."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())


def freeze_sample(sample: TrainingSample, num_frames: int) -> TrainingSample:
    """Turn each frame of an image or video into a frozen video."""
    frames = [view[number] for view in sample.views for number in range(len(view))]
    first = torch.zeros(len(frames), dtype=torch.long)
    views = still_moving.repeat_frame(torch.stack(frames)[:, None], first, num_frames)
    return TrainingSample(tuple(views), sample.caption)


def adapter_loss(
    model: Model,
    settings: VideoCustomisationSettings,
    encode_prompts: EncodePrompts,
    parts: Mapping[str, tuple[float, float]],
) -> LossFunction[VideoUNet, CustomisationBatch]:
    """Return the loss of step I or II for `training.fit`.

    parts: as for `batches.still_moving_loss`.
    """
    assert model.temporal is not None, "checked before"
    noise_of = partial(part_noise, model.temporal.noise_ratio, len(parts))
    return batches.still_moving_loss(model, settings.error, encode_prompts, parts, noise_of)


def part_noise(ratio: float, parts: int, seed: int, x0: Latents) -> Latents:
    """Return the noise of a batch; the parts of a sample have the noises of consecutive clips of one long video."""
    frames, shape = x0.shape[1], (len(x0) // parts, *x0.shape[2:])
    clips = (range(part * frames, (part + 1) * frames) for part in range(parts))
    return torch.cat([noise.partly_shared(ratio, seed, clip, shape, part) for part, clip in enumerate(clips)])


def spatial_adapter_parts(settings: VideoCustomisationSettings) -> dict[str, tuple[float, float]]:
    """Return the parts of a batch of step II: name -> scale of the motion adapter, weight of the loss."""
    natural = {"natural": (still_moving.MOVING, settings.natural_weight)} if settings.natural_weight else {}
    return {"still": (settings.still_scale, 1.0), **natural}


def with_motion_adapter(video: Model, motion: MotionAdapter | None) -> VideoUNet:
    """Return the model's network with this motion adapter, in the model's dtype."""
    if motion is not None:
        motion = deepcopy(motion).to(video.device, video.dtype)
    net = video.net
    return VideoUNet(net.image_unet, net.temporal, motion_adapter=motion, spatial_adapter=net.spatial_adapter)


def without_adapters(model: Model) -> Model:
    """Return a model as it is saved in a folder: without its motion adapter, LoRAs merged into the text encoders."""
    net = with_motion_adapter(model, None).to(model.dtype)
    return replace(model, net=net, text_encoders=tuple(_merge_text_lora(each) for each in model.text_encoders))


def _merge_text_lora(text: TextEncoder) -> TextEncoder:
    network = deepcopy(text.network)
    names = list(getattr(network, "peft_config", {}))
    merge_loras(network)
    if names:
        network.delete_adapter(names)  # or transformers would save the adapter only
    return replace(text, network=network)


def all_captions(parts: Sequence[Sequence[TrainingSample]]) -> list[str]:
    """Return the different captions of a training, and the empty one."""
    return ["", *dict.fromkeys(each.caption for part in parts for each in part)]


def train_motion_adapter(
    video: Model,
    output: str | Path,
    *,
    natural_videos: str | Path | None = None,
    settings: VideoCustomisationSettings | None = None,
) -> Generator[PhaseProgress, None, None]:
    """Train a motion adapter for a video model, to be used for all subjects and styles; resumes in the same folder.

    Args:
        video: a video model; its own motion adapter, if it has one, is ignored.
        output: a folder of this training alone, at the end with `motion_adapter.safetensors`, for
            `kineograph.load(motion_adapter=...)`.
        natural_videos, settings: as for `customise_video`; `default_video_settings(video, "subject")` unless given.

    Yields every natural video and every step. Raises InputError and OSError as `customise_video` does.
    """
    settings = settings or default_video_settings(video, "subject")
    natural = prepare_natural_videos(video, settings, natural_videos)
    check_natural_videos(natural)
    return run_motion_adapter_training(natural, Path(output))


def run_motion_adapter_training(natural: NaturalVideos, output: Path) -> Generator[PhaseProgress, None, None]:
    """Run `train_motion_adapter` after its checks."""
    samples = list[TrainingSample]()
    with lock_folder(output):
        yield from natural_videos_phase(natural, output, samples)
        yield from motion_adapter_phase(natural, output, samples)


def motion_adapter_phase(
    natural: NaturalVideos, output: Path, samples: list[TrainingSample]
) -> Generator[PhaseProgress, None, None]:
    """Train the motion adapter on frozen videos, made of the frames of natural ones, and write its file."""
    settings, video = natural.settings, natural.video
    loop, file = settings.motion_training, output / MOTION_ADAPTER_FILE
    net = motion_adapter_network(video, settings)
    parts = [[freeze_sample(each, natural.num_frames) for each in samples]]
    encode_prompts = batches.precomputed_conditions(video, all_captions(parts), natural.size, settings.fps)
    sample_timesteps = timestep_sampler(settings.levels, video.schedule)

    def write() -> None:
        temporal = video.net.temporal
        assert net.motion_adapter is not None and temporal is not None
        adapter_files.save_motion_adapter(net.motion_adapter, temporal, file, name=temporal_layers_name(video))

    yield from train_phase(
        "motion_adapter",
        net,
        loop,
        output / "motion_adapter",
        load_batch=batches.sample_batch_loader(parts, loop.seed, settings.caption_dropout, sample_timesteps),
        loss=adapter_loss(video, settings, encode_prompts, STEP_I_PARTS),
        facts={
            "motion": settings.motion.model_dump(mode="json"),
            **{name: settings.resume_settings()[name] for name in ("caption_dropout", "levels", "error", "fps")},
            "natural": natural.facts(),
            "model": fingerprints(video),
        },
        result=file,
        write_result=write,
    )


def read_trained_motion_adapter(video: Model, file: Path) -> MotionAdapter:
    """Read the motion adapter that was trained for this video model."""
    assert video.net.temporal is not None, "checked before"
    adapter = adapter_files.read_adapter_file(file, "motion", HubOptions())
    return adapter_files.build_motion_adapter(adapter, video.net.temporal, temporal_layers_name(video))
