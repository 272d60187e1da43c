"""A model, for sampling, is a function from (x, sigma) to its estimate of the clean video; and wrappers around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch

from kineograph.latents import Latents, add_noise

Denoise = Callable[[Latents, float], Latents]


def classifier_free_guidance(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance: away from the unconditional estimate, by `scale` times the difference.

    With `scale == 1` this is `conditional` itself, so that the unconditional model is never evaluated. On a CPU both
    are evaluated at once, each by half of the cores: two walks wait for one another less than the parts of one layer.
    Source: Ho & Salimans 2022, eq. 6, whose `w` is `scale - 1`; estimates of x0 mix exactly as those of noise do.
    """
    if scale == 1:
        return conditional

    def look(x: Latents, sigma: float) -> Latents:
        without, told = _evaluate_all((unconditional, conditional), x, sigma)
        return without + scale * (told - without)

    return look


def text_and_image_guidance(
    conditional: Denoise, pictured: Denoise, unconditional: Denoise, scale: float, image_scale: float
) -> Denoise:
    """Guidance by text and by a picture, for models that are told both: from nothing, by `image_scale` towards what the
    picture alone asks for, and from there by `scale` towards what text and picture ask for.

    With `image_scale == 1` what is told nothing cancels out and is never evaluated: two evaluations in place of three.
    Source: InstructPix2Pix (Brooks et al. 2023), eq. 3.
    """
    if image_scale == 1:
        return classifier_free_guidance(conditional, pictured, scale)

    def look(x: Latents, sigma: float) -> Latents:
        without, shown, told = _evaluate_all((unconditional, pictured, conditional), x, sigma)
        return without + image_scale * (shown - without) + scale * (told - shown)

    return look


def _evaluate_all(looks: Sequence[Denoise], x: Latents, sigma: float) -> list[Latents]:
    """What each estimates."""
    cores = torch.get_num_threads()
    if x.device.type != "cpu" or cores < 2 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return [look(x, sigma) for look in looks]  # gradients and autocast are a thread's own

    @torch.no_grad()
    def estimate(look: Denoise) -> Latents:
        return look(x, sigma)

    return list(_workers(len(looks), cores).map(estimate, looks))


@lru_cache(maxsize=4)
def _workers(count: int, cores: int) -> ThreadPoolExecutor:
    """As many threads, which share the cores out."""
    workers, started = ThreadPoolExecutor(count, "guidance", _set_threads, (max(1, cores // count),)), Barrier(count)
    list(workers.map(lambda _: started.wait(), range(count)))
    torch.set_num_threads(cores)  # what any thread sets is what later ones begin with
    return workers


def _set_threads(cores: int) -> None:
    torch.get_num_threads()  # a thread's first question is answered with what others have, and binds it to that
    torch.set_num_threads(cores)


def replace_known_frames(denoise: Denoise, known: Latents, noise: Latents) -> Denoise:
    """The same model for a video whose first frames are known: they are given, and all others are drawn to fit them.

    known, noise: [b p c h w], the clean latents of the first p frames and the noise that they are seen under.
    At every level the known frames are put in place of what the walk holds there. With all frames known, no model
    counts; with none, this is `denoise`. Source: the replacement of Lugmayr et al. 2022 (RePaint), without resampling.
    """
    count = known.shape[1]

    def look(x: Latents, sigma: float) -> Latents:
        given = add_noise(known, noise, sigma).to(x)
        return torch.cat([known.to(x), denoise(torch.cat([given, x[:, count:]], dim=1), sigma)[:, count:]], dim=1)

    return look


def check_finite(denoise: Denoise) -> Denoise:
    """The same model, that raises ValueError when an estimate holds NaN or infinity, naming the first such frame."""

    def look(x: Latents, sigma: float) -> Latents:
        x0 = denoise(x, sigma)
        broken = ~torch.isfinite(x0).flatten(2).all(2)
        if broken.any():
            sample, frame = broken.nonzero()[0].tolist()
            raise ValueError(
                f"The network's estimate of frame {frame} (video {sample} of the batch) at noise level {sigma:.4g} "
                f"holds NaN or infinity; {int(broken.sum())} of {broken.numel()} frames do. "
                "Half precision that overflows is the usual cause: load the model with dtype=float32 or bfloat16."
            )
        return x0

    return look
