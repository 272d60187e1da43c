"""Turn text-to-image diffusion models into video models.

`load` a model, `generate` a video, `animate` an image, `edit` a video, `replay` a saved video. `Model` and the modules
`noise`, `sigmas`, `denoise`, `samplers` and `methods` are the layer below, for sampling loops of your own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kineograph import denoise, latents, methods, motion, noise, samplers, sigmas
    from kineograph.denoise import classifier_free_guidance
    from kineograph.errors import InputError, InputWarning
    from kineograph.generation.api import animate, edit, generate
    from kineograph.generation.options import AnimateOptions, EditOptions, GenerateOptions
    from kineograph.generation.recorded import replay
    from kineograph.generation.run import Progress
    from kineograph.media.video import Video, open_video
    from kineograph.models.conditioning.condition import Condition
    from kineograph.models.loading.load import load
    from kineograph.models.loading.options import LoadOptions
    from kineograph.models.loading.save import save
    from kineograph.models.model import Model
    from kineograph.models.unet import frame_attention

    __version__: str

__all__ = [
    "AnimateOptions",
    "Condition",
    "EditOptions",
    "GenerateOptions",
    "InputError",
    "InputWarning",
    "LoadOptions",
    "Model",
    "Progress",
    "Video",
    "__version__",
    "animate",
    "classifier_free_guidance",
    "denoise",
    "edit",
    "frame_attention",
    "generate",
    "latents",
    "load",
    "methods",
    "motion",
    "noise",
    "open_video",
    "replay",
    "samplers",
    "save",
    "sigmas",
]

# Public name -> its module, imported when the name is first used (PEP 562): `import kineograph` alone must not take the
# seconds that torch needs.
_HOMES = {
    "AnimateOptions": "generation.options",
    "Condition": "models.conditioning.condition",
    "EditOptions": "generation.options",
    "GenerateOptions": "generation.options",
    "InputError": "errors",
    "InputWarning": "errors",
    "LoadOptions": "models.loading.options",
    "Model": "models.model",
    "Progress": "generation.run",
    "Video": "media.video",
    "animate": "generation.api",
    "classifier_free_guidance": "denoise",
    "edit": "generation.api",
    "generate": "generation.api",
    "load": "models.loading.load",
    "open_video": "media.video",
    "replay": "generation.recorded",
    "save": "models.loading.save",
}
_MODULES = {"frame_attention": "models.unet.frame_attention"} | {
    name: name for name in ("denoise", "latents", "methods", "motion", "noise", "samplers", "sigmas")
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("kineograph")
    if name in _MODULES:
        return import_module(f"kineograph.{_MODULES[name]}")
    if name in _HOMES:
        return getattr(import_module(f"kineograph.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kineograph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
