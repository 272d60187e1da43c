"""Measurement of candidates for presets on the development prompts: `python -m kineograph_lab.bench.presets out.jsonl`.

Each row of the file is one video: what the judge finds in it, and its cost. A command that is given again goes on from
the rows that the file has. The table of all rows is printed: each number with its paired difference from the reference.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.errors import InputWarning
from kineograph.generation.api import generate
from kineograph.models.loading.load import load
from kineograph.models.model import Model
from kineograph.request import PRESETS
from kineograph_lab.judge.metrics import parse_prompt
from kineograph_lab.judge.networks import Judge, load_judge
from kineograph_lab.recipe.long.training import DEVELOPMENT_PROMPTS, DEVELOPMENT_SEEDS

REFERENCE = "paper"
DPM: Mapping[str, Any] = {"sampler": "dpmpp-2m", "guidance_scale": 5.0}
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    **{name: {"preset": name} for name in PRESETS},
    "ddim 20": {"num_inference_steps": 20},
    "ddim 20, guidance 0.3-0.8": {"num_inference_steps": 20, "guidance_start": 0.3, "guidance_end": 0.8},
    "ddim 20, guidance 0-0.8": {"num_inference_steps": 20, "guidance_end": 0.8},
    "ddim 20, deepcache 2": {"num_inference_steps": 20, "deepcache_interval": 2},
    "ddim 20, deepcache 3": {"num_inference_steps": 20, "deepcache_interval": 3},
    "dpm karras 20": {**DPM, "spacing": "karras", "num_inference_steps": 20},
    "balanced, deepcache 2": {"preset": "balanced", "deepcache_interval": 2},
    "dpm trailing 20": {**DPM, "spacing": "trailing", "num_inference_steps": 20},
    "dpm trailing 12, guidance 0-0.8": {
        **DPM, "spacing": "trailing", "num_inference_steps": 12, "guidance_end": 0.8,
    },
    "dpm trailing 8": {**DPM, "spacing": "trailing", "num_inference_steps": 8},
    "dpm trailing 20, deepcache 2": {
        **DPM, "spacing": "trailing", "num_inference_steps": 20, "deepcache_interval": 2,
    },
    "dpm karras 12": {**DPM, "spacing": "karras", "num_inference_steps": 12},
    "dpm ays 12": {**DPM, "spacing": "ays", "num_inference_steps": 12},
    "dpm trailing 12": {**DPM, "spacing": "trailing", "num_inference_steps": 12},
    "unipc ays 12": {**DPM, "sampler": "unipc", "spacing": "ays", "num_inference_steps": 12},
    "dpm ays 12, guidance 0.2-0.9": {
        **DPM, "spacing": "ays", "num_inference_steps": 12, "guidance_start": 0.2, "guidance_end": 0.9,
    },
    "dpm ays 12, guidance 0-0.8": {**DPM, "spacing": "ays", "num_inference_steps": 12, "guidance_end": 0.8},
    "dpm ays 20, deepcache 2": {**DPM, "spacing": "ays", "num_inference_steps": 20, "deepcache_interval": 2},
    "dpm ays 8": {**DPM, "spacing": "ays", "num_inference_steps": 8},
}  # fmt: skip
MEASURES = ("subject", "colour", "scene", "motion", "same subject", "similarity", "seconds")


def measure_video(
    model: Model, judge: Judge, number: int, num_frames: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a row of one development prompt: shares of frames that are as it says, and the processor's seconds.

    "same subject" is 1 if all frames have one subject and colour.
    """
    prompt, started = DEVELOPMENT_PROMPTS[number], time.process_time()
    video = generate(model, prompt, seed=DEVELOPMENT_SEEDS[number], num_frames=num_frames, engine="torch", **options)
    seconds, expected, found = time.process_time() - started, parse_prompt(prompt), judge.classify(video.frames)
    row: dict[str, Any] = {
        label: float(np.mean([word == expected[label] for word in getattr(found, label)]))
        for label in ("subject", "colour", "scene")
        if label in expected
    }
    if model.temporal is not None and "motion" in expected:
        row["motion"] = float(judge.classify_motion(video.frames) == expected["motion"])
    same = len({*found.subject}) == len({*found.colour}) == 1
    similarity = float((found.identity[1:] @ found.identity[0]).mean())
    return {**row, "same subject": float(same), "similarity": similarity, "seconds": seconds}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the means in percent and the paired differences from the reference, with their standard errors."""
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    by_name = {name: {row["prompt"]: row for row in rows if row["candidate"] == name} for name in names}
    lines = ["| | prompts | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    for name in names:
        cells = list[str]()
        for measure in MEASURES:
            own = {prompt: row[measure] for prompt, row in by_name[name].items() if measure in row}
            other = {prompt: row[measure] for prompt, row in by_name.get(REFERENCE, {}).items() if measure in row}
            cells.append(_cell(measure, own, other if name != REFERENCE else {}))
        lines.append(f"| {name} | {len(by_name[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(measure: str, own: Mapping[int, float], reference: Mapping[int, float]) -> str:
    if not own:
        return "-"
    if measure == "seconds":
        return f"{np.median([*own.values()]):.2f}"
    mean, pairs = (
        f"{100 * np.mean([*own.values()]):.0f}",
        [own[each] - reference[each] for each in own.keys() & reference],
    )
    if len(pairs) < 2:
        return mean
    return f"{mean} ({100 * np.mean(pairs):+.0f} ± {100 * np.std(pairs, ddof=1) / len(pairs) ** 0.5:.0f})"


def measure_presets() -> None:
    """Measure the candidates that are asked for, and print the table of all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="file of the rows, JSON lines")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--candidates", nargs="*", default=[], choices=[*CANDIDATES], metavar="NAME")
    parser.add_argument("--prompts", type=int, default=len(DEVELOPMENT_PROMPTS), help="number, evenly picked")
    parser.add_argument("--moving", action="store_true", help="prompts that say a motion alone")
    parser.add_argument("--frames", type=int, default=None)
    given = parser.parse_args()
    numbers = [k for k, text in enumerate(DEVELOPMENT_PROMPTS) if not given.moving or "motion" in parse_prompt(text)]
    picked = [
        numbers[at] for at in np.linspace(0, len(numbers), min(given.prompts, len(numbers)), endpoint=False).astype(int)
    ]
    rows = [json.loads(line) for line in given.rows.read_text().splitlines()] if given.rows.exists() else []
    done = {(row["candidate"], row["prompt"]) for row in rows}
    warnings.simplefilter("ignore", InputWarning)
    model, judge = load(given.model), load_judge()
    with given.rows.open("a") as file:
        for name in given.candidates:
            for number in picked:
                if (name, number) in done:
                    continue
                row = measure_video(model, judge, number, given.frames, CANDIDATES[name])
                rows.append({"candidate": name, "prompt": number, **row})
                print(json.dumps(rows[-1]), file=file, flush=True)
    print(table(rows))


if __name__ == "__main__":
    measure_presets()
