"""Resolution of a request: checked options and loaded models become a plan."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kineograph.errors import MAX_FRAMES, InputError, InputWarning
from kineograph.generation.check import check, check_guidance, default_sampler, options_without_effect
from kineograph.generation.options import find_method, used_kinds
from kineograph.latents import Latents
from kineograph.media.footage import Footage, open_footage, output_size
from kineograph.media.images import InputImage, read_image
from kineograph.methods import sdedit, text2video_zero, vidrd
from kineograph.methods.controlnet import ControlOptions, list_controls
from kineograph.models.conditioning.prompt_weights import other_syntax, plain_text
from kineograph.models.description import check_size, describe_model
from kineograph.models.memory import MOST_CHUNK, Run, check_fits, fit_run, free_memory, parse_memory_size
from kineograph.models.model import Model
from kineograph.models.openvino.choice import EngineChoice, Work, choose_engine, refusal
from kineograph.models.schedulers import departures
from kineograph.models.vae.autoencoder import tiled
from kineograph.motion import frame_warp, mirrored_share, parse
from kineograph.options import declared, select
from kineograph.plan import Combination, Plan, guide_by_text
from kineograph.request import (
    IMAGE_MODEL_FPS,
    MAX_SEED,
    NUM_FRAMES,
    VIDEO_MODEL_FPS,
    EncodedPrompt,
    InMemory,
    Prompt,
    release,
)

RESOLVED = (  # fields of Plan
    "method", "sampler", "num_frames", "fps", "height", "width", "strength", "chunk_size", "vae_tiling"
)  # fmt: skip
OF_ONE_VIDEO = ("seed", "negative_prompt")  # options that may differ between the videos of a batch
FAR_SMALLER, FAR_LARGER = 1 / 4, 4  # areas of the frames, over that of the model's own size
MOST_MIRRORED, MOST_TURN = 0.5, 45  # share of the last frame; degrees
MEMORY = 8 * 64 * 64  # latent pixels evaluated together by default: 8 frames of 512 x 512


class Inputs(NamedTuple):
    """The opened inputs of a request.

    edit: the video to edit, or none. image: the image to start from, or none. latents: the initial noise, or none.
    """

    controls: tuple[Footage, ...] = ()
    edit: tuple[Footage, ...] = ()
    image: tuple[InputImage, ...] = ()
    latents: tuple[Latents, ...] = ()

    @property
    def footage(self) -> tuple[Footage, ...]:
        """All input videos."""
        return self.controls + self.edit


def open_inputs(options: Mapping[str, Any]) -> Inputs:
    """Open the videos and the image of a request.

    Raises InputError for a video, an image or a motion that cannot be used.
    """
    controls = list_controls(select(options, ControlOptions))
    total = None if options["num_frames"] is None else options["num_frames"] * options["clips"]
    if total is not None and total > MAX_FRAMES and (options["control"] or options["video"]):
        raise InputError(f"`num_frames` times `clips` is at most {MAX_FRAMES}, not {total}: ask for fewer")
    read = partial(open_footage, num_frames=total, fps=options["fps"])
    inputs = Inputs(
        tuple(read(release(each.video), option="control") for each in controls),
        () if options["video"] is None else (read(release(options["video"])),),
        () if options["image"] is None else (read_image(release(options["image"])),),
    )
    if options["camera"] is not None:
        parse(options["camera"])
    _common_length(inputs.footage)
    return inputs


def _common_length(footage: Sequence[Footage]) -> int:
    """Return the number of frames of the input videos, 0 without any."""
    lengths = {len(each) for each in footage}
    if len(lengths) > 1:
        listed = ", ".join(f"{each.path} has {len(each)}" for each in footage)
        raise InputError(f"the videos are not equally long ({listed} frames): give `num_frames`")
    length = max(lengths, default=0)
    if length > MAX_FRAMES:
        raise InputError(
            f"{footage[0].path} has {length} frames, and a video has at most {MAX_FRAMES}: use the first of them "
            "(`num_frames`), or fewer per second (`fps`)"
        )
    return length


class Decided(NamedTuple):
    """Values of a plan that follow from the options, the inputs and the descriptions of the models.

    offload: of models that are not loaded yet, see `load`; chosen by `memory`.
    """

    num_frames: int
    shared_frames: int
    fps: float
    height: int
    width: int
    window: int
    overlap: int
    camera: str
    strength: float
    edit_footage: tuple[Footage, ...]
    start_footage: tuple[Footage, ...]
    chunk_size: int
    vae_tiling: bool
    offload: str | None


def decide(combination: Combination, inputs: Inputs) -> Decided:
    """Return what the options leave open. Raises InputError for inputs and options that do not fit."""
    options, footage, temporal = combination.options, inputs.footage, combination.with_motion.temporal
    height, width = _video_size(combination, inputs)
    check_size(height, width, combination.model.vae_scale_factor)
    num_frames = _num_frames(combination, footage)
    shared = vidrd.count_shared_frames(options, num_frames)
    _check_keyframes(options, vidrd.count_frames(num_frames, options["clips"], shared))
    _check_clips(options, num_frames, footage)
    window = 0 if temporal is None else options["window"] or temporal.num_frames
    overlap = window // 4 if options["overlap"] is None else options["overlap"]
    strength = sdedit.chosen_strength(combination)
    read_by_model = inputs.edit if combination.model.edits else ()
    started_from = inputs.edit if strength < 1 else ()
    camera = options["camera"] or _default_camera(
        combination, inputs.controls + read_by_model + started_from, num_frames
    )
    frame_warp(parse(camera), frames=num_frames, seed=0)  # raises for a motion that cannot be used
    run = fit_memory(combination, num_frames, height, width, window)
    return Decided(
        num_frames=num_frames,
        shared_frames=shared,
        fps=options["fps"] or _default_fps(combination, footage),
        height=height,
        width=width,
        window=window,
        overlap=overlap if window else 0,
        camera=camera,
        strength=strength,
        edit_footage=read_by_model,
        start_footage=started_from,
        chunk_size=run.frames if combination.model.temporal is None else MOST_CHUNK,
        vae_tiling=run.vae_tiling,
        offload=run.offload,
    )


def fit_memory(combination: Combination, num_frames: int, height: int, width: int, window: int) -> Run:
    """Return what decides the memory of a run, as `memory` and a `chunk_size` of auto choose it.

    Warns before weights are loaded if it needs more than is free. Raises InputError if nothing fits into `memory`.
    """
    options, model = combination.options, combination.model
    chunk = MOST_CHUNK if options["chunk_size"] == "auto" else options["chunk_size"]
    together = min(num_frames, chunk if model.temporal is None else window)
    if options["refine_size"]:
        height, width = max((height, width), sdedit.parse_size(options["refine_size"]), key=math.prod)
    branches = 1 if model.reads_guidance_scale or options["guidance_scale"] <= 1 else 3 if model.edits else 2
    on_cpu = model.networks is not None and model.networks.device == "cpu"
    run = Run(
        videos=options["batch_size"] or 1,
        frames=together,
        height=height,
        width=width,
        branches=branches if on_cpu and torch.get_num_threads() > 1 else 1,
        vae_tiling=options["vae_tiling"],
        controls=len(options["control"]),
        offload=model.networks and model.networks.offload,
    )
    if options["memory"] is None and options["chunk_size"] != "auto":
        if combination.video_model is None:
            check_fits(model, run)
        return run._replace(frames=chunk)
    if combination.video_model is not None:
        raise InputError("`memory` and a `chunk_size` of auto are for one model, and here are two: give a `chunk_size`")
    given = None if options["memory"] is None else parse_memory_size(options["memory"])
    limit = free_memory(model) if given is None else given
    return run._replace(frames=chunk) if limit is None else fit_run(model, run, limit, by_frames_alone=given is None)


def resolve(
    model: Model,
    prompts: Sequence[Prompt],
    options: Mapping[str, Any],
    inputs: Inputs,
    video_model: Model | None = None,
    negative_prompts: Sequence[Prompt] = (),
) -> Plan:
    """Return the plan of one or several prompts. negative_prompts: in place of the option, one for each prompt.

    Raises InputError for options and models that do not fit, see `check`, and for inputs that cannot be used.
    """
    second = None if video_model is None else describe_model(video_model)
    combination = check(describe_model(model), second, options)
    options = combination.options
    if any(isinstance(each, EncodedPrompt) for each in negative_prompts):
        check_guidance(combination, "negative_prompt_embeds")
    decided = decide(combination, inputs)
    latent_shape = (len(prompts), *model.latent_shape(decided.height, decided.width))
    if decided.vae_tiling:
        model = replace(model, vae=tiled(model.vae, model.temporal_decoder))
    for latents in inputs.latents:
        _check_latents(latents, latent_shape, decided.num_frames)
    engine = _choose_engine(combination, model, decided, latent_shape)
    if engine.engine != "torch":
        model = replace(model, engine=engine.engine)
        if video_model is not None and refusal(video_model) is None:
            video_model = replace(video_model, engine=engine.engine)
    return Plan(
        model=model,
        second_model=() if video_model is None else (video_model,),
        method=combination.method,
        prompts=tuple(prompts),
        negative_prompts=tuple(negative_prompts)
        or one_for_each(options["negative_prompt"], len(prompts), "negative_prompt"),
        seeds=_seeds(options["seed"], len(prompts)),
        sampler=options["sampler"] or default_sampler(combination.model, model.schedule),
        num_inference_steps=options["num_inference_steps"],
        guidance_scale=options["guidance_scale"],
        latent_shape=latent_shape,
        initial_latents=inputs.latents,
        **{name: value for name, value in decided._asdict().items() if name != "offload"},
        motion_strength=options["motion_strength"],
        control_footage=inputs.controls,
        image=inputs.image,
        engine=engine,
        options=options,
        guide=partial(guide_by_text, options["guidance_scale"]),
    )


def _choose_engine(
    combination: Combination, model: Model, decided: Decided, latent_shape: tuple[int, ...]
) -> EngineChoice:
    """Return the engine of a run; see `choose_engine`."""
    options, frames = combination.options, decided.num_frames
    together = min(frames, decided.chunk_size if model.temporal is None else decided.window)
    guided = options["guidance_end"] - options["guidance_start"] if options["guidance_scale"] > 1 else 0.0
    videos, _, height, width = latent_shape
    work = Work(
        evaluations=options["num_inference_steps"] * options["clips"] * (1 + guided),
        latent_pixels=videos * frames * height * width,
        graphs=(1 if together == frames else 2) + len(options["control"]),
        shape=(combination.method, latent_shape, frames, together, guided > 0, sorted(options["control"])),
    )
    limited = options["engine"] == "auto" and options["memory"] is not None  # that of converted networks is not known
    return choose_engine("torch" if limited else options["engine"], model, work)


def _seeds(seed: int | tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    """Return the seed of each video: consecutive ones after a single one, or a random one."""
    if isinstance(seed, tuple):
        return one_for_each(seed, count, "seed")
    first = secrets.randbelow(2**31) if seed is None else seed
    if first + count - 1 > MAX_SEED:
        raise InputError(f"`seed` is at most {MAX_SEED - count + 1} for {count} prompts, not {seed}")
    return tuple(range(first, first + count))


def one_for_each(value: Any, count: int, name: str) -> tuple[Any, ...]:
    """Return a list of values, one for each video; a single value is that of all."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * count
    if len(values) != count:
        raise InputError(
            f"`{name}` has {len(values)} values, and {count} are needed: give one for each prompt or video"
        )
    return values


def _check_latents(latents: torch.Tensor, shape: Sequence[int], num_frames: int) -> None:
    """Raise InputError unless these can be the initial noise of a batch."""
    videos, *cell = shape
    allowed = [(videos, frames, *cell) for frames in (1, num_frames)]
    if tuple(latents.shape) not in allowed:
        raise InputError(
            f"`latents` are [b f c h w]: {allowed[1]}, or {allowed[0]} for all frames, not {tuple(latents.shape)}; "
            "those of AnimateDiff in diffusers, [b c f h w], are transposed by latents.transpose(1, 2)"
        )


def _check_keyframes(options: Mapping[str, Any], frames: int) -> None:
    if beyond := [frame for frame in options["prompt_at"] if frame >= frames]:
        raise InputError(
            f"`prompt_at` has a prompt at frame {max(beyond)}, and the video has frames 0 to {frames - 1}: ask for "
            "more frames, or for prompts at earlier ones"
        )


def _check_clips(options: Mapping[str, Any], num_frames: int, footage: Sequence[Footage]) -> None:
    clips, overlap = options["clips"], options["clip_overlap"]
    if footage and len(footage[0]) < num_frames * clips:
        raise InputError(f"{footage[0].path} has {len(footage[0])} frames, fewer than the {clips} `clips`")
    if clips > 1 and overlap >= num_frames and overlap not in vidrd.USUAL_OVERLAP.values():  # which are cut to fit
        raise InputError(f"`clip_overlap` is less than the {num_frames} frames of a clip, not {overlap}")


def _default_fps(combination: Combination, footage: Sequence[Footage]) -> float:
    if footage:
        return footage[0].fps
    return IMAGE_MODEL_FPS if combination.with_motion.temporal is None else VIDEO_MODEL_FPS


def _num_frames(combination: Combination, footage: Sequence[Footage]) -> int:
    options, temporal = combination.options, combination.with_motion.temporal
    if options["num_frames"] is not None:
        return options["num_frames"]
    if footage:
        return max(1, len(footage[0]) // options["clips"])
    return NUM_FRAMES if temporal is None else temporal.num_frames


def _default_camera(combination: Combination, followed: Sequence[Footage], num_frames: int) -> str:
    if followed or num_frames == 1 or combination.method != "text2video-zero":
        return "none"
    return text2video_zero.DEFAULT_CAMERA


def _video_size(combination: Combination, inputs: Inputs) -> tuple[int, int]:
    """Return height and width in pixels: as requested, else with the footage's aspect ratio, else the model's own.

    Raises InputError when the videos have different aspect ratios.
    """
    options, model = combination.options, combination.model
    if not inputs.footage:
        return options["height"] or model.default_size[0], options["width"] or model.default_size[1]
    side, factor = max(model.default_size), model.vae_scale_factor
    sizes = [
        output_size(each, options["height"], options["width"], side=side, factor=factor) for each in inputs.footage
    ]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{each.path} is {each.width} x {each.height}" for each in inputs.footage)
        raise InputError(
            f"the videos are of different shapes ({listed}): crop them to one, or give `height` and `width`"
        )
    return sizes[0]


def default_batch_size(plan: Plan) -> int:
    """Return the number of prompts to generate together: those whose evaluation needs the memory of `MEMORY`."""
    frames = min(plan.chunk_size, plan.num_frames) if plan.model.temporal is None else plan.num_frames
    *_, height, width = plan.latent_shape
    return max(1, MEMORY // (frames * height * width))


def recorded_options(plan: Plan) -> dict[str, Any]:
    """Return the options that the plan reads and that change the frames, with its values, as JSON values."""
    resolved = {name: getattr(plan, name) for name in RESOLVED} | {"engine": plan.engine.engine}
    if plan.window:
        resolved |= {"window": plan.window, "overlap": plan.overlap if len(plan.frames) > plan.window else None}
    values = {**plan.options, **resolved, "camera": plan.camera}
    second = describe_model(plan.second_model[0]) if plan.second_model else None
    unread = options_without_effect(Combination(describe_model(plan.model), second, plan.method, plan.options))
    unset: tuple[object, ...] = (None, "", (), {})
    return {
        name: _json_value(values[name], name)
        for name, each in declared(*used_kinds(find_method(plan.method), plan.options)).items()
        if each.recorded
        and name not in (*OF_ONE_VIDEO, *unread)
        and (values[name] not in unset or each.default not in unset)
    }


def _json_value(value: Any, name: str) -> Any:
    """Return a value of an option as a JSON value; for an object in memory, its label."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(each, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(each, name) for each in value]
    if isinstance(value, InMemory):
        return read_image(value.value).path if name == "image" else open_footage(value.value).path
    return str(value) if isinstance(value, Path) else value


def warn_about(plan: Plan) -> None:
    """Warn of words that the model does not know, a customised subject that no prompt names, and too long a window."""
    model, later = plan.model, [*plan.options["prompt_at"].values(), *plan.options["then"]]
    prompts = [each for each in (*plan.prompts, *later) if isinstance(each, str)]
    texts = [*prompts, *(each for each in plan.negative_prompts if isinstance(each, str))]
    weights = plan.options["prompt_weights"]
    for syntax in dict.fromkeys(mark for text in texts for mark in other_syntax(text, weights)):
        _warn(f"the prompt has {syntax}; it is read as text here")
    prompts, texts = ([plain_text(each, weights) for each in some] for some in (prompts, texts))
    text = " ".join(texts)
    subject = (model.subject or "").lower().split()
    if unknown := [word for word in model.unknown_words(text) if word not in subject]:
        _warn(f"{model.name} has never seen the words {', '.join(unknown)}")
    if plan.guidance_scale < 0 and not model.net.reads_guidance_scale:
        _warn(f"`guidance_scale` is {plan.guidance_scale:g}: guidance is off, as with every scale of 1 or less")
    _warn_of_scheduler(plan)
    _warn_of_unnamed_subject(model, prompts)
    for video_model in plan.second_model:
        of_video_model = [text] if (text := plan.options["video_prompt"]) else prompts
        _warn_of_unnamed_subject(video_model, of_video_model)
    _warn_of_missed_ranges(plan)
    _warn_of_far_camera(plan)
    for each in plan.second_model or (model,):
        _warn_of_long_window(each, plan.window, len(plan.frames))
    for each in (model, *plan.second_model):
        _warn_of_size(each, plan.height, plan.width)


def _warn_of_scheduler(plan: Plan) -> None:
    missing = departures(plan.model.schedule.settings)
    if missing and plan.options["sampler"] is None and plan.sampler == plan.model.schedule.sampler:
        _warn(
            f"{plan.model.name} has a scheduler with {', '.join(missing)}, which is not supported: it is sampled by "
            f"{plan.sampler}; `sampler` chooses another one"
        )


def _warn_of_missed_ranges(plan: Plan) -> None:
    """Warn of ranges of timesteps that contain none of those that are sampled."""
    schedule, options, later = plan.model.schedule, plan.options, plan.options["prompt_at"]
    clean = [schedule.progress(sigma) for sigma in plan.sigmas(schedule)[:-1]]
    ranges = {
        "guidance": "there is no guidance",
        "control_guidance": "`control` has no effect" if options["control"] else "",
        "injection": "`prompt_at` acts in the up blocks alone" if plan.method == "freenoise" and later else "",
    }
    for name, effect in ranges.items():
        start, end = options[f"{name}_start"], options[f"{name}_end"]
        if effect and not any(start <= each <= end for each in clean):
            _warn(
                f"{effect}: none of the {len(clean)} steps is between `{name}_start`, {start:g}, and `{name}_end`, "
                f"{end:g}. Take more steps, or a wider range"
            )


def _warn_of_unnamed_subject(model: Model, prompts: Sequence[str]) -> None:
    text = " ".join(" ".join(prompts).lower().split())
    if model.subject is not None and prompts and model.subject.lower() not in text:
        _warn(
            f"{model.name} was customised to {model.subject!r}, and the prompt does not say that: name it, as in "
            f"'a {model.subject} ...', or leave the adapter out"
        )


def _warn_of_size(model: Model, height: int, width: int) -> None:
    own_height, own_width = model.default_size
    if not FAR_SMALLER <= height * width / (own_height * own_width) < FAR_LARGER:
        _warn(
            f"{model.name} was trained at {own_width} x {own_height} pixels, and {width} x {height} is far from that: "
            "subjects come out repeated or unclear. Use its own size, and `refine_size` to enlarge the video"
        )


def _warn_of_far_camera(plan: Plan) -> None:
    """Warn of a camera motion after which little is left of the first frame, or that turns it far."""
    camera, last = parse(plan.camera), plan.num_frames - 1
    if (share := mirrored_share(camera, plan.num_frames)) > MOST_MIRRORED:
        _warn(
            f"with `camera` {plan.camera} {share:.0%} of the last frame lies outside of the first, of which there is a "
            "mirror image: subjects may come twice. Move less in each frame, or ask for fewer frames"
        )
    if (angle := abs(camera.rotation) * last) > MOST_TURN:
        _warn(
            f"`camera` {plan.camera} turns by {angle:.0f} degrees in {plan.num_frames} frames: image models know few "
            f"subjects that are tilted by more than {MOST_TURN}, and draw another one. Turn less in each frame"
        )


def _warn_of_long_window(model: Model, window: int, frames: int) -> None:
    trained = model.temporal.num_frames if model.temporal else frames
    if min(window, frames) > trained:
        _warn(
            f"{model.name} was trained on {trained} frames at once, and a window of {window} shows it more: the "
            "quality may be lower. Leave `window` out, or make it shorter"
        )


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=5)
