"""Peak memory of a run, predicted from the configurations of its networks before weights are loaded.

A network is built without memory and called once on tensors without memory (torch's FakeTensorMode): the sizes of the
tensors that are alive at once are added up, operation by operation. So the prediction follows from the forward pass
itself, for any architecture, chunk size and dtype. Not in it are ControlNets' activations, LoRAs, and the converted
networks of OpenVINO.
"""

from __future__ import annotations

import ctypes
import logging
import re
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kineograph.errors import InputError, InputWarning, shown
from kineograph.models.conditioning.condition import Condition
from kineograph.models.description import Description, Networks, vae_scale_factor
from kineograph.models.network_folders import empty_network
from kineograph.models.placement import fastest_memory_format
from kineograph.models.temporal.temporal_layers import TemporalLayers
from kineograph.models.unet.frame_attention import FrameAttention, first, own
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.models.vae.autoencoder import VAES, frames_per_chunk, tiled

if TYPE_CHECKING:
    from kineograph.models.temporal.config import TemporalConfig

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SIZE = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT]?I?B)\s*", re.IGNORECASE)
MOST_CHUNK = 8  # frames of an image model that are evaluated together; more are hardly faster
# Parameters of the text encoders by the width of the tokens that a U-Net reads: CLIP ViT-L, OpenCLIP ViT-H, SDXL's two.
TEXT_ENCODERS = {768: 123e6, 1024: 340e6, 2048: 818e6}
CONTROLNET_SHARE = 0.42  # of a ControlNet's parameters to its U-Net's
PROCESS = 520e6  # bytes of Python, torch, diffusers and what else a run imports, on a CPU
MEASURED_TILES = 2, 3  # in each direction, of a VAE that decodes in tiles
HEAP = 1.1  # a process's memory over that of its tensors: what malloc keeps, and buffers of matrix products
TOKENS, IMAGES = 77, "ip_image_proj"
CHANNELS_SQUARED, FAR_SMALLER = 1600, 0.1  # a U-Net takes fewer bytes for each squared number of a block's channels

FREE_SHARE = 0.9  # of the free memory that a run may take

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What of a run decides its memory.

    videos       that are generated together
    frames       that the U-Net evaluates together
    branches     of guidance, evaluated at once
    controls     number of ControlNets
    offload      as in `load`
    """

    videos: int
    frames: int
    height: int
    width: int
    branches: int = 1
    vae_tiling: bool = False
    controls: int = 0
    offload: str | None = None


class Peak(NamedTuple):
    """Predicted peak memory in bytes: while weights are loaded, while the U-Net samples, and while the VAE decodes."""

    loading: float
    sampling: float
    decoding: float

    @property
    def total(self) -> float:
        """The largest."""
        return max(self)


def parse_memory_size(text: str) -> int:
    """Return the bytes of a size such as 6GB, 500MB or 5.5GiB. Raises InputError for another text."""
    match = SIZE.fullmatch(text)
    if match is None or not (size := int(float(match[1]) * UNITS.get(match[2].upper(), 0))):
        raise InputError(f"`memory` is a size such as 6GB, 500MB or 5.5GiB, not {shown(text)}")
    return size


def format_size(size: float) -> str:
    """Return a number of bytes in GB, with one decimal."""
    return f"{size / 1e9:.1f} GB"


def predict_peak(networks: Networks, measured: Measured, run: Run) -> Peak:
    """Return the peak memory of a run: of the process on a CPU, of the device otherwise (as CUDA counts)."""
    sizes, frames = measured.weights, run.videos * run.frames
    unet = run.branches * (measured.unet + measured.unet_of_a_frame * frames)
    vae = measured.vae_tiled if run.vae_tiling else measured.vae
    controls = CONTROLNET_SHARE * sizes.unet * run.controls
    weights = sizes.unet + sizes.vae + sizes.text + controls
    if networks.device != "cpu":
        if run.offload == "model":
            return Peak(max(sizes), sizes.unet + controls + unet, sizes.vae + vae)
        if run.offload is not None:
            return Peak(0, unet, vae)
        return Peak(weights, weights + unet, weights + vae)
    if networks.loaded:
        start = resident_memory()
        return Peak(start, start + HEAP * unet, start + HEAP * vae)
    # While the U-Net is read, the pages of its file are mapped beside the weights.
    stored = sizes.unet * (networks.file_dtype or networks.dtype).itemsize / networks.dtype.itemsize
    held = PROCESS + weights
    return Peak(PROCESS + sizes.unet + stored, held + HEAP * unet, held + HEAP * vae)


def fit_run(description: Description, run: Run, limit: float, *, by_frames_alone: bool) -> Run:
    """Return the run with fewer frames at once, tiles of the VAE or offloading, as little of it as fits into a limit.

    by_frames_alone: the only thing to change; then what fits best is returned if nothing fits. Otherwise raises
    InputError if nothing fits.
    """
    networks = _known(description)
    measured = measure(networks, description.temporal, run)
    frames = [run.frames] if description.is_video else [*range(run.frames, 0, -1)]
    candidates = [run._replace(frames=each) for each in frames]
    if not by_frames_alone:
        candidates += [each._replace(vae_tiling=True) for each in candidates]
        if networks.device.startswith("cuda") and not networks.loaded:
            candidates += [each._replace(offload=way) for way in ("model", "sequential") for each in candidates]
    for candidate in candidates:
        peak = predict_peak(networks, measured, candidate).total
        if peak <= limit:
            log.info("about %s of memory with %s", format_size(peak), candidate)
            return candidate
    if by_frames_alone:
        return candidates[-1]
    raise InputError(explain_too_large(description, candidates[-1], peak, limit))


def check_fits(description: Description, run: Run) -> None:
    """Warn, before weights are loaded, if a run needs more memory than is free.

    Nothing is computed for a network that is far smaller than the free memory.
    """
    networks = description.networks
    if networks is None or networks.loaded or (free := available_memory(networks.device)) is None:
        return
    channels = networks.unet.get("block_out_channels") or ()
    if CHANNELS_SQUARED * sum(each**2 for each in channels) < FAR_SMALLER * free:
        return
    peak = predict_peak(networks, measure(networks, description.temporal, run), run).total
    log.info("%s needs about %s of memory; %s are free", description.name, format_size(peak), format_size(free))
    if peak > free:
        warnings.warn(explain_too_large(description, run, peak, free), InputWarning, stacklevel=3)


def _known(description: Description) -> Networks:
    """Return the configurations of a model's networks."""
    if description.networks is None:
        raise InputError(
            f"the memory that {description.name} needs follows from its weights only: give a `chunk_size`, not `memory`"
        )
    return description.networks


def explain_too_large(description: Description, run: Run, peak: float, limit: float) -> str:
    """Return the message for a run that needs more memory than there is: how much, and what to do."""
    networks = _known(description)
    advice = [] if description.is_video or run.frames == 1 else [f"a `chunk_size` below {run.frames}"]
    advice += [] if run.videos == 1 else ["a `batch_size` of 1"]
    advice += [f"a size below {run.width} x {run.height}"]
    advice += ["`dtype` bfloat16"] if networks.dtype == torch.float32 else []
    advice += ["`offload` sequential"] if networks.device != "cpu" and run.offload != "sequential" else []
    frames = f"{run.frames} frame{'s' if run.frames > 1 else ''} at once"
    return (
        f"{description.name} needs about {format_size(peak)} of memory for {run.width} x {run.height} with {frames}, "
        f"and there are {format_size(limit)}: take {' or '.join(advice)}"
    )


def free_memory(description: Description) -> float | None:
    """Return the bytes that a run may take in all; None if that is not known. A tenth of what is free is left."""
    networks = _known(description)
    free = available_memory(networks.device)
    if free is None:
        return None
    return FREE_SHARE * free + (resident_memory() if networks.loaded and networks.device == "cpu" else 0.0)


def available_memory(device: str) -> float | None:
    """Return the bytes that are free on a device; None if that is not known."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    if device != "cpu" or not file.is_file():
        return None
    return float(_read_kilobytes(file)["MemAvailable"])


def trim_heap() -> None:
    """Return free memory between allocations to the system, where malloc is glibc's: it would keep much of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def resident_memory() -> float:
    """Return the memory of this process in bytes."""
    file = Path("/proc/self/status")
    return float(_read_kilobytes(file)["VmRSS"]) if file.is_file() else PROCESS


def _read_kilobytes(file: Path) -> dict[str, int]:
    """Return the entries of a file of Linux's /proc, in bytes."""
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return {name: 1024 * int(value.split()[0]) for name, _, value in lines if value.endswith("kB")}


# --- networks without memory


class Weights(NamedTuple):
    """Bytes of the networks."""

    unet: float
    vae: float
    text: float


class Measured(NamedTuple):
    """Bytes of the networks' weights, and of what is alive at once in one evaluation of the U-Net and of the VAE."""

    weights: Weights
    unet: float
    unet_of_a_frame: float
    vae: float
    vae_tiled: float


def measure(networks: Networks, temporal: TemporalConfig | None, run: Run) -> Measured:
    """Measure networks of these configurations at a run's size, without memory. A second or two for SD 1.5."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # a second, of sympy

    without_images = {"encoder_hid_dim_type": None} if networks.unet.get("encoder_hid_dim_type") == IMAGES else {}
    unet: Any = empty_network(UNet2DConditionModel, {**networks.unet, **without_images}, "the U-Net")
    vae: Any = empty_network(VAES[networks.vae.get("_class_name", "AutoencoderKL")], networks.vae, "the VAE")
    cell = vae_scale_factor(networks.vae)
    height, width = run.height // cell, run.width // cell
    with torch.device("meta"):
        net = VideoUNet(unet, None if temporal is None else TemporalLayers(unet, temporal))
    weights = _weights(net, vae, networks.dtype)
    with FakeTensorMode(), torch.no_grad():
        for network in (net, vae):
            _place_fake(network, networks.dtype)

        def evaluate(frames: int) -> float:
            return count_live_bytes(lambda: _evaluate_unet(net, frames, height, width), net)

        if temporal is None:
            one, two = evaluate(1), evaluate(2)
            fixed, of_a_frame = 2 * one - two, two - one
        else:
            fixed, of_a_frame = evaluate(run.frames), 0.0
        size = min(frames_per_chunk(run.height * run.width), run.frames) * run.videos
        z = torch.empty(size, vae.config.latent_channels, height, width, dtype=networks.dtype)
        decoding = count_live_bytes(partial(vae.decode, z), vae)
        decoding_in_tiles = _measure_tiles(tiled(vae), z)
    return Measured(weights, fixed, of_a_frame, decoding, decoding_in_tiles)


def _measure_tiles(vae: Any, z: Tensor) -> float:
    """Return the bytes of decoding in tiles: of many tiles by those of a few, as there may be thousands."""

    def few(tiles: int) -> Tensor:
        return z[..., : tiles * vae.tile_latent_min_size, : tiles * vae.tile_latent_min_size]

    less, more = (few(tiles) for tiles in MEASURED_TILES)
    before, after = (count_live_bytes(partial(vae.decode, each), vae) for each in (less, more))
    if more.numel() == z.numel():
        return after
    return after + (after - before) * (z.numel() - more.numel()) / (more.numel() - less.numel())


def _weights(net: VideoUNet, vae: nn.Module, dtype: torch.dtype) -> Weights:
    counts = [sum(each.numel() for each in network.parameters()) for network in (net, vae)]
    text = TEXT_ENCODERS.get(net.image_unet.config.cross_attention_dim, 0)
    return Weights(*(dtype.itemsize * each for each in (*counts, text)))


def _place_fake(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace the weights of a network on the meta device by tensors on the CPU, which FakeTensorMode gives no memory.

    On the meta device attention would be counted as another algorithm.
    """
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=dtype)
                fake = fake.to(memory_format=fastest_memory_format(fake.device, dtype)) if fake.ndim == 4 else fake
                module._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _evaluate_unet(net: VideoUNet, frames: int, height: int, width: int) -> None:
    config: Any = net.image_unet.config
    tokens = torch.empty(1, TOKENS, config.cross_attention_dim)
    added = config.projection_class_embeddings_input_dim if config.addition_embed_type is not None else 0
    added += net.has_frame_rate
    condition = Condition(tokens, embedding=torch.empty(1, added) if added else None)
    z = torch.empty(1, frames, config.in_channels, height, width)
    attention: FrameAttention = first if net.temporal is None else own
    net(z, 500.0, condition, frame_attention=attention, cache={} if net.temporal is None else None)


def count_live_bytes(function: Callable[[], object], network: nn.Module) -> float:
    """Return the most bytes of tensors that are alive at once while a function runs, without a network's weights."""
    with _LiveTensors({id_of_storage(each) for each in network.parameters()}) as live:
        function()
    return float(live.peak)


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations return, until they are freed. ignored: storages."""

    def __init__(self, ignored: set[int]) -> None:
        super().__init__()
        self.ignored, self.sizes = ignored, dict[int, int]()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages that it made."""
        output = func(*args, **(kwargs or {}))
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and (key := id_of_storage(each)) not in self.ignored | self.sizes.keys():
                storage = each.untyped_storage()
                self.sizes[key] = storage.nbytes()
                self.now += self.sizes[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, key)
        return output

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def id_of_storage(tensor: Tensor) -> int:
    """Return a number that the storage of a tensor has as long as it lives."""
    return int(tensor.untyped_storage()._cdata)
