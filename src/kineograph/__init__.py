"""Text-to-image diffusion models become video models.

`load` a model, `generate` a video, `animate` a picture, `edit` a video, `replay` the file it was saved to; `Model` and
the modules `noise`, `sigmas`, `denoise`, `samplers` and `methods` are the layer below, for those who want the loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kineograph import denoise, latents, methods, motion, noise, samplers, sigmas
    from kineograph.condition import Condition
    from kineograph.denoise import classifier_free_guidance
    from kineograph.errors import InputError
    from kineograph.generate import animate, edit, generate, replay
    from kineograph.media.video import Video, open_video
    from kineograph.method_options import ClipOptions, ElevatorOptions
    from kineograph.models.loading.load import load
    from kineograph.models.loading.save import save
    from kineograph.models.model import Model
    from kineograph.models.unet import frame_attention as see

    __version__: str

__all__ = [
    "Condition",
    "Elevation",
    "InputError",
    "Model",
    "Reuse",
    "Video",
    "__version__",
    "animate",
    "denoise",
    "edit",
    "generate",
    "guided",
    "latents",
    "load",
    "methods",
    "motion",
    "noise",
    "open_video",
    "replay",
    "samplers",
    "save",
    "see",
    "sigmas",
]

# public name -> the module it is or lives in, imported when the name is first used (PEP 562): `import kineograph`
# alone must not cost the seconds that torch takes
_HOMES = {
    "Condition": "condition",
    "Elevation": "method_options",
    "InputError": "errors",
    "Model": "models.model",
    "Reuse": "method_options",
    "Video": "media.video",
    "animate": "generate",
    "edit": "generate",
    "generate": "generate",
    "guided": "denoise",
    "load": "models.loading.load",
    "open_video": "media.video",
    "replay": "generate",
    "save": "models.loading.save",
}
_MODULES = {"see": "models.unet.frame_attention"} | {
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
