"""Calls of networks through OpenVINO: graphs in memory and on disk; torch where no graph is right."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kineograph.models.memory import trim_heap
from kineograph.models.openvino import networks
from kineograph.models.openvino.cache import Conversions, GraphCache, StoredGraph, hash_values, network_state
from kineograph.models.openvino.graph import Body, Graph, Threads, convert, open_graph
from kineograph.models.openvino.networks import Call
from kineograph.models.unet.controlnet import RunControl, VideoControlNet
from kineograph.models.unet.video_unet import RunLayers, VideoUNet

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Engine:
    """Graphs of networks, converted at their first use. Networks with changed weights are converted again.

    cache   graphs on disk
    graphs  of each network, by its state and what else a graph depends on; None where torch computes, since no graph is
            right on this machine
    cores   number of threads of all evaluations together
    """

    cache: GraphCache = field(default_factory=GraphCache)
    graphs: WeakKeyDictionary[nn.Module, dict[str, Graph | None]] = field(default_factory=WeakKeyDictionary)
    cores: int = field(default_factory=torch.get_num_threads)
    _lock: Lock = field(default_factory=Lock)

    def run_unet(self, net: VideoUNet) -> RunLayers:
        """Return the function that computes `VideoUNet.run_layers`, with the weights that the network has now."""
        return partial(networks.call_unet, self._bind(net))

    def run_controlnet(self, net: VideoControlNet) -> RunControl:
        """Return the function that computes `VideoControlNet.run_layers`, with the weights that the network has now."""
        return partial(networks.call_controlnet, self._bind(net))

    def finish(self, key: str) -> None:
        """Note that all graphs of a run are stored. key: of `choice.EngineChoice`."""
        if key:
            self.cache.note(key, Conversions(done=True))

    def _bind(self, network: nn.Module) -> Call:
        return partial(self._call, network_state(network))

    @torch.no_grad()
    def _call(
        self, state: str, network: nn.Module, fixed: Hashable, body: Body, tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Return a function of a network and tensors, by its graph.

        fixed: what else the function depends on; its `repr` says all of it.
        """
        threads = Threads(self.cores, max(1, self.cores // torch.get_num_threads()))
        described = repr((fixed, [tuple(each.shape) for each in tensors], threads))
        with self._lock:  # two guidance branches ask for the same graph
            graphs = self.graphs.setdefault(network, {})
            if state + described not in graphs:
                graphs[state + described] = self._open(network, described, body, tensors, threads)
            found = graphs[state + described]
        return body(network, tensors) if found is None else found(tensors)

    def _open(
        self, network: nn.Module, described: str, body: Body, tensors: Sequence[Tensor], threads: Threads
    ) -> Graph | None:
        key = hash_values(network, described)
        stored = self.cache.read(key)
        if stored is not None:
            return None if stored.exported is None else open_graph(stored.exported, stored.precision, threads)
        name, start = type(network).__name__, time.perf_counter()
        converted, precision = convert(network, body, tensors, threads)
        seconds = time.perf_counter() - start
        trim_heap()
        log.info("converted %s to an OpenVINO graph in %.1f s", name, seconds)
        if converted is None:
            log.warning("OpenVINO does not compute %s rightly on this machine: torch computes it", name)
        exported = None if converted is None else converted.export()
        self.cache.write(key, StoredGraph(precision, exported, seconds))
        return converted


@cache
def shared_engine() -> Engine:
    """Return the engine of this process."""
    return Engine()
