"""What `kineograph curate` can be told: from what, how clips are cut, what is dropped, who captions, and where to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

STRICT = ConfigDict(frozen=True, extra="forbid")
# What may change between a run and the next without changing what a file becomes before it is captioned.
RESUMABLE_FIELDS = {"sources", "output", "captions", "clips_per_shard", "run"}

QUESTIONS = (
    "These pictures are frames of one video of {label}. What is shown, and what does it do from the first to the last?",
    "These pictures are frames of one video. Who or what is in it, where is it, and what do both look like?",
)
MERGE = (
    "Here is what was answered to questions about one and the same video of {label}:\n{answers}\n"
    "Write one plain sentence that describes this video. Leave out what the answers disagree about. Only the sentence."
)


class FootageSource(BaseModel):
    """A folder, a list or shards, as `open_dataset` reads them.

    labels: whether the label (a class, or a caption) is the text beside the file, or the name of the file's folder.
    """

    model_config = STRICT

    source: str
    labels: Literal["beside", "folder"] = "beside"

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return {"source": given} if isinstance(given, str) else given


class Cuts(BaseModel):
    """Where a video is cut into clips, by PySceneDetect, and how long they may be, in seconds.

    threshold: of the detector, in its own units; None for its own.
    """

    model_config = STRICT

    detector: Literal["adaptive", "content"] = "adaptive"
    threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    shortest: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    longest: float = Field(default=10.0, gt=0, le=600)

    @field_validator("longest")
    @classmethod
    def _in_order(cls, longest: float, others: Any) -> float:
        if longest < others.data.get("shortest", 0):
            raise ValueError("expected no less than shortest")
        return longest


class Filters(BaseModel):
    """Limits beyond which a clip is dropped; None lets everything through.

    least_brightness: mean grey, 0 to 255. least_movement: the share of the picture that changes within the clip.
    most_lettering: the share of the picture that lines of letters cover. duplicate_bits: in how many of the 288 bits
    of their fingerprints two clips may differ and still be one.
    """

    model_config = STRICT

    least_brightness: float | None = Field(default=16.0, ge=0, le=255)
    least_movement: float | None = Field(default=0.005, ge=0, le=1)
    most_lettering: float | None = Field(default=0.07, ge=0, le=1)
    duplicate_bits: int | None = Field(default=12, ge=0, le=64)


class Watermarks(BaseModel):
    """What is done with watermarks, and over what they are looked for: frames of one file, or files of a source.

    samples: how many pictures are compared. edge: how strong an edge all of them share, in grey levels a pixel.
    most: the largest share of the picture that is taken for a watermark and not for a scene that stays the same.
    """

    model_config = STRICT

    then: Literal["remove", "drop", "keep"] = "remove"
    across: Literal["file", "source"] = "file"
    samples: int = Field(default=24, ge=6, le=256)
    edge: float = Field(default=6.0, gt=0, allow_inf_nan=False)
    most: float = Field(default=0.12, gt=0, le=1)


class Stills(BaseModel):
    """What becomes of pictures. smallest: the least share of its length that a side of the window has."""

    model_config = STRICT

    motions: tuple[Literal["panned", "frozen"], ...] = ("panned",)
    versions: int = Field(default=1, ge=1, le=64)  # of panned ones, each with windows of its own
    num_frames: int = Field(default=16, ge=1, le=4096)
    fps: float = Field(default=8.0, gt=0, le=120)
    smallest: float = Field(default=0.6, gt=0, lt=1)


class TransformersModel(BaseModel):
    """An image-text model of `transformers`: a folder or a hub id."""

    model_config = STRICT

    model: str
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_new_tokens: int = Field(96, ge=1)


class Endpoint(BaseModel):
    """A model behind an OpenAI-compatible address, such as http://localhost:8000/v1.

    key: the name of the environment variable with the key. pause: seconds before the second try, doubled for each.
    """

    model_config = STRICT

    url: str = Field(pattern=r"^https?://")
    model: str
    key: str | None = None
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False)
    tries: int = Field(4, ge=1)
    pause: float = Field(1.0, ge=0, allow_inf_nan=False)
    max_tokens: int = Field(160, ge=1)


CaptionModel = TransformersModel | Endpoint


class Captions(BaseModel):
    """Who is asked what about each clip's key frames, and how the answers become one caption.

    Questions that name {label} are left out where there is none. merged_by: who makes one of the answers; None joins
    them. processes, cpus, gpus: how many ask side by side, and what each holds.
    """

    model_config = STRICT

    asked: CaptionModel
    questions: tuple[str, ...] = Field(QUESTIONS, min_length=1)
    merged_by: CaptionModel | None = None
    merge: str = MERGE
    key_frames: int = Field(3, ge=1, le=64)
    processes: int = Field(1, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)

    @field_validator("merge")
    @classmethod
    def _mergeable(cls, merge: str) -> str:
        if "{answers}" not in merge:
            raise ValueError("expected a text with {answers} in it")
        return merge


class CurationSettings(BaseModel):
    """One settings file of `kineograph curate`.

    shorter_side: what clips are scaled down to, in pixels; None as they are. fps: at most so many frames a second.
    run: on Ray Data, here or on the cluster that RAY_ADDRESS names; or in one process, one file after another.
    """

    model_config = STRICT

    sources: tuple[FootageSource, ...] = Field(min_length=1)
    output: Path
    shorter_side: int | None = Field(256, ge=16)
    fps: float | None = Field(None, gt=0, le=120)
    cuts: Cuts = Cuts()
    filters: Filters = Filters()
    watermarks: Watermarks = Watermarks()
    stills: Stills = Stills()
    captions: Captions | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    clips_per_shard: int = Field(1000, ge=1)
    run: Literal["ray", "alone"] = "ray"

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str | dict) else given


def content_settings(settings: CurationSettings) -> dict[str, Any]:
    """The settings that decide what a file becomes before it is captioned."""
    return settings.model_dump(mode="json", exclude=RESUMABLE_FIELDS)
