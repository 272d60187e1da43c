"""Captions for the clips of a file, asked for once each: what fails is written down, and asked for in the next run."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from kineograph.curation.caption_models import AskModel, NoAnswer, ask_for_caption
from kineograph.curation.records import WORK, clips_path, read_json_file, write_text
from kineograph.curation.settings import CaptionModel, Captions, CurationSettings, Endpoint
from kineograph.curation.sources import SourceFile
from kineograph.media.seek import decode_frames_at, read_timing
from kineograph.media.shards import FileRange, FileSlice, open_range

PLACED = {"device", "timeout", "tries", "pause", "key"}  # where and how patiently a model is asked, not what
FREE: Any = {"processes": True, "cpus": True, "gpus": True, "asked": PLACED, "merged_by": PLACED}


class CaptionRecord(NamedTuple):
    """Captions by the clips' names, and why there is none for others."""

    captions: dict[str, str]
    failed: dict[str, str]


def captions_path(output: Path, captions: Captions, unit: SourceFile) -> Path:
    """Where the captions of a file's clips are; other models and questions make others, side by side."""
    told = captions.model_dump_json(exclude=FREE)
    digest = hashlib.sha256(told.encode()).hexdigest()[:12]
    return output / WORK / "captions" / digest / unit.key[:2] / f"{unit.key}.json"


def read_captions(path: Path) -> CaptionRecord:
    """What was answered so far; nothing where there is no file."""
    told = read_json_file(path)
    return CaptionRecord(dict(told.get("captions", {})), dict(told.get("failed", {})))


def caption_file(told: str, settings: CurationSettings) -> str:
    """Asks about the clips of one unit that have no caption; told: the unit and their names, as JSON.

    Raises InputError when the model is not there or refuses whoever asks.
    """
    work = json.loads(told)
    unit, names, captions = SourceFile(**work["unit"]), work["clips"], settings.captions
    assert captions is not None
    path = captions_path(settings.output, captions, unit)
    known, failed = read_captions(path).captions, dict[str, str]()
    ask = load_caption_model(captions.asked)
    merge = load_caption_model(captions.merged_by) if captions.merged_by else None
    for name in names:
        if name not in known:
            try:
                pictures = read_key_frames(clips_path(settings.output, unit), name, captions.key_frames)
                known[name] = ask_for_caption(pictures, unit.label, ask, merge, captions)
            except NoAnswer as error:
                failed[name] = str(error)
    write_text(path, json.dumps({"captions": known, "failed": failed}))
    return unit.key


@lru_cache(maxsize=2)
def load_caption_model(model: CaptionModel) -> AskModel:
    """Who is asked; loaded once in a process."""
    if isinstance(model, Endpoint):
        from kineograph.curation.caption_models import connect_endpoint

        return connect_endpoint(model)
    from kineograph.curation.caption_models import load_transformers_model

    return load_transformers_model(model)


def read_key_frames(tar: Path, name: str, count: int) -> Sequence[UInt8[np.ndarray, "h w 3"]]:
    """Key frames of a clip in a tar."""
    with open_range(_place(tar, f"{name}.mp4")) as part:
        return _key_frames(part, count)


def _key_frames(part: FileSlice, count: int) -> Sequence[UInt8[np.ndarray, "h w 3"]]:
    seen = read_timing(part)
    slots = round((seen.end - seen.first) * seen.rate)
    count = min(count, slots)
    numbers = ((np.arange(count) + 0.5) * slots / count).astype(int)
    times = [seen.first + number / seen.rate for number in numbers]
    return decode_frames_at(part, times, seen, lambda frame: frame.to_ndarray(format="rgb24"))


def _place(tar: Path, name: str) -> FileRange:
    with tarfile.open(tar, "r:") as opened_tar:
        member = opened_tar.getmember(name)
        return FileRange(tar, member.offset_data, member.size)
