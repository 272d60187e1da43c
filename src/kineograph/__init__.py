"""Text-to-image diffusion models become video models.

`load` a model, `generate` a video, `animate` a picture, `edit` a video, `replay` the file it was saved to; `Model` and
the modules `noise`, `ladder`, `denoise`, `trajectory` and `methods` are the layer below, for those who want the loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kineograph import denoise, ladder, latents, methods, motion, noise, trajectory
    from kineograph.condition import Condition
    from kineograph.data.elevation import Elevation
    from kineograph.data.reuse import Reuse
    from kineograph.data.video import Video, open_video
    from kineograph.denoise import guided
    from kineograph.errors import InputError
    from kineograph.models import attention as see
    from kineograph.models.checkpoints import load
    from kineograph.models.model import Model
    from kineograph.models.saving import save
    from kineograph.recipes import animate, edit, generate, replay

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
    "ladder",
    "latents",
    "load",
    "methods",
    "motion",
    "noise",
    "open_video",
    "replay",
    "save",
    "see",
    "trajectory",
]

# public name -> the module it is or lives in, imported when the name is first used (PEP 562): `import kineograph`
# alone must not cost the seconds that torch takes
_HOMES = {
    "Condition": "condition",
    "Elevation": "data.elevation",
    "InputError": "errors",
    "Model": "models.model",
    "Reuse": "data.reuse",
    "Video": "data.video",
    "animate": "recipes",
    "edit": "recipes",
    "generate": "recipes",
    "guided": "denoise",
    "load": "models.checkpoints",
    "open_video": "data.video",
    "replay": "recipes",
    "save": "models.saving",
}
_MODULES = {"see": "models.attention"} | {
    name: name for name in ("denoise", "ladder", "latents", "methods", "motion", "noise", "trajectory")
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
