"""`generation_config.json` in a model's folder: options of sampling that its authors recommend.

A model that comes without one is sampled with the usual guidance of Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kineograph.errors import check_number
from kineograph.models.network_folders import read_json

GENERATION_CONFIG = "generation_config.json"
USUAL_GUIDANCE: Mapping[str, float] = {"guidance_scale": 7.5, "guidance_start": 0.0, "guidance_end": 1.0}


def read_generation_config(folder: Path) -> dict[str, float]:
    """Return the options of `USUAL_GUIDANCE` that a folder recommends; empty without a file.

    Other keys are ignored: transformers' models have a file of this name too. Raises InputError for a value that is no
    number.
    """
    file = folder / GENERATION_CONFIG
    if not file.is_file():
        return {}
    recommended = {name: value for name, value in read_json(file).items() if name in USUAL_GUIDANCE}
    for name, value in recommended.items():
        check_number(f"`{name}` in {file}", value)
    return recommended
