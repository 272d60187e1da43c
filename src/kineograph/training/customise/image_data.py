"""Images of a customisation: the user's photos of a subject or style, and images that a model generates."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph import noise
from kineograph.denoise import classifier_free_guidance, refuse_nan
from kineograph.errors import InputError, expand_user, is_present, shown_path
from kineograph.media.dataset_layouts import IMAGE_SUFFIXES
from kineograph.media.files import replace_atomically, slug
from kineograph.media.images import crop_resize, read_image
from kineograph.media.shards import is_hidden
from kineograph.media.training_clips import IMAGE_FPS, Clip
from kineograph.media.video import Video
from kineograph.models.loading.provenance import fingerprints
from kineograph.models.model import Model
from kineograph.samplers import dpmpp_2m, final_latents
from kineograph.training.customise.settings import SamplingSettings

Pixels = UInt8[np.ndarray, "h w 3"]
Images = str | Path | Sequence[str | Path | np.ndarray]

# Formats that cameras and phones write too: never ignored silently, and read where Pillow can.
PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"}


class Photo(NamedTuple):
    """An image of the subject or style, with its caption if it has one. digest: SHA-256 of its pixels."""

    name: str
    pixels: Pixels
    caption: str | None
    digest: str


def load_photos(images: Images, *, least: int, side: int) -> list[Photo]:
    """Load images from a folder, in the order of their names, or from a list of files and arrays, uint8 [h w 3].

    An image is rotated as its EXIF data says; transparent areas become white. `dog.txt` beside `dog.jpg` is its
    caption.

    Args:
        least: the smallest number of different images.
        side: the smallest length of an image's shorter side in pixels.

    Raises InputError for too few images, and for those that cannot be read or are too small, naming each.
    """
    given = list_image_files(images)
    read, problems = list[Photo](), list[str]()
    for number, each in enumerate(given, 1):
        try:
            read.append(_check_usable(load_photo(each, f"image {number}"), side))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(f"{len(problems)} of {len(given)} images cannot be used. {'; '.join(problems)}")
    different = len({each.digest for each in read})
    if different < least:
        raise InputError(
            f"{_describe_count(images, different)}, and {least} at least are needed, better five to ten, that show the "
            "same from several sides and before several backgrounds"
        )
    return read


class Crop(NamedTuple):
    """A crop of an image.

    across, down: position of the crop, 0 (left, top) to 1 (right, bottom). share: of the crop's sides to the image's.
    """

    across: float = 0.5
    down: float = 0.5
    share: float = 1.0


def random_crops(photo: Photo, count: int, least: float, seed: int) -> Iterator[Crop]:
    """Yield `count` random crops of at least this share of the sides; one crop of share 1 is the centre."""
    if count == 1 and least == 1:
        yield Crop()
        return
    for number in range(count):
        rng = np.random.default_rng((int(photo.digest[:15], 16), seed, number))
        across, down = rng.uniform(size=2)
        yield Crop(float(across), float(down), float(rng.uniform(least, 1)))


def crop_photo(photo: Photo, crop: Crop, mirror: int, size: tuple[int, int]) -> Clip:
    """Return a crop resized to `size` (height, width), as a video of one frame; mirrored if `mirror` is -1, not 1."""
    frame = crop_resize(Image.fromarray(photo.pixels), *size, (crop.across, crop.down), share=crop.share)
    return Clip(np.ascontiguousarray(frame[None, :, ::mirror]), IMAGE_FPS, "")


def list_image_files(images: Images) -> list[str | Path | np.ndarray]:
    """Return the image files of a folder, by their names, or the items of a list. Nothing is read yet.

    Raises InputError when there is no such folder.
    """
    if not isinstance(images, str | Path):
        return list(images)
    folder = expand_user(images)
    if is_present(folder) and folder.is_file():
        return [folder]
    if not is_present(folder) or not folder.is_dir():
        raise InputError(f"there is no folder {shown_path(images)}: expected one with images, or a list of files")
    files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file.name))
    return [file for file in files if file.suffix.lower() in PHOTO_SUFFIXES]


def load_photo(image: str | Path | np.ndarray, name: str = "the image") -> Photo:
    """Load one image of any size. name: of an array, for messages. Raises InputError when it cannot be read."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"{name} is {image.dtype} {list(image.shape)}: expected uint8 [h w 3]")
        return Photo(name, image, None, _digest(image))
    pixels = read_image(image).pixels
    return Photo(str(image), pixels, _read_caption(expand_user(image)), _digest(pixels))


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _read_caption(image: Path) -> str | None:
    for file in (image.with_suffix(suffix) for suffix in (".txt", ".caption")):
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8-sig").strip() or None
            except (OSError, ValueError) as error:
                raise InputError(f"{file}, the caption of {image.name}, cannot be read ({error})") from error
    return None


def _check_usable(photo: Photo, side: int) -> Photo:
    height, width = photo.pixels.shape[:2]
    if min(height, width) < side:
        raise InputError(f"{photo.name} is {width} x {height} pixels, too small: expected {side} x {side} at least")
    if int(photo.pixels.min()) == int(photo.pixels.max()):
        raise InputError(f"{photo.name} is all one colour: it shows nothing")
    return photo


def _describe_count(images: Images, number: int) -> str:
    what = ("no image", "one image")[number] if number < 2 else f"{number} different images"
    if isinstance(images, str | Path):
        return f"{images} holds {what}"
    return f"there {'are' if number > 1 else 'is'} {what}"


class GeneratedImages(NamedTuple):
    """Progress of generating images into files: the number of files done, of all, and the files in order."""

    done: int
    total: int
    files: list[Path]


def generate_images(
    model: Model, prompts: Sequence[str], sampling: SamplingSettings, *, size: tuple[int, int], seed: int
) -> UInt8[np.ndarray, "n h w 3"]:
    """Generate an image of each prompt in one batch. Image j depends on `seed + j` only, apart from rounding.

    size: height and width in pixels. Raises ValueError for an image that holds NaN.
    """
    cond, uncond = (model.bind(model.prompt(texts, size=size, prompt_weights="off")) for texts in (list(prompts), [""]))
    denoise = refuse_nan(classifier_free_guidance(cond, uncond, max(1.0, sampling.guidance_scale)))
    sigmas = model.schedule.sampling_sigmas(sampling.num_inference_steps)
    initial = noise.independent(seed, [0], (len(prompts), *model.latent_shape(*size))).to(model.device)
    latents = final_latents(dpmpp_2m(denoise, sigmas[0] * initial, sigmas))
    return Video.from_tensor(model.decode(latents)[:, 0]).frames


def generate_missing_images(
    model: Model, prompts: Sequence[str], folder: Path, sampling: SamplingSettings, *, size: tuple[int, int], seed: int
) -> Iterator[GeneratedImages]:
    """Generate images into a folder, `sampling.at_once` at a time, and skip those that exist.

    Images of another model or other settings are in another subfolder. A file is complete or absent, and a batch is
    generated again if one of its files is missing or damaged, so that a kill has no effect on the result. Raises
    OSError when a file cannot be written.
    """
    subfolder = folder / _folder_name(model, prompts, sampling, size, seed)
    files = [subfolder / f"{number:05d}.png" for number in range(len(prompts))]
    for start in range(0, len(files), sampling.at_once):
        batch = files[start : start + sampling.at_once]
        if not all(map(_is_image, batch)):
            texts = prompts[start : start + len(batch)]
            images = generate_images(model, texts, sampling, size=size, seed=seed + start)
            for file, pixels in zip(batch, images, strict=True):
                save_png(pixels, file)
        yield GeneratedImages(start + len(batch), len(files), files)


def _is_image(file: Path) -> bool:
    """Return True for an image that is whole; False where there is none, or it is damaged."""
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, zlib.error):
        return False
    return True


def save_png(pixels: Pixels, file: Path) -> None:
    """Write a PNG atomically."""
    with replace_atomically(file) as part:
        Image.fromarray(pixels).save(part, "PNG")


def _folder_name(
    model: Model, prompts: Sequence[str], sampling: SamplingSettings, size: tuple[int, int], seed: int
) -> str:
    """Return a name that begins with the first prompt and has a hash of everything that decides the images."""
    values = [fingerprints(model), str(model.dtype), list(prompts), sampling.model_dump(), list(size), seed]
    return f"{slug(prompts[0])}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]}"
