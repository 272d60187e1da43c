"""Options and models that requests to the service may name, as data: the web process imports no torch.

`declaration.json` is what `declare` says of the built-in models; a test holds it in step, and this writes it again:

    python -m kineograph.service.declaration > src/kineograph/service/declaration.json

`kineograph serve` runs the same, in a process of its own, with the models that its operator lists.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kineograph.errors import InputError, load_json, shown

FILE = Path(__file__).with_suffix(".json")
# where the work is done, and where models come from, are the operator's
OF_OPERATOR = {
    "device", "dtype", "torch_dtype", "token", "cache_dir", "local_files_only", "keep_clips", "revision", "variant",
    "video_model",
}  # fmt: skip
PATH = ', {"format": "path", "type": "string"}'  # beside {"type": "string"} in a file's schema
OBJECTS = re.compile(r"a text or a path( or [A-Z]\w+| or ndarray)*")
SECOND = "video_"  # prefix of the names of the second model's options


@dataclass(frozen=True)
class ModelFacts:
    """Properties of a model that decide what is made of a request.

    Attributes:
        source: what a worker loads: a name, folder, file or hub id.
        description: a few words for lists.
        width, height: of its videos by default.
        multiple: of which width and height are multiples.
        num_frames, fps: of its videos by default.
        commands: those that it can be used for: "generate", "animate", "edit".
    """

    source: str
    description: str
    width: int
    height: int
    multiple: int
    num_frames: int
    fps: float
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Declaration:
    """What requests may name.

    Attributes:
        options: JSON schemas of the options by name, each with its group, its values in words (`expected`), a `hint`
            for messages, and whether it names `files`.
        models: by the name that clients give; the first one of a command is its default.
        built_in: names of built-in parts, by the option that takes them.
    """

    options: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, ModelFacts]
    built_in: Mapping[str, Sequence[str]]

    def default_model(self, command: str) -> str:
        """Return the model of a command that a request without one uses. Raises InputError if there is none."""
        for name, facts in self.models.items():
            if command in facts.commands[:1]:
                return name
        for name, facts in self.models.items():
            if command in facts.commands:
                return name
        raise InputError(f"no model here can {command}: the models are {', '.join(self.models)}")


def read_declaration() -> Declaration:
    """Return the declaration of the built-in models."""
    return parse_declaration(load_json(FILE))


def parse_declaration(content: Mapping[str, Any]) -> Declaration:
    """Return the declaration that `declare` returned as JSON."""
    models = {
        name: ModelFacts(**{**each, "commands": tuple(each["commands"])}) for name, each in content["models"].items()
    }
    return Declaration(content["options"], models, content["built_in"])


def declare(sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the declaration as JSON values. sources: of the models by name; none for the built-in ones.

    Raises InputError for a model that cannot be used.
    """
    from kineograph.models.pocket.models import ADAPTERS, DECODERS, MODELS

    built_in = {"adapter": [*ADAPTERS], "decoder": [*DECODERS], "motion_module": [*MODELS]}
    built_in |= {f"{SECOND}{name}": names for name, names in built_in.items()}
    described = {"pocket": "Stable Diffusion 1.x, small"} | {name: each.description for name, each in MODELS.items()}
    models = {
        name: asdict(_facts(source, described.get(source, "")))
        for name, source in (sources or {name: name for name in described}).items()
    }
    return {"options": declare_options(), "models": models, "built_in": built_in}


def declare_options() -> dict[str, Any]:
    """Return the JSON schemas of the options by name, as `Declaration` has them."""
    from kineograph.generation.schema import DECLARATIONS, options_schema
    from kineograph.options import declared

    fields = dict[str, Any]()
    for function, prefix in (("generate", ""), ("load", ""), ("load", SECOND)):
        schemas = options_schema(function)["properties"]
        for name, each in declared(*DECLARATIONS[function]()).items():
            if name not in OF_OPERATOR:
                field = schemas[name] | {"expected": each.expected, "hint": each.hint, "files": False}
                fields[f"{prefix}{name}"] = _as_field(field) | ({"group": "Second model"} if prefix else {})
    for name in ("seed", "negative_prompt"):  # lists are for several prompts, and a job has one
        fields[name]["anyOf"] = [each for each in fields[name]["anyOf"] if each.get("type") != "array"]
        fields[name]["expected"] = fields[name]["expected"].partition(" or a list")[0]
    return fields


def _as_field(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a request's field: where the option takes a path or an object, it takes a file's name."""
    if PATH not in json.dumps(schema):
        return schema
    expected = OBJECTS.sub("the name of a file", schema["expected"])
    return json.loads(json.dumps(schema).replace(PATH, "")) | {"expected": expected, "files": True}


def _facts(source: str, description: str) -> ModelFacts:
    from kineograph.models.loading.describe import describe
    from kineograph.request import IMAGE_MODEL_FPS, NUM_FRAMES, VIDEO_MODEL_FPS

    found = describe(source)
    if found is None:
        raise InputError(f"the model {shown(source)} states no size: give its configuration, or convert it to a folder")
    height, width = found.default_size
    fitting = {"edit": True, "animate": found.takes_images, "generate": not found.edits}
    first = "edit" if found.edits else "animate" if found.takes_images else "generate"
    return ModelFacts(
        source,
        description,
        width,
        height,
        found.vae_scale_factor,
        NUM_FRAMES if found.temporal is None else found.temporal.num_frames,
        IMAGE_MODEL_FPS if found.temporal is None else VIDEO_MODEL_FPS,
        (first, *(name for name, fits in fitting.items() if fits and name != first)),
    )


def print_declaration(arguments: Sequence[str]) -> None:
    """Print the declaration as JSON. arguments: models as NAME=SOURCE, or none for the built-in ones."""
    sources = dict(each.split("=", 1) for each in arguments)
    try:
        content = declare(sources)
    except InputError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    print_declaration(sys.argv[1:])
