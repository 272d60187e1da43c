"""Networks of a customisation: trainable copies of a model's, saving them, and loading them into models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.methods.still_moving import inject
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import adapter_files
from kineograph.models.formats import lora as lora_files
from kineograph.models.formats.tensor_files import write_tensors
from kineograph.models.loading.load import load
from kineograph.models.loading.provenance import source_name
from kineograph.models.loading.save import save
from kineograph.models.lora_layers import has_loras
from kineograph.models.model import Model
from kineograph.models.unet.forward import call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise.phases import IMAGE, WHOLE
from kineograph.training.customise.settings import ImageCustomisationSettings, LoraSettings
from kineograph.training.gradients import seeded
from kineograph.training.group_norm import prepare_for_device
from kineograph.training.temporal_layers.initial_model import call_checkpointed
from kineograph.training.temporal_layers.run import FINAL

LORA_NAME, DESCRIPTION = "default", "customised.json"
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
Network = TypeVar("Network", bound=nn.Module)


class TrainedNetworks(nn.Module):
    """An image network and, if it is trained too, a text encoder."""

    def __init__(self, unet: VideoUNet, text: PreTrainedModel | None) -> None:
        super().__init__()
        self.unet = unet
        self.text = text


def trainable_copy(model: Model, settings: ImageCustomisationSettings) -> TrainedNetworks:
    """Copy the model's networks for training: with a LoRA initialised to no effect, or with all weights trained.

    Trained weights are float32, and so are frozen ones unless the loop computes in mixed precision.
    """
    image, text = _frozen_copy(model.net.image_unet, settings), None
    if settings.lora is None:
        image = image.float().requires_grad_(requires_grad=True)
    else:
        with seeded(settings.training.seed):
            _add_lora(image, settings.lora.targets, settings.lora.rank, settings.lora)
            if settings.lora.text_rank:
                text = _frozen_copy(model.text_encoders[0].network, settings).eval()
                _add_lora(text, TEXT_TARGETS, settings.lora.text_rank, settings.lora)
    image = prepare_for_device(image, model.device, model.dtype)
    call_stage = call_checkpointed if settings.gradient_checkpointing else call_directly
    return TrainedNetworks(VideoUNet(image, None, call_stage).eval(), None if text is None else text.to(model.device))


def _frozen_copy(network: Network, settings: ImageCustomisationSettings) -> Network:
    copied = deepcopy(network).requires_grad_(requires_grad=False)
    return copied.float() if settings.training.mixed_precision == "no" else copied


def check_trainable(model: Model, settings: ImageCustomisationSettings) -> None:
    """Raise InputError for a model that cannot be customised with these settings."""
    if model.temporal is not None:
        raise InputError(
            f"{model.name} is a video model, and a subject or style is learnt by an image model: pass that one, such "
            "as pocket, and add the temporal layers to it afterwards"
        )
    extra = model.net.image_unet.config.in_channels - model.vae.config.latent_channels
    if extra:
        raise InputError(
            f"{model.name} has {extra} input channels beside the latents, for inpainting or editing: pass a "
            "text-to-image model"
        )
    networks = (model.net, *(each.network for each in model.text_encoders))
    if any(has_loras(network) for network in networks):
        raise InputError(f"{model.name} has LoRAs on it: customise it without, and load both together afterwards")
    if settings.lora and settings.lora.text_rank and len(model.text_encoders) > 1:
        raise InputError(
            f"{model.name} has several text encoders, as SDXL has, which cannot be trained here: no text_rank"
        )
    if settings.lora:
        lora_layers(model.net.image_unet, settings.lora.targets)
        if settings.lora.text_rank:
            lora_layers(model.text_encoders[0].network, TEXT_TARGETS)


def lora_layers(network: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the layers that end in one of `targets`. Raises InputError for one that no name ends in."""
    suffixes = tuple(f".{target}" for target in targets)
    fitting = (name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    layers = [name for name in fitting if name.endswith(suffixes)]
    if missing := [suffix[1:] for suffix in suffixes if not any(name.endswith(suffix) for name in layers)]:
        raise InputError(f"no layer of {type(network).__name__} has a name that ends in {', '.join(missing)}")
    return layers


def _add_lora(network: nn.Module, targets: tuple[str, ...], rank: int, lora: LoraSettings) -> None:
    """Add LoRA matrices to the layers whose names end in one of `targets`."""
    alpha = rank * (1.0 if lora.alpha is None else lora.alpha / lora.rank)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=lora_layers(network, targets))
    inject_adapter_in_model(config, network, adapter_name=LORA_NAME)
    for name, weight in network.named_parameters():
        weight.requires_grad_(".lora_" in name)
        if ".lora_" in name:
            weight.data = weight.data.float()


def model_with(model: Model, networks: TrainedNetworks) -> Model:
    """Return the model with the networks in training in place of its own."""
    texts = model.text_encoders
    if networks.text is not None:
        texts = (TextEncoder(texts[0].tokenizer, networks.text), *texts[1:])
    dtype = networks.unet.image_unet.dtype  # whole networks are trained in float32
    return replace(model, net=networks.unet, text_encoders=texts, vocabulary=None, dtype=dtype)


def save_customisation(model: Model, networks: TrainedNetworks, folder: Path, description: Mapping[str, Any]) -> None:
    """Write the result: `pytorch_lora_weights.safetensors`, or the whole model as a diffusers folder.

    networks: their training has ended; a whole network is turned into the model's dtype in place.
    description: JSON values for `customised.json` and the header of the LoRA.
    """
    if any(isinstance(layer, LoraLayer) for layer in networks.unet.modules()):
        folder.mkdir(parents=True)
        header = {lora_files.CUSTOMISE_HEADER: json.dumps(description)}
        write_tensors(lora_state_dict(networks), folder / lora_files.LORA_FILES[0], header)
    else:
        whole = networks.unet.image_unet.to(model.dtype)
        words = None if model.vocabulary is None else model.vocabulary | set(description["words"])
        save(replace(model, net=VideoUNet(whole), vocabulary=words), folder)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def lora_state_dict(networks: TrainedNetworks) -> dict[str, Tensor]:
    """Return the LoRA's matrices by the names of diffusers and peft, in half precision.

    The scale (alpha / rank) is multiplied in, so that no reader of the file needs it.
    """
    text = () if networks.text is None else _matrices("text_encoder", networks.text)
    return dict([*_matrices("unet", networks.unet.image_unet), *text])


def _matrices(part: str, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            down = layer.lora_A[LORA_NAME].weight
            up = layer.lora_B[LORA_NAME].weight * layer.scaling[LORA_NAME]
            for letter, weight in (("A", down), ("B", up)):
                yield f"{part}.{path}.lora_{letter}.weight", weight.detach().half().cpu().contiguous()


def load_customised(model: Model, folder: str | Path) -> Model:
    """Return the model with the customisation in a folder `final`; the given model is not changed.

    Raises InputError when there is none, and when it was made from a model of another architecture.
    """
    folder = Path(folder)
    description = read_description(folder)
    if not (folder / lora_files.LORA_FILES[0]).is_file():
        return replace(load(folder, device=model.device, dtype=model.dtype), subject=description["name"])
    image, texts = deepcopy(model.net.image_unet), [deepcopy(each.network) for each in model.text_encoders]
    names = ("unet", "text_encoder", "text_encoder_2")
    lora_files.load_lora(dict(zip(names, (image, *texts), strict=False)), folder, 1.0, HubOptions())
    encoders = zip(model.text_encoders, texts, strict=True)
    return replace(
        model,
        net=VideoUNet(image),
        text_encoders=tuple(TextEncoder(each.tokenizer, network) for each, network in encoders),
        vocabulary=None if model.vocabulary is None else model.vocabulary | set(description["words"]),
        subject=description["name"],
    )


def read_description(folder: Path) -> dict[str, Any]:
    """Read `customised.json`. Raises InputError when there is none."""
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no customised model ({error}): expected the folder `final` of one") from error


def temporal_layers_name(video: Model) -> str:
    """Return the name of a model's temporal layers, which may come from another source than its image network."""
    return source_name(video.settings.get("motion") or video.name)


def inject_customised(video: Model, final: str | Path) -> Model:
    """Return the video model with a customised image network and no spatial adapter: the baseline of plain injection.

    final: the folder `final` of `customise_image` or `train_interleaved`, or `image/final` of `customise_video`.
    The given model is not changed. Raises InputError when the folder holds no customisation, and when it was made from
    a model of another architecture.
    """
    customised = load_customised(replace(video, net=VideoUNet(video.net.image_unet)), final)
    return replace(
        video, net=inject(customised.net.image_unet, video.net), text_encoders=customised.text_encoders,
        vocabulary=customised.vocabulary, subject=customised.subject,
    )  # fmt: skip


def load_customised_video(video: Model, output: str | Path) -> Model:
    """Return the video model with the result of `customise_video` in this folder; the given model is not changed.

    Raises InputError when there is none, and when it was made from another model.
    """
    output = Path(output)
    if (output / WHOLE).is_dir():
        whole = load(output / WHOLE, device=video.device, dtype=video.dtype)
        subject = read_description(output / IMAGE / FINAL)["name"]
        return replace(whole, subject=subject, controls=video.controls, temporal_decoder=video.temporal_decoder)
    assert video.net.temporal is not None, "a video model"
    adapter = adapter_files.read_adapter_file(output, "customised", HubOptions())
    spatial = adapter_files.build_spatial_adapter(adapter, video.net.temporal, temporal_layers_name(video))
    model = inject_customised(video, output / IMAGE / FINAL)
    spatial, net = deepcopy(spatial).to(video.device, video.dtype), model.net
    adapted = VideoUNet(net.image_unet, net.temporal, motion_adapter=net.motion_adapter, spatial_adapter=spatial)
    return replace(model, net=adapted)
