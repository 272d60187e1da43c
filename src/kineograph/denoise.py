"""The interface of a model in sampling, `(x, sigma) -> x0`, and wrappers: guidance, known frames, checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch

from kineograph.errors import InputError
from kineograph.latents import Latents, add_noise

Denoise = Callable[[Latents, float], Latents]


def classifier_free_guidance(denoise_cond: Denoise, denoise_uncond: Denoise, scale: float) -> Denoise:
    """Extrapolate from the unconditional estimate through the conditional one: `uncond + scale * (cond - uncond)`.

    With `scale == 1` this is `denoise_cond` itself: the unconditional model is never evaluated. On a CPU both are
    evaluated in parallel, each on half of the cores, which is faster than one after the other on all cores.
    Source: Ho & Salimans 2022, eq. 6, whose `w` is `scale - 1`, for x0 in place of eps.
    """
    if scale == 1:
        return denoise_cond

    def denoise(x: Latents, sigma: float) -> Latents:
        uncond, cond = _evaluate_all((denoise_uncond, denoise_cond), x, sigma)
        return (cond - uncond).mul_(scale).add_(uncond)  # in place: a long video's latents are large

    return denoise


def text_and_image_guidance(
    denoise_cond: Denoise, denoise_image: Denoise, denoise_uncond: Denoise, scale: float, image_scale: float
) -> Denoise:
    """Combine guidance by text and guidance by an image, for models with both conditions.

    denoise_cond    conditioned on text and image
    denoise_image   conditioned on the image alone
    denoise_uncond  conditioned on neither

    With `image_scale == 1` the last one cancels out and is never evaluated: two evaluations in place of three.
    Source: InstructPix2Pix (Brooks et al. 2023), eq. 3.
    """
    if image_scale == 1:
        return classifier_free_guidance(denoise_cond, denoise_image, scale)

    def denoise(x: Latents, sigma: float) -> Latents:
        uncond, image, cond = _evaluate_all((denoise_uncond, denoise_image, denoise_cond), x, sigma)
        return uncond + image_scale * (image - uncond) + scale * (cond - image)

    return denoise


def choose_by_sigma(inside: Callable[[float], bool], denoise: Denoise, otherwise: Denoise) -> Denoise:
    """Return the first model at the sigmas inside of an interval, and the second at the others."""

    def chosen(x: Latents, sigma: float) -> Latents:
        return (denoise if inside(sigma) else otherwise)(x, sigma)

    return chosen


def _evaluate_all(denoisers: Sequence[Denoise], x: Latents, sigma: float) -> list[Latents]:
    """Return the estimate of each denoiser; on a CPU they are evaluated in parallel."""
    cores = torch.get_num_threads()
    if x.device.type != "cpu" or cores < 2 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return [denoise(x, sigma) for denoise in denoisers]  # gradient and autocast modes are per thread

    @torch.no_grad()
    def evaluate(denoise: Denoise) -> Latents:
        return denoise(x, sigma)

    return list(_workers(len(denoisers), cores).map(evaluate, denoisers))


@lru_cache(maxsize=4)
def _workers(count: int, cores: int) -> ThreadPoolExecutor:
    """Return a pool of `count` threads that share the cores equally."""
    workers, started = ThreadPoolExecutor(count, "guidance", _set_threads, (max(1, cores // count),)), Barrier(count)
    list(workers.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(cores)  # the last value that any thread sets is the default of later threads
    return workers


def _set_threads(cores: int) -> None:
    torch.get_num_threads()  # a thread's first call fixes its setting to the default; set ours after that
    torch.set_num_threads(cores)


def replace_known_frames(denoise: Denoise, known: Latents, noise: Latents) -> Denoise:
    """Wrap a model for a video whose first p frames are known, so that the others are sampled to fit them.

    known, noise: [b p c h w], clean latents of these frames, and their noise; at every sigma their sum replaces the
        sampler's frames. With no frame known this is `denoise`.
    Source: Lugmayr et al. 2022 (RePaint), without resampling.
    """
    count = known.shape[1]

    def wrapped(x: Latents, sigma: float) -> Latents:
        given = add_noise(known, noise, sigma).to(x)
        return torch.cat([known.to(x), denoise(torch.cat([given, x[:, count:]], dim=1), sigma)[:, count:]], dim=1)

    return wrapped


def refuse_nan(denoise: Denoise) -> Denoise:
    """Wrap a model to raise InputError when its estimate holds NaN or infinity, naming the first such frame."""

    def wrapped(x: Latents, sigma: float) -> Latents:
        x0 = denoise(x, sigma)
        broken = ~torch.isfinite(x0).flatten(2).all(2)
        if broken.any():
            sample, frame = broken.nonzero()[0].tolist()
            raise InputError(
                f"The network's estimate of frame {frame} (video {sample} of the batch) at noise level {sigma:.4g} "
                f"holds NaN or infinity; {int(broken.sum())} of {broken.numel()} frames do. "
                "Half precision that overflows is the usual cause: load the model with dtype=float32 or bfloat16."
            )
        return x0

    return wrapped
