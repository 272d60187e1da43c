"""Models that a worker keeps loaded, within a budget of memory: the least recently used one goes first."""

from __future__ import annotations

import gc
import logging
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from kineograph.errors import is_out_of_memory
from kineograph.models.formats.lora import list_loras
from kineograph.models.loading.load import load
from kineograph.models.loading.options import ModelSource
from kineograph.models.model import Model
from kineograph.models.placement import choose_placement
from kineograph.service.jobs import to_json

log = logging.getLogger(__name__)

SHARE = 0.5  # of the device's memory, for the weights of models


class Loaded(NamedTuple):
    """A model, its name, and the bytes of its weights."""

    model: Model
    name: str
    bytes: int


@dataclass(frozen=True)
class LoadedModels:
    """Models on one device, by name and options of `load`, without the LoRAs of requests.

    budget: bytes of all weights; models in use stay whatever their size.
    """

    device: torch.device
    dtype: str | None
    budget: float
    loaded: dict[str, Loaded] = field(default_factory=dict)  # the most recently used one last

    @classmethod
    def on(cls, device: str | None = None, dtype: str | None = None, budget: float | None = None) -> LoadedModels:
        """Return no models yet, for this device. budget: None for half of the device's memory."""
        place = choose_placement(device, dtype).device
        return cls(place, dtype, SHARE * device_memory(place) if budget is None else budget)

    def __len__(self) -> int:
        return len(self.loaded)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models that are loaded; also for other threads."""
        return tuple(dict.fromkeys(each.name for each in list(self.loaded.values())))

    def get(self, *sources: ModelSource) -> list[Model]:
        """Return the models that a request uses together; those that are missing are loaded.

        LoRAs are added to layers of the returned model's own, whose weights are those of the model that is kept.
        """
        models, used = list[Model](), set[str]()
        for source in sources:
            base = ModelSource(source.name, {name: each for name, each in source.options.items() if name != "lora"})
            key = to_json(base._asdict())
            found = self.loaded.pop(key, None) or self._load(base)
            self.loaded[key] = found
            used.add(key)
            model = found.model
            for file, scale in list_loras(source.options.get("lora")):
                model = model.load_lora_weights(file, scale)
            models.append(model)
        self._make_room(used)
        return models

    def unload_all(self) -> None:
        """Let go of all models."""
        self.loaded.clear()
        self._free_memory()

    def _load(self, source: ModelSource) -> Loaded:
        log.info("loading %s", source.name)
        placed: dict[str, Any] = {**source.options, "device": self.device, "dtype": self.dtype}
        try:
            model = load(source.name, **placed)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error) or not self.loaded:
                raise
            log.warning("no memory for %s beside other models: they are unloaded", source.name)
            self.unload_all()
            model = load(source.name, **placed)
        return Loaded(model, source.name, count_bytes(model))

    def _make_room(self, used: Collection[str]) -> None:
        for key in [each for each in self.loaded if each not in used]:
            if sum(each.bytes for each in self.loaded.values()) <= self.budget:
                return
            log.info("unloading %s", self.loaded[key].name)
            del self.loaded[key]
            self._free_memory()

    def _free_memory(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def count_bytes(model: Model) -> int:
    """Return the bytes of a model's weights, without ControlNets, which open when they are used."""
    weights = {id(each): each.numel() * each.element_size() for each in _weights(model)}
    return sum(weights.values())


def _weights(model: Model) -> Iterator[torch.Tensor]:
    encoder = None if model.image_encoder is None else model.image_encoder.network
    networks: list[nn.Module | None] = [model.net, *model.networks.values(), model.vae, model.temporal_decoder, encoder]
    for network in networks:
        if network is not None:
            yield from chain(network.parameters(), network.buffers())


def device_memory(device: torch.device) -> float:
    """Return the bytes of memory of a device; infinite where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if not hasattr(os, "sysconf"):
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
