"""DreamBooth: an image model learns a subject from a few pictures, and keeps what it knew (Ruiz et al. 2022).

A rare word and the name of the subject's class are the caption of its pictures. Beside them the model sees pictures
that it drew itself of the class, told the class alone: prior preservation, so that not every dog becomes this one.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from kineograph.condition import Condition
from kineograph.latents import Latents

# (told, x0, noise, timesteps) -> the error of what the network predicts of each picture
Error = Callable[[Condition, Latents, Latents, Tensor], Float[Tensor, " n"]]


def loss(
    error: Error, told: Condition, x0: Latents, noise: Latents, timesteps: Int[Tensor, " n"], *, prior_weight: float
) -> dict[str, Float[Tensor, ""]]:
    """The two parts whose sum is descended: the subject's error, and `prior_weight` times that of the prior's pictures.

    The first half of the batch is of the subject, the second half of the prior. With a weight of 0 there is no prior:
    all pictures are of the subject, and this is plain fine-tuning.
    Source: Ruiz et al. 2022, eq. 2, where the weight is lambda and 1.
    """
    errors = error(told, x0, noise, timesteps)
    if not prior_weight:
        return {"subject": errors.mean()}
    subject, prior = errors.chunk(2)
    return {"subject": subject.mean(), "prior": prior_weight * prior.mean()}


def subject_caption(word: str, kind: str) -> str:
    """What the subject's pictures are told: "a sks dog" (section 3.2)."""
    return f"a {word} {kind}"


def prior_caption(kind: str) -> str:
    """What the prior's pictures are drawn by, and told: "a dog" (section 3.3)."""
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
