"""DreamBooth: an image model learns a subject from a few images and keeps its prior (Ruiz et al. 2022).

The caption of the subject's images is a rare word and the name of its class. The other half of each batch are images of
the class that the model generated itself, captioned with the class alone: prior preservation, so that the class keeps
its variety.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from kineograph.latents import Latents
from kineograph.models.conditioning.condition import Condition

# (condition, x0, noise, timesteps) -> the error of the network's prediction for each image
ImageErrors = Callable[[Condition, Latents, Latents, Tensor], Float[Tensor, " n"]]


def loss(
    image_errors: ImageErrors,
    cond: Condition,
    x0: Latents,
    noise: Latents,
    timesteps: Int[Tensor, " n"],
    *,
    prior_weight: float,
) -> dict[str, Float[Tensor, ""]]:
    """Return the two parts of the loss: the subject's error, and `prior_weight` times that of the prior's images.

    The first half of the batch is of the subject, the second half of the prior. With a weight of 0 there is no prior:
    all images are of the subject, and this is plain fine-tuning.
    Source: Ruiz et al. 2022, eq. 2, where the weight is lambda and 1.
    """
    errors = image_errors(cond, x0, noise, timesteps)
    if not prior_weight:
        return {"subject": errors.mean()}
    subject, prior = errors.chunk(2)
    return {"subject": subject.mean(), "prior": prior_weight * prior.mean()}


def subject_caption(word: str, kind: str) -> str:
    """Return the caption of the subject's images: "a sks dog" (section 3.2)."""
    return f"a {word} {kind}"


def prior_caption(kind: str) -> str:
    """Return the prompt and caption of the prior's images: "a dog" (section 3.3)."""
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
