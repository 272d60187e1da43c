"""JSON schemas of the options."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kineograph.generation.options import AnimateOptions, EditOptions, GenerateOptions
from kineograph.generation.schema import DECLARATIONS, options_schema
from kineograph.models.loading.options import LoadOptions
from kineograph.options import declared

KINDS = {"generate": GenerateOptions, "animate": AnimateOptions, "edit": EditOptions, "load": LoadOptions}


@pytest.mark.parametrize("function", DECLARATIONS)
def test_each_option_is_described(function: str) -> None:
    schema = options_schema(function)
    assert list(schema["properties"]) == list(declared(KINDS[function]))
    assert json.loads(json.dumps(schema)) == schema
    for name, each in declared(KINDS[function]).items():
        found = schema["properties"][name]
        assert (found["description"], found["group"], found["recorded"]) == (each.help, each.group, each.recorded)
        assert found["default"] == json.loads(json.dumps(each.default))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("num_frames", {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 4096}, {"type": "null"}]}),
        ("guidance_scale", {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None, "readers": []}),
        ("first_frame", {"anyOf": [{"type": "string", "enum": ["shown", "pinned"]}, {"type": "null"}]}),
        ("refine_at", {"type": "array", "readers": ["video-elevator"]}),
        ("window", {"readers": ["videocrafter", "animatediff", "video-elevator", "freenoise"]}),
        ("prompt_at", {"type": "object", "default": {}, "readers": []}),
        ("keep_clips", {"recorded": False}),
        ("drift_correction", {"type": "boolean", "default": False}),
    ],
)
def test_types_ranges_and_readers(name: str, expected: dict[str, Any]) -> None:
    found = options_schema("generate")["properties"][name]
    assert {key: found[key] for key in expected} == expected


def test_choices_of_a_table_are_listed() -> None:
    assert {"ddim", "lcm", None} <= {*options_schema("edit")["properties"]["sampler"]["enum"]}
