"""The networks that learn: copies of a model's, so that the model stays as it is, and the files they become."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from kineograph.errors import InputError
from kineograph.hub import HubOptions
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats import lora as adapters
from kineograph.models.loading.load import load
from kineograph.models.loading.save import save
from kineograph.models.model import Model
from kineograph.models.placement import Placement
from kineograph.models.unet.forward import call_directly
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.training.customise.settings import ImageCustomisationSettings, LoraSettings
from kineograph.training.norms import use_fast_group_norm
from kineograph.training.temporal_layers.model import call_checkpointed

NAME, DESCRIPTION = "default", "customised.json"
OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


class TrainedNetworks(nn.Module):
    """An image network and, where it learns too, a text encoder."""

    def __init__(self, unet: VideoUNet, text: PreTrainedModel | None) -> None:
        super().__init__()
        self.unet = unet
        self.text = text


def trainable_copy(model: Model, settings: ImageCustomisationSettings) -> TrainedNetworks:
    """Copies of the model's networks as their training begins: with a LoRA that changes nothing yet, or as a whole.

    What learns is float32. Raises InputError for a model that cannot be customised so.
    """
    _check(model, settings)
    image, text = deepcopy(model.net.image_unet).requires_grad_(requires_grad=False), None
    if settings.lora is None:
        image = image.float().requires_grad_(requires_grad=True)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed)
            _put(image, settings.lora.targets, settings.lora.rank, settings.lora)
            if settings.lora.text_rank:
                text = deepcopy(model.text[0].network).requires_grad_(requires_grad=False).eval()
                _put(text, OF_TEXT, settings.lora.text_rank, settings.lora)
    place = Placement(model.device, model.dtype, "as the model is")
    image = image.to(place.device, memory_format=place.memory_format)
    image = use_fast_group_norm(image) if place.device.type == "cpu" else image
    through = call_checkpointed if settings.gradient_checkpointing else call_directly
    return TrainedNetworks(VideoUNet(image, None, through).eval(), None if text is None else text.to(place.device))


def _check(model: Model, settings: ImageCustomisationSettings) -> None:
    if model.temporal is not None:
        raise InputError(
            f"{model.name} is a video model, and a subject or style is learnt by an image model: pass that one, such "
            "as pocket, and put the layers along time around it afterwards"
        )
    extra = model.net.image_unet.config.in_channels - model.vae.config.latent_channels
    if extra:
        raise InputError(
            f"{model.name} reads {extra} channels beside the latents, for inpainting or editing: pass a text-to-image "
            "model"
        )
    networks = (model.net, *(each.network for each in model.text))
    if any(isinstance(layer, LoraLayer) for network in networks for layer in network.modules()):
        raise InputError(f"{model.name} has LoRAs on it: customise it without, and load both together afterwards")
    if settings.lora and settings.lora.text_rank and len(model.text) > 1:
        raise InputError(f"{model.name} has several text encoders, as SDXL has, which learn nothing here: no text_rank")


def _put(network: nn.Module, targets: tuple[str, ...], rank: int, lora: LoraSettings) -> None:
    """Puts matrices beside the layers whose names end so."""
    ends = tuple(f".{target}" for target in targets)
    found = [name for name, layer in network.named_modules() if name.endswith(ends) and _is_plain(layer)]
    if missing := [end[1:] for end in ends if not any(name.endswith(end) for name in found)]:
        raise InputError(f"no layer of {type(network).__name__} has a name that ends in {', '.join(missing)}")
    alpha = rank * (1.0 if lora.alpha is None else lora.alpha / lora.rank)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=found), network, adapter_name=NAME)
    for name, weight in network.named_parameters():
        weight.requires_grad_(".lora_" in name)
        if ".lora_" in name:
            weight.data = weight.data.float()


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear | nn.Conv2d)


def model_with(model: Model, trainee: TrainedNetworks) -> Model:
    """The model with the networks that learn in place of its own."""
    texts = model.text
    if trainee.text is not None:
        texts = (TextEncoder(texts[0].tokenizer, trainee.text), *texts[1:])
    return replace(model, net=trainee.unet, text=texts, vocabulary=None)


def save_customisation(model: Model, trainee: TrainedNetworks, folder: Path, card: Mapping[str, Any]) -> None:
    """Writes what was learnt: `pytorch_lora_weights.safetensors`, or the whole model as a diffusers folder.

    card: what is said about it, in `customised.json` and in the LoRA's header.
    """
    if any(isinstance(layer, LoraLayer) for layer in trainee.unet.modules()):
        folder.mkdir(parents=True)
        save_file(
            lora_state_dict(trainee),
            folder / adapters.LORA_FILES[0],
            {"format": "pt", adapters.CUSTOMISE_HEADER: json.dumps(card)},
        )
    else:
        whole = deepcopy(trainee.unet.image_unet).to(model.dtype)
        words = None if model.vocabulary is None else model.vocabulary | set(card["words"])
        save(replace(model, net=VideoUNet(whole), vocabulary=words), folder)
    (folder / DESCRIPTION).write_text(json.dumps(card, indent=1), encoding="utf-8")


def lora_state_dict(trainee: TrainedNetworks) -> dict[str, Tensor]:
    """The matrices by the names that diffusers and peft give them, in half precision, as is usual.

    What they count (alpha / rank) is multiplied in: then no reader of the file has to know of it.
    """
    text = () if trainee.text is None else _matrices("text_encoder", trainee.text)
    return dict([*_matrices("unet", trainee.unet.image_unet), *text])


def _matrices(part: str, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight * layer.scaling[NAME]
            for letter, weight in (("A", down), ("B", up)):
                yield f"{part}.{path}.lora_{letter}.weight", weight.detach().half().cpu().contiguous()


def load_customised(model: Model, folder: str | Path) -> Model:
    """The model with what a customising left in its folder `final`; the model itself stays as it is.

    Raises InputError when nothing is there, and when it was made from a model of another architecture.
    """
    folder = Path(folder)
    card = read_description(folder)
    if not (folder / adapters.LORA_FILES[0]).is_file():
        return replace(load(folder, device=model.device, dtype=model.dtype), subject=card["name"])
    image, texts = deepcopy(model.net.image_unet), [deepcopy(each.network) for each in model.text]
    names = ("unet", "text_encoder", "text_encoder_2")
    adapters.load_lora(dict(zip(names, (image, *texts), strict=False)), folder, 1.0, HubOptions())
    encoders = zip(model.text, texts, strict=True)
    return replace(
        model,
        net=VideoUNet(image),
        text=tuple(TextEncoder(each.tokenizer, network) for each, network in encoders),
        vocabulary=None if model.vocabulary is None else model.vocabulary | set(card["words"]),
        subject=card["name"],
    )


def read_description(folder: Path) -> dict[str, Any]:
    """What a customising says about what it left. Raises InputError when there is nothing."""
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no customised model ({error}): expected the folder `final` of one") from error
