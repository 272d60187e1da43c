"""Settings of `kineograph curate`: sources, cuts, filters, captions and output."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

STRICT = ConfigDict(frozen=True, extra="forbid")
# Fields that may change from run to run in one output: they do not affect the clips of a file before captioning.
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

    labels: the label (a class, or a caption) is the text beside the file, or the name of the file's folder.
    """

    model_config = STRICT

    source: str
    labels: Literal["beside", "folder"] = "beside"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class Cuts(BaseModel):
    """Scene detection by PySceneDetect, and the length of clips in seconds.

    threshold: of the detector, in its own units; None for its default.
    """

    model_config = STRICT

    detector: Literal["adaptive", "content"] = "adaptive"
    threshold: float | None = Field(default=None, gt=0, le=10_000)
    shortest: float = Field(default=1.0, gt=0, le=600)
    longest: float = Field(default=10.0, gt=0, le=600)

    @field_validator("longest")
    @classmethod
    def _in_order(cls, longest: float, others: Any) -> float:
        if longest < others.data.get("shortest", 0):
            raise ValueError("expected no less than shortest")
        return longest


class Filters(BaseModel):
    """Limits beyond which a clip is dropped; None switches a filter off.

    least_brightness: mean grey, 0 to 255.
    least_movement: share of the pixels that change within the clip.
    most_lettering: share of the frame that lines of text cover.
    duplicate_bits: number of differing bits, of the 288 of a perceptual hash, up to which two clips are duplicates.
    """

    model_config = STRICT

    least_brightness: float | None = Field(default=16.0, ge=0, le=255)
    least_movement: float | None = Field(default=0.005, ge=0, le=1)
    most_lettering: float | None = Field(default=0.07, ge=0, le=1)
    duplicate_bits: int | None = Field(default=12, ge=0, le=64)


class Watermarks(BaseModel):
    """Detection and removal of watermarks.

    then: what is done with a watermark.
    across: the images that are compared are frames of one file, or a frame of each of several files of a source.
    samples: number of images that are compared.
    edge: gradient that all of them share at a watermark, in grey levels per pixel.
    most: largest share of the frame that is taken for a watermark and not for a static scene.
    """

    model_config = STRICT

    then: Literal["remove", "drop", "keep"] = "remove"
    across: Literal["file", "source"] = "file"
    samples: int = Field(default=24, ge=6, le=256)
    edge: float = Field(default=6.0, gt=0, le=255)
    most: float = Field(default=0.12, gt=0, le=1)


class Stills(BaseModel):
    """Clips from images, by pan and zoom (`panned`) or of equal frames (`frozen`).

    versions: number of panned clips of each image, with different windows.
    smallest: least side of the window, as a share of the largest window's.
    """

    model_config = STRICT

    motions: tuple[Literal["panned", "frozen"], ...] = ("panned",)
    versions: int = Field(default=1, ge=1, le=64)
    num_frames: int = Field(default=16, ge=1, le=4096)
    fps: float = Field(default=8.0, ge=0.01, le=120)
    smallest: float = Field(default=0.6, gt=0, lt=1)


class TransformersModel(BaseModel):
    """An image-text model of `transformers`: a folder or a hub id."""

    model_config = STRICT

    model: str
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_new_tokens: int = Field(96, ge=1, le=1 << 16)


class Endpoint(BaseModel):
    """A model behind an OpenAI-compatible address, such as http://localhost:8000/v1.

    key: the name of the environment variable with the key. timeout: seconds for a whole answer. pause: seconds before
    the second try, doubled for each up to a minute.
    """

    model_config = STRICT

    url: str = Field(pattern=r"^https?://")
    model: str
    key: str | None = None
    timeout: float = Field(60.0, gt=0, le=3600)
    tries: int = Field(4, ge=1, le=100)
    pause: float = Field(1.0, ge=0, le=3600)
    max_tokens: int = Field(160, ge=1, le=1 << 16)


CaptionModel = TransformersModel | Endpoint


class Captions(BaseModel):
    """Captioning by a multimodal model: questions about key frames, whose answers become one caption.

    asked: the model that answers the questions. Questions that name {label} are left out for clips without a label.
    merged_by: the model that merges the answers into a caption; None concatenates them.
    processes, cpus, gpus: number of parallel processes on Ray, and the resources of each.
    """

    model_config = STRICT

    asked: CaptionModel
    questions: tuple[str, ...] = Field(QUESTIONS, min_length=1)
    merged_by: CaptionModel | None = None
    merge: str = MERGE
    key_frames: int = Field(3, ge=1, le=64)
    processes: int = Field(1, ge=1, le=4096)
    cpus: float = Field(1.0, ge=0, le=4096)
    gpus: float = Field(0.0, ge=0, le=4096)

    @field_validator("merge")
    @classmethod
    def _has_answers(cls, merge: str) -> str:
        if "{answers}" not in merge:
            raise ValueError("expected a text with {answers} in it")
        return merge


class CurationSettings(BaseModel):
    """A settings file of `kineograph curate`.

    shorter_side: largest shorter side of clips, in pixels; None for no limit.
    fps: highest frame rate of clips; None for no limit.
    run: on Ray Data, on this machine or on the cluster of RAY_ADDRESS; or "alone", in one process without Ray.
    """

    model_config = STRICT

    sources: tuple[FootageSource, ...] = Field(min_length=1)
    output: Path
    shorter_side: int | None = Field(256, ge=16, le=8192)
    fps: float | None = Field(None, ge=0.01, le=120)
    cuts: Cuts = Cuts()
    filters: Filters = Filters()
    watermarks: Watermarks = Watermarks()
    stills: Stills = Stills()
    captions: Captions | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    clips_per_shard: int = Field(1000, ge=1, le=1_000_000)
    run: Literal["ray", "alone"] = "ray"

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value


def content_settings(settings: CurationSettings) -> dict[str, Any]:
    """Return the settings that determine the clips of a file before captioning."""
    return settings.model_dump(mode="json", exclude=RESUMABLE_FIELDS)
