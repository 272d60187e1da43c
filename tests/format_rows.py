"""Rows of docs/formats.md, declared on the tests that check them; `tools/formats_table.py` writes the table.

    @loads("LoRA", "LoHa (`hada_*`)", within=1e-5, reference="the formula")
    def test_loha(within): assert difference < within

    @refused("LoRA", "OFT (`oft_*`)", "rotations of the weights, no sums")
    def test_oft(): ...

On one case of a parametrised test: `pytest.param(..., marks=loads(...))`.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

# kinds of files, in the table's order, with the line under the heading
KINDS = {
    "Checkpoint": "Models as folders, single files and live pipelines: `load(source)`.",
    "VAE": "`vae`, `decoder`, and the VAEs inside checkpoints.",
    "Motion module": "Temporal layers for an image model: `motion_module`, and video checkpoints.",
    "LoRA": "`lora`, `load_lora_weights` and the files of `kineograph customise`.",
    "ControlNet": "`controlnet`, T2I-Adapters too.",
    "IP-Adapter": "`ip_adapter`.",
    "Textual inversion": "`textual_inversion`.",
    "Scheduler": "The noise schedule and sampler that a checkpoint names.",
    "Prompt": "Syntax of prompts.",
    "Live pipeline": "What is switched on in a diffusers pipeline that is given as a model.",
}


class Row(NamedTuple):
    """A row of the table. result: in words, with the figure that the test asserts."""

    kind: str
    layout: str
    result: str
    within: float | None = None


def loads(kind: str, layout: str, *, within: float | None = None, reference: str = "diffusers") -> pytest.MarkDecorator:
    """Return the mark of a test that a layout loads.

    within: greatest absolute difference from the reference, which the test reads from the fixture `within` and asserts;
    0 for the same bits; None where nothing is compared but that it loads. reference: diffusers, peft, the formula, ...
    """
    if within is None:
        return _mark(Row(kind, layout, "loads"))
    equality = f"equal to {reference}" if within == 0 else f"within {within:.0e} of {reference}"
    return _mark(Row(kind, layout, f"loads: {equality}", within))


def refused(kind: str, layout: str, reason: str) -> pytest.MarkDecorator:
    """Return the mark of a test that a layout is refused in a line that names it. reason: no full stop at its end."""
    return _mark(Row(kind, layout, f"refused: {reason}"))


def _mark(row: Row) -> pytest.MarkDecorator:
    if row.kind not in KINDS:
        raise ValueError(f"{row.kind} is no kind of file in format_rows.KINDS")
    return pytest.mark.format_row(row)
