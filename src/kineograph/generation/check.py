"""Checks of options against descriptions of the models, before any weight is loaded."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kineograph.errors import InputError, expand_user, shown
from kineograph.generation.options import (
    ADD_ONS,
    GenerateOptions,
    find_method,
    readers,
    unused,
    used_kinds,
    with_plugins,
)
from kineograph.methods import freenoise, instruct_pix2pix, video_elevator, vidrd
from kineograph.models.conditioning.prompt_weights import check_weights, plain_text
from kineograph.models.description import Description
from kineograph.models.loading.options import LoadOptions
from kineograph.models.unet.deepcache import check_branch
from kineograph.models.unet.windows import window_ranges
from kineograph.motion import Motion, parse
from kineograph.options import changed, declared, validate
from kineograph.plan import Combination, continues_frames
from kineograph.request import PRESETS, USUAL_GUIDANCE, PromptWeights

if TYPE_CHECKING:  # its module imports diffusers
    from kineograph.models.schedule import Schedule
    from kineograph.models.temporal.config import TemporalConfig

IMAGE_METHOD, TWO_MODEL_METHOD = "text2video-zero", "video-elevator"
VIDEO_METHOD, MOTION_MODULE_METHOD = "videocrafter", "animatediff"
LONG_METHOD = "freenoise"
MOST_PIXELS_TOGETHER = 16 * 512 * 512  # of all frames, for FreeNoise by default: one window of SD 1.5's size
MAX_CHARACTERS = 20_000  # of a prompt
SURROGATE, INVISIBLE = "Cs", ("Zs", "Zl", "Zp", "Cc", "Cf")  # categories of characters


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options, with the preset's values or defaults for those that are not given.

    Raises InputError for invalid ones.
    """
    given = {**preset_values(given.get("preset")), **given}
    own = declared(*with_plugins(GenerateOptions))
    for name in given:
        if name not in own and name in declared(LoadOptions):
            raise InputError(f"`{name}` is an option of the model: give it to `load`, as in load(..., {name}=...)")
    return validate(given, *with_plugins(GenerateOptions))


def preset_values(preset: object) -> Mapping[str, Any]:
    """Return the options of a preset; none for a value that is no preset, which is refused later."""
    return PRESETS.get(preset, {}) if isinstance(preset, str) else {}


def check_prompts(prompts: object, weights: PromptWeights) -> tuple[str, ...]:
    """Return the prompts. Raises InputError if there are none, or one is no text, is empty or cannot be read.

    weights: the option `prompt_weights`.
    """
    if not isinstance(prompts, Iterable):
        raise InputError(f"`prompt` is a text or a list of texts, not {shown(prompts)}")
    texts = list[str]()
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"`prompt` is a text or a list of texts, not {shown(prompt)}")
        _check_text(prompt, weights)
        if all(unicodedata.category(each) in INVISIBLE for each in plain_text(prompt, weights)):
            raise InputError("the prompt is empty: describe the video in a few words")
        texts.append(prompt)
    if not texts:
        raise InputError("the list of prompts is empty: give at least one")
    return tuple(texts)


def _check_text(text: str, weights: PromptWeights) -> None:
    """Raise InputError for a prompt or a negative prompt that cannot be read."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"a prompt has at most {MAX_CHARACTERS:,} characters, not {len(text):,}: shorten it")
    if any(unicodedata.category(each) == SURROGATE for each in text):
        raise InputError(
            f"the prompt {text[:60]!r} has bytes that are no UTF-8: write it again, in a terminal or a file whose "
            "encoding is UTF-8"
        )
    if "\0" in text:
        raise InputError(f"the prompt {text[:60]!r} has a null character: leave it out")
    check_weights(text, weights)


def _check_other_texts(options: Mapping[str, Any]) -> None:
    negative = options["negative_prompt"]
    negatives = (negative,) if isinstance(negative, str) else negative
    for text in (*negatives, *options["prompt_at"].values(), *options["then"], options["video_prompt"]):
        _check_text(text, options["prompt_weights"])


def check_order(first: object, prompt: object, example: str, names: Collection[str] = ()) -> None:
    """Raise InputError if a prompt was given where a model or a file belongs, and the other where the prompt belongs.

    first: the model or the file. example: the right order. names: of built-in models.
    """

    def exists(name: str) -> bool:
        try:
            return name in names or expand_user(name).exists()
        except (OSError, ValueError, RuntimeError):  # a long text, or one with a null character or an unknown ~user
            return False

    if isinstance(first, str) and isinstance(prompt, str) and exists(prompt) and not exists(first):
        raise InputError(
            f"the prompt is {prompt!r}, which is {'a model' if prompt in names else 'a file'}, and there is no "
            f"{first!r}: the order is {example}"
        )


def check(model: Description, video_model: Description | None, options: Mapping[str, Any]) -> Combination:
    """Check complete options against the models, and return them with the method that is used.

    Raises InputError for models that do not fit the method, options that exclude each other, and options that nothing
    reads in this combination.
    """
    combination = combine(model, video_model, options)
    method = find_method(combination.method)
    _check_other_texts(options)
    _check_models(combination)
    _check_prompt_travel(combination)
    method.check(combination)
    for add_on in ADD_ONS:
        if add_on.used(options):
            add_on.check(combination)
    _check_image(combination)
    _check_steps(combination)
    _check_evaluations(combination)
    if options["negative_prompt"]:
        check_guidance(combination, "negative_prompt")
    _refuse_unread(combination, options)
    if names := unused(method, options, with_plugins(GenerateOptions)):
        raise InputError(_explain_unused(names[0], combination.method))
    return combination


def without_unused(model: Description, video_model: Description | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded options without those that nothing reads, which older versions recorded too."""
    combination = combine(model, video_model, options)
    read = declared(*used_kinds(find_method(combination.method), options)).keys() - options_without_effect(combination)
    return {name: value for name, value in options.items() if name in read}


def combine(model: Description, video_model: Description | None, options: Mapping[str, Any]) -> Combination:
    """Return complete options and the models they are for.

    Where they are not given, guidance is what the models' authors recommend, and first frames are pinned and clips in
    forward order for a model that was trained to continue frames.
    """
    guidance = {**USUAL_GUIDANCE, **model.recommended}
    filled: dict[str, Any] = {
        name: guidance[name] if options[name] is None else options[name] for name in USUAL_GUIDANCE
    }
    if video_model is not None and options["guidance_scale"] is options["video_guidance_scale"] is None:
        filled["video_guidance_scale"] = video_model.recommended.get("guidance_scale")
    continues = video_model is None and continues_frames(model.temporal)
    filled |= vidrd.complete_clip_options(options, trained_to_continue=continues)
    if options["first_frame"] is None:
        filled["first_frame"] = "pinned" if continues and options["image"] is not None else "shown"
    method = _choose_method(model, video_model, options)
    return Combination(model, video_model, method, {**options, **filled})


def _choose_method(model: Description, video_model: Description | None, options: Mapping[str, Any]) -> str:
    if options["method"] is not None:
        return options["method"]
    if video_model is not None:
        return TWO_MODEL_METHOD
    if model.temporal is None:
        return IMAGE_METHOD
    if _fits_freenoise(model, model.temporal, options):
        return LONG_METHOD
    return MOTION_MODULE_METHOD if model.temporal.is_motion_module else VIDEO_METHOD


def _fits_freenoise(model: Description, temporal: TemporalConfig, options: Mapping[str, Any]) -> bool:
    """Return True for more frames than a video model was trained on, if all together take little memory.

    FreeNoise keeps the subject better than windows of the whole network do, with fewer evaluations (docs/results), but
    evaluates all frames together.
    """
    frames = options["num_frames"]
    if frames is None or frames <= temporal.num_frames or not freenoise.attends_over_frames(temporal):
        return False
    asks_for_windows = options["window"] is not None or options["overlap"] is not None
    if asks_for_windows or options["window_stride"] > temporal.num_frames:
        return False
    height, width = (options[name] or own for name, own in zip(("height", "width"), model.default_size, strict=True))
    return frames * height * width <= MOST_PIXELS_TOGETHER


def _check_models(combination: Combination) -> None:
    model, second, method = combination.model, combination.video_model, combination.method
    if second is not None and method in (IMAGE_METHOD, VIDEO_METHOD, MOTION_MODULE_METHOD):
        raise InputError(
            f"{method} has no use for a second model, {second.name}: leave it out, or choose the `method` "
            f"{TWO_MODEL_METHOD}"
        )
    if model.edits and combination.options["video"] is None:
        raise InputError(
            f"{model.name} is an editing model, and there is no video to edit: use kineograph edit in.mp4 'make it "
            "snow', in Python kineograph.edit(model, 'in.mp4', 'make it snow'), or a text-to-image model"
        )
    _check_network(combination)
    strength, moving = combination.options["motion_strength"], combination.with_motion
    if strength != 1 and not moving.has_motion_adapter:
        what = "no motion adapter" if moving.is_video else "no temporal layers, and so no motion adapter"
        raise InputError(
            f"{moving.name} has {what}, and a `motion_strength` other than 1 needs one: load it with `motion_adapter`"
        )


def _check_network(combination: Combination) -> None:
    """Check what the model's network fixes: its channels, its size's factor, its positions in time."""
    model, options, temporal = combination.model, combination.options, combination.with_motion.temporal
    if model.in_channels != model.latent_channels and not model.edits:
        raise InputError(
            f"{model.name} reads {model.in_channels - model.latent_channels} channels besides the latents', as models "
            "for inpainting do: use a text-to-image or an editing model"
        )
    if model.out_channels != model.latent_channels:
        raise InputError(
            f"{model.name} returns {model.out_channels} channels for latents of {model.latent_channels}, as networks "
            "with a learned variance do, which are not supported: use a text-to-image model"
        )
    if temporal is not None:
        window_ranges(temporal, options["window"], options["overlap"], frames=1)  # raises for an impossible window


def _check_prompt_travel(combination: Combination) -> None:
    options, temporal = combination.options, combination.with_motion.temporal
    if not options["prompt_at"]:
        return
    check_prompts(options["prompt_at"].values(), options["prompt_weights"])
    if options["then"]:
        raise InputError("`then` and `prompt_at` both say what later frames show: give one of them")
    if temporal is not None and temporal.resamples_frames and not options["video_prompt"]:
        raise InputError(
            f"{combination.with_motion.name} changes the number of frames inside (a space-time network), so no frame "
            "has a text of its own: leave `prompt_at` out, or use another video model"
        )


def _check_image(combination: Combination) -> None:
    options, models = combination.options, [combination.model, combination.video_model]
    if options["image"] is None:
        if options["first_frame"] == "pinned":
            raise InputError(
                "there is no image to pin the first frame to: give one, as in kineograph animate fish.png 'a fish'"
            )
        return
    if any(each is not None and each.takes_images for each in models):
        return
    if options["first_frame"] == "shown":
        raise InputError(
            f"{combination.model.name} takes no images: use an image-to-video model such as pocket-animate, load the "
            "model with `ip_adapter`, or pin the first frame to the image (`first_frame` pinned)"
        )


def default_sampler(model: Description, schedule: Schedule) -> str:
    """Return the sampler that is used unless one is given."""
    if model.edits:
        return instruct_pix2pix.DEFAULT_SAMPLER
    return schedule.sampler if model.temporal is None else model.temporal.sampler


def _check_steps(combination: Combination) -> None:
    """Raise InputError for a number of steps or a spacing that a scheduler cannot have, if its configuration is known.

    It is the configuration itself that is refused if no noise schedule follows from it.
    """
    from kineograph.models.schedule import Schedule

    model, second, options = combination.model, combination.video_model, combination.options
    steps, spacing, offset = options["num_inference_steps"], options["spacing"], options["steps_offset"]
    if spacing == "ays" and model.networks is not None and model.networks.unet.get("addition_embed_type") is not None:
        raise InputError(
            f"the `spacing` ays has the timesteps of SD 1.5, and {model.name} is an SDXL model: take ays-sdxl"
        )
    if model.scheduler is not None:
        schedule = Schedule.from_config(model.scheduler)
        schedule.sampling_sigmas(steps, options["sampler"] or default_sampler(model, schedule), spacing, offset)
    if second is not None and second.scheduler is not None:
        sampler, spacing = video_elevator.video_sampling(second.temporal, spacing)
        Schedule.from_config(second.scheduler).sampling_sigmas(steps, sampler, spacing, offset)


def _check_evaluations(combination: Combination) -> None:
    """Raise InputError for an empty interval of guidance, and for a skip connection that a network does not have."""
    options = combination.options
    if options["guidance_start"] >= options["guidance_end"]:
        raise InputError(
            f"`guidance_start` is below `guidance_end`; got {options['guidance_start']:g} and "
            f"{options['guidance_end']:g}: for no guidance at all give `guidance_scale` 1"
        )
    for model in (combination.model, combination.video_model):
        if model is None:
            continue
        if options["deepcache_interval"] > 1:
            check_branch(options["deepcache_branch"], model.skips)
        if options["preset"] is not None and _is_distilled(model):
            raise InputError(
                f"`preset` is for models that take many steps, and {model.name} is distilled for a few: leave it out, "
                "and give `num_inference_steps` and `guidance_scale` as the authors of the model do"
            )


def _is_distilled(model: Description) -> bool:
    """Return True for a latent consistency model, and for one whose scheduler or temporal layers are those of one."""
    from kineograph.models.schedulers import DISTILLED, sampler_name

    own = model.temporal.sampler if model.temporal is not None else sampler_name(model.scheduler or {})
    return model.reads_guidance_scale or own in DISTILLED


def options_without_effect(combination: Combination) -> dict[str, str]:
    """Return the options of the method and the add-ons in use that nothing reads here, each with the reason."""
    models = [combination.model, combination.video_model]
    unread = dict(find_method(combination.method).unread(combination))
    for add_on in ADD_ONS:
        if add_on.used(combination.options):
            unread |= add_on.unread(combination)
    if not any(each is not None and each.takes_images for each in models):
        unread["image_scale"] = f"{combination.model.name} takes no images"
    options = combination.options
    follows_video = bool(options["control"] or options["video"])
    if options["num_frames"] == 1 and not follows_video and parse(options["camera"] or "none") != Motion():
        unread["camera"] = "a single frame does not move"
    if (frames := combination.frames_of_one_window) is not None:
        unread["overlap"] = f"all {frames} frames are in one window"
    if options["spacing"] != "leading":
        unread["steps_offset"] = "it is read with the `spacing` leading"
    if options["deepcache_interval"] == 1:
        unread["deepcache_branch"] = "it is read with `deepcache_interval` above 1"
    if reason := _without_guidance(combination):
        unread |= {"guidance_start": reason, "guidance_end": reason}
    if not combination.with_motion.has_motion_adapter:
        unread["motion_strength"] = f"{combination.with_motion.name} has no motion adapter"
    return unread


def _refuse_unread(combination: Combination, options: Mapping[str, Any]) -> None:
    """Raise InputError for one of the given options, complete, that nothing reads."""
    unread, given = options_without_effect(combination), changed(options, *with_plugins(GenerateOptions))
    preset = preset_values(options["preset"])
    if names := [name for name in given if name in unread and options[name] != preset.get(name)]:
        reason = unread[names[0]]
        same = [f"`{name}`" for name in names if unread[name] == reason]
        raise InputError(f"{' and '.join(same)} {'does' if len(same) == 1 else 'do'} nothing here: {reason}")


def check_guidance(combination: Combination, name: str) -> None:
    """Raise InputError where there is no classifier-free guidance, for this option, which it reads."""
    if reason := _without_guidance(combination):
        raise InputError(f"`{name}` does nothing here: {reason}")


def _without_guidance(combination: Combination) -> str:
    """Return the reason why there is no classifier-free guidance; "" where there is."""
    options, model, second = combination.options, combination.model, combination.video_model
    own = options["video_guidance_scale"]
    scales = [] if model.reads_guidance_scale else [options["guidance_scale"]]
    if second is not None and not second.reads_guidance_scale:
        scales.append(options["guidance_scale"] if own is None else own)
    if not scales:
        return (
            f"{model.name} is a latent consistency model, which reads `guidance_scale` itself (`time_cond_proj_dim`), "
            "so nothing is evaluated without the prompt"
        )
    if max(scales) <= 1 and not model.edits:
        return "`guidance_scale` is 1 or less, which turns guidance off"
    return ""


def _explain_unused(name: str, method: str) -> str:
    others = readers(name)
    methods = [each for each in others if each != method]
    if name == "camera":
        return (
            f"`camera` does nothing here: with {method} the motion is that of the prompt. A camera motion is read by "
            "text2video-zero, and with `smooth_background` above 0"
        )
    add_ons_alone = all(each.startswith("with ") for each in methods)
    advice = f". Give that too, or leave `{name}` out" if add_ons_alone else ""
    return f"`{name}` does nothing here, with {method}: it is read {_join(methods)}{advice}"


def _join(others: Sequence[str]) -> str:
    words = [each if each.startswith("with ") else f"by {each}" for each in others]
    return " and ".join(words)
