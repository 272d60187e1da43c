"""Readers of the library for `tools/fuzz.py`, each with small valid inputs, and the commands that read the same.

Valid inputs are built by the helpers of `tests/`, which has to be in `sys.path`.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from inspect import signature as inspect_signature
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
import yaml
from cases import public_layouts, tiny_models
from cases.small_media import movie, moving_square
from cases.test_adapter_layouts import controlnet, ip_attention, ip_projection, ip_resampler, original
from cases.test_ip_adapter_kinds import save_encoder
from cases.test_motion_modules import released
from diffusers import AutoencoderTiny, T2IAdapter
from PIL import Image, ImageCms
from safetensors.torch import save_file
from tiny_training import load_batch, loss, tiny_net

import kineograph as kg
from kineograph.cli.inspect import inspect
from kineograph.cli.options import parse_lora, parse_named, parse_numbers
from kineograph.curation.captions import read_captions
from kineograph.curation.run import curate_dataset
from kineograph.curation.settings import CurationSettings
from kineograph.generation.check import check_prompts, complete
from kineograph.generation.clip_files import ClipFiles
from kineograph.generation.recorded import recorded_request
from kineograph.media.dataset import open_dataset
from kineograph.media.footage import open_footage
from kineograph.media.frames import BrokenFile
from kineograph.media.images import read_image
from kineograph.media.metadata import XMP, FileTags, read_settings, read_video_metadata
from kineograph.media.shards import expand_braces
from kineograph.media.training_clips import Clip, load_clip
from kineograph.media.video import WRITERS, Video, open_video
from kineograph.methods.sdedit import parse_size
from kineograph.metrics.collection import collect_videos, decode_video, read_prompts
from kineograph.metrics.report import read_scores
from kineograph.models.conditioning.prompt_weights import parse_weights, take_loras
from kineograph.models.loading.describe import describe
from kineograph.motion import camera_offset, parse
from kineograph.training import TrainingSettings, fit, load_settings
from kineograph.training.customise.image_data import load_photos
from kineograph.training.customise.settings import (
    ImageCustomisationSettings,
    VideoCustomisationSettings,
    default_video_settings,
)
from kineograph.training.settings_file import apply_override, read_yaml
from kineograph.training.temporal_layers.latent_cache import ClipRequest, cached_latent_encoder
from kineograph.training.temporal_layers.settings import VideoTrainingSettings

SIDE = 16
TINY = {"num_frames": 2, "num_inference_steps": 1, "guidance_scale": 1.0, "height": SIDE, "width": SIDE, "seed": 0}
TINY_FLAGS = ("-n", 2, "--steps", 1, "--guidance-scale", 1, "--height", SIDE, "--width", SIDE, "--seed", 0)
SIDES = ("--height", 64, "--width", 64)  # of models of the usual scale factor
EDIT_FLAGS = (*TINY_FLAGS[2:6], "--height", SIDE, "--width", 24, "--seed", 0)  # in the shape of `_pixels`


class Reader(NamedTuple):
    """A reader of the library.

    build    writes valid inputs into a folder: each file or folder in it is one
    read     reads one; it may write into the second folder
    command  returns the arguments of the program that read it; None where there are none
    weight   share of the inputs: readers that take longer get fewer
    """

    name: str
    build: Callable[[Path], None]
    read: Callable[[Path, Path], object]
    command: Callable[[Path, Path], Sequence[object]] | None = None
    weight: float = 1.0


def _extra(out: Path) -> Path:
    """Return the folder of files that a reader needs beside its input."""
    return out.parent / "extra"


# --- images and videos


def _pixels(height: int = SIDE, width: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def build_images(folder: Path) -> None:
    rgb = Image.fromarray(_pixels())
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    modes = {"rgb": rgb, "rgba": rgb.convert("RGBA"), "palette": rgb.quantize(16), "grey": rgb.convert("L")}
    modes["16-bit"] = Image.fromarray(_pixels()[..., 0].astype(np.uint16) * 257)
    for name, image in modes.items():
        image.save(folder / f"{name}.png", icc_profile=profile if name == "rgb" else None)
    rgb.save(folder / "a.jpg", exif=exif, icc_profile=profile)
    rgb.save(folder / "progressive.jpeg", progressive=True)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.save(folder / "a.webp", exif=exif)
    rgb.save(folder / "lossless.webp", lossless=True)
    for suffix in ("bmp", "tiff", "gif"):
        rgb.save(folder / f"a.{suffix}")
    rgb.save(folder / "deflated.tif", compression="tiff_adobe_deflate")
    more = [Image.fromarray(_pixels()[::-1].copy()), rgb.transpose(Image.Transpose.ROTATE_180)]
    for suffix in ("png", "webp", "gif", "tiff"):
        rgb.save(folder / f"animated.{suffix}", save_all=True, append_images=more)


def build_videos(folder: Path) -> None:
    frames = [_pixels()[np.roll(np.arange(SIDE), shift)] for shift in range(6)]
    quick = {"preset": "ultrafast", "x265-params": "log-level=none"}
    for name, codec in {
        "a.mp4": "libx264", "a.mov": "libx264", "a.mkv": "libx264", "a.webm": "libvpx-vp9", "a.avi": "mpeg4",
        "a.mpg": "mpeg2video", "a.ts": "mpeg2video", "a.flv": "flv", "a.ogv": "libtheora", "ffv1.mkv": "ffv1",
        "a.h264": "libx264", "a.y4m": "rawvideo", "hevc.mp4": "libx265", "mjpeg.avi": "mjpeg", "a.m2v": "mpeg2video",
    }.items():  # fmt: skip
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec in av.codecs_available or codec == "libx264":
            movie(folder / name, frames, rate=25, codec=codec, pix_fmt=pix_fmt, options=quick)
    movie(folder / "alpha.mov", [np.dstack([each, each[..., :1]]) for each in frames], codec="qtrle", pix_fmt="argb")
    movie(folder / "variable.mkv", frames, rate=1000, milliseconds=[0, 40, 90, 200, 230, 400])
    movie(folder / "pq.mp4", frames, codec="libx265", pix_fmt="yuv420p10le", colour=(9, 16, 9, 1), options=quick)
    with av.open(folder / "sound.mp4", "w") as container:
        picture, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=44100)
        picture.height, picture.width, picture.pix_fmt = SIDE, 24, "yuv420p"
        for pixels in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for _ in range(9):
            part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            part.rate = 44100
            container.mux(sound.encode(part))
        container.mux([*picture.encode(None), *sound.encode(None)])
    for name in ("a.gif", "a.webp", "a.png"):
        images = [Image.fromarray(each) for each in frames]
        images[0].save(folder / name, save_all=True, append_images=images[1:], duration=70)


def read_footage(path: Path, out: Path) -> None:
    footage = open_footage(path, fps=None)
    for _ in footage.frames(SIDE, SIDE):
        pass
    footage.sound()


def build_frames(folder: Path) -> None:
    made = {"prompt": "x", "seed": 1}
    Video(np.stack([_pixels()] * 3), 8.0, made).save(folder / "ours")
    (folder / "others").mkdir()
    for number in (1, 2, 10):
        Image.fromarray(_pixels()).save(folder / "others" / f"frame_{number}.png")


def animate(path: Path, out: Path) -> Sequence[object]:
    return ["animate", path, "a fish", *TINY_FLAGS, "-o", out / "x.mp4"]


def edit(path: Path, out: Path) -> Sequence[object]:
    return ["edit", path, "make it snow", *EDIT_FLAGS, "-o", out / "x.mp4"]


def inspect_file(path: Path, out: Path) -> Sequence[object]:
    return ["inspect", path]


# --- labels, inspect and replay

LABELLED = ("a.png", "a.mp4", "a.webm", "a.gif", "a.webp")


def _recorded() -> dict[str, Any]:
    model = kg.load("pocket", device="cpu", dtype="float32")
    options = {**TINY, "num_frames": 1, "height": 32, "width": 32}
    return dict(kg.generate(model, "a red fish", **options).settings)


def build_labels(folder: Path) -> None:
    settings = _recorded()
    for name in LABELLED:
        frames = 1 if name == "a.png" else 2
        label = {"made_with": "kineograph 0", "frames": frames, "height": SIDE, "width": SIDE, "fps": 4.0}
        label |= {"settings": settings}
        (folder / f"{name}.json").write_text(json.dumps(label))


def _labelled(label: Path, out: Path) -> Path:
    """Write a file of the kind that the label's name says, with the label."""
    kind = label.name.removesuffix(".json").partition("-")[2] or label.name.removesuffix(".json")
    suffix = Path(kind).suffix
    target = _extra(out) / f"labelled{suffix}"
    frames = np.stack([_pixels(SIDE, SIDE)] * (1 if suffix == ".png" else 2))
    text = label.read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    WRITERS[suffix](target, frames, 4.0, FileTags(text, XMP), None)
    return target


def read_label(path: Path, out: Path) -> None:
    file = _labelled(path, out)
    metadata = read_video_metadata(file)
    open_video(file)
    if metadata and metadata.settings:
        recorded_request(metadata.settings)


def read_inspect(path: Path, out: Path) -> None:
    file = _labelled(path, out) if path.suffix == ".json" else path
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        inspect(file, sheet=None, json=False)
        inspect(file, sheet=out / "sheet.png", json=True)


def inspect_label(path: Path, out: Path) -> Sequence[object]:
    return ["inspect", _labelled(path, out)]


def build_settings(folder: Path) -> None:
    (folder / "a.png.json").write_text(json.dumps(_recorded()))
    made_before = Path(__file__).parents[1] / "tests" / "data" / "made_before"
    for name in ("text2video_zero", "elevated"):
        (folder / f"{name}-a.png.json").write_text(json.dumps(read_settings(made_before / name)))


def _of_settings(path: Path, out: Path) -> Path:
    label = {"frames": 1, "height": SIDE, "width": SIDE, "fps": 4.0}
    text = json.dumps(label)[:-1] + ', "settings": ' + path.read_text(encoding="utf-8", errors="replace") + "}"
    label = _extra(out) / "a.png.json"
    label.write_text(text, encoding="utf-8")
    return _labelled(label, out)


def read_replay(path: Path, out: Path) -> None:
    settings = read_settings(_of_settings(path, out))
    recorded_request(settings)


def replay(path: Path, out: Path) -> Sequence[object]:
    trust = ["--yes"] if "trust" in inspect_signature(kg.replay).parameters else []
    return ["replay", _of_settings(path, out), *trust, "-o", out / "x.mp4"]


# --- settings files


def build_yaml(folder: Path) -> None:
    examples = Path(__file__).parents[1] / "examples"
    shutil.copyfile(examples / "train_video.yaml", folder / "train_video.yaml")
    curation = yaml.safe_load((examples / "curate.yaml").read_text())
    asked = {"url": "http://localhost:1/v1", "model": "m"}
    curation |= {"captions": {"asked": asked}, "filters": {}, "run": "alone", "sources": [str(base("footage"))]}
    (folder / "curate.yaml").write_text(yaml.safe_dump(curation))
    options = {"prompt": "a fish", **TINY, "prompt_at": {1: "a bird"}, "sampler": "ddim", "camera": "pan:3,0"}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    (folder / "config.json").write_text(json.dumps({**options, "prompt_at": {"1": "a bird"}}))


def build_customisations(folder: Path) -> None:
    video = default_video_settings(kg.load("pocket-video", device="cpu"), "subject").model_dump(mode="json")
    (folder / "customise.yaml").write_text(yaml.safe_dump(video))
    (folder / "image.yaml").write_text(yaml.safe_dump(video["image"]))


SETTINGS: dict[str, Any] = {
    "curate": CurationSettings, "train_video": VideoTrainingSettings, "customise": VideoCustomisationSettings,
    "image": ImageCustomisationSettings,
}  # fmt: skip


def read_settings_file(path: Path, out: Path) -> None:
    if path.stem in SETTINGS:
        load_settings(path, SETTINGS[path.stem])
    else:
        options = read_yaml(path)
        complete({name: value for name, value in options.items() if name != "prompt"})


def use_settings_file(path: Path, out: Path) -> Sequence[object]:
    if path.stem == "config":
        return ["generate", "--config", path, "-o", out / "x.mp4"]
    command = "curate" if path.stem == "curate" else "train"
    return [command, path, f"output={out / 'o'}", "--dry-run"]


# --- data sets


def build_datasets(folder: Path) -> None:
    image, frames = io.BytesIO(), [_pixels()] * 4
    Image.fromarray(_pixels()).save(image, "PNG")
    film = movie(folder / "film.mp4", frames, options={"preset": "ultrafast"})
    media = {"a.png": image.getvalue(), "b.mp4": film.read_bytes()}
    film.unlink()
    rows = [{"file_name": "a.png", "caption": "a fish"}, {"file_name": "b.mp4", "text": ["a dog", "x"]}]
    lists = {
        "csv": {"metadata.csv": b'file_name,caption\na.png,a fish\nb.mp4,"a dog, red"\n'},
        "jsonl": {"metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()},
        "beside": {"a.txt": b"a fish", "b.json": b'{"caption": "a dog"}'},
    }
    for name, files in lists.items():
        (folder / name).mkdir()
        for file, content in {**media, **files}.items():
            (folder / name / file).write_bytes(content)
    for target in (folder / "shard.tar", folder / "shards" / "000.tar"):
        target.parent.mkdir(exist_ok=True)
        with tarfile.open(target, "w") as tar:
            for file, content in {**media, **lists["beside"]}.items():
                member = tarfile.TarInfo(f"x/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_dataset(path: Path, out: Path) -> None:
    rng, broken = np.random.default_rng(0), None
    for item in open_dataset(path):
        try:
            load_clip(item, rng, num_frames=1 if item.kind == "image" else 2, height=SIDE, width=SIDE)
        except BrokenFile as error:
            broken = error
    if broken:
        raise broken


def build_sources(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        movie(folder / name / "a.mp4", moving_square(60, 20, 48, 64), options={"preset": "ultrafast"})
        Image.fromarray(_pixels(64, 64)).save(folder / name / "c.png")
        (folder / name / "a.txt").write_text("a square")


def _curation(source: Path, output: Path) -> CurationSettings:
    return CurationSettings.model_validate(
        {"sources": [str(source)], "output": str(output), "run": "alone", "shorter_side": 32, "cuts": {"shortest": 0.2}}
    )


def _curate(source: Path, output: Path) -> None:
    with closing(curate_dataset(_curation(source, output))) as steps:
        for _ in steps:
            pass


def read_sources(path: Path, out: Path) -> None:
    _curate(path, out / "o")


def curate(path: Path, out: Path) -> Sequence[object]:
    settings = _curation(path, out / "o").model_dump(mode="json")
    file = _extra(out) / "settings.yaml"
    file.write_text(json.dumps(settings))
    return ["curate", file]


def build_curated(folder: Path) -> None:
    """Write curated folders together with their sources, whose times of modification are part of the records."""
    build_sources(folder)
    shutil.rmtree(folder / "two")
    (folder / "one").rename(folder / "sources")
    target = folder / "curated"
    target.mkdir()
    (folder / "sources").rename(target / "sources")
    _curate(target / "sources", target / "output")


def read_curated(path: Path, out: Path) -> None:
    """Resume a curation whose records are damaged."""
    shutil.copytree(path, out / "o", copy_function=shutil.copy2)
    shutil.rmtree(out / "o" / "sources")
    _curate(path / "sources", out / "o" / "output")


def build_captions(folder: Path) -> None:
    (folder / "captions.json").write_text(json.dumps({"captions": {"a": "a fish"}, "failed": {"b": "no answer"}}))


def build_photos(folder: Path) -> None:
    (folder / "dog").mkdir()
    for number in range(3):
        Image.fromarray(np.roll(_pixels(64, 80), number, 0)).save(folder / "dog" / f"{number}.png")
        (folder / "dog" / f"{number}.txt").write_text("a sks dog")


def customise(path: Path, out: Path) -> Sequence[object]:
    return ["customise", path, "--subject", "sks dog", "--dry-run", "-o", out / "x.safetensors"]


def build_collection(folder: Path) -> None:
    (folder / "set").mkdir()
    Video(np.stack([_pixels()] * 3), 8.0, {"prompt": "a fish", "seed": 1}).save(folder / "set" / "a.mp4")
    Video(np.stack([_pixels()] * 3), 8.0, {"prompt": "a fish", "seed": 1}).save(folder / "set" / "b")


def read_collection(path: Path, out: Path) -> None:
    for entry in collect_videos(path).entries:
        decode_video(entry)


def evaluate(path: Path, out: Path) -> Sequence[object]:
    return ["evaluate", path, "-o", out / "report"]


def build_reports(folder: Path) -> None:
    score = {"value": 1.5, "error": 0.1, "count": 20, "protocol": "0123456789ab", "settings": {"fps": [8, 8]}}
    (folder / "report.json").write_text(
        json.dumps({"name": "a", "videos": 20, "scores": {"motion": score, "IS": score}})
    )


def build_prompt_lists(folder: Path) -> None:
    (folder / "prompts.csv").write_text("file,prompt\na.mp4,a fish\nb.mp4,a dog\n")
    (folder / "prompts.jsonl").write_text(
        '{"file": "a.mp4", "prompt": "a fish"}\n{"file": "b.mp4", "prompt": "a dog"}\n'
    )


# --- models


def _use(model: kg.Model, **options: Any) -> None:
    """Generate a tiny video."""
    kg.generate(model, "a fish dog7", **{**TINY, **options})


def _load(source: Path, **options: Any) -> kg.Model:
    return kg.load(source, device="cpu", dtype="float32", **options)


def build_models(folder: Path) -> None:
    tiny_models.sd().save_pretrained(folder / "sd")
    tiny_models.sdxl().save_pretrained(folder / "sdxl")
    kg.save(_load(folder / "sd", motion_module=_motion_folder(folder / "mm")), folder / "video")
    shutil.rmtree(folder / "mm")


def _motion_folder(path: Path) -> Path:
    tiny_models.motion_module().save_pretrained(path)
    return path


def read_model(path: Path, out: Path) -> None:
    options = {} if path.is_dir() else {"config": base("sdxl" if path.stem == "sdxl" else "sd")}
    describe(path, device="cpu", dtype="float32", **options)
    _use(_load(path, **options))


def build_tokenizers(folder: Path) -> None:
    for old in (False, True):
        words = tiny_models.tokenizer()
        words.save_pretrained(folder / ("old" if old else "new"))
        if old:
            (folder / "old" / "tokenizer.json").unlink()
            (folder / "old" / "vocab.json").write_text(json.dumps(words.get_vocab()))
            (folder / "old" / "merges.txt").write_text("#version: 0.2\n")


def _with_tokenizer(path: Path, out: Path) -> Path:
    """Return a model's folder with this tokenizer."""
    model = _extra(out) / "model"
    shutil.copytree(base("sd"), model, copy_function=os.link)
    shutil.rmtree(model / "tokenizer")
    shutil.copytree(path, model / "tokenizer")
    return model


def read_tokenizer(path: Path, out: Path) -> None:
    _load(_with_tokenizer(path, out)).prompt(["a fish, \u00e9 \U0001f600 (x:1.2)"])


def use_tokenizer(path: Path, out: Path) -> Sequence[object]:
    return generate(_with_tokenizer(path, out), out)


def build_single_files(folder: Path) -> None:
    save_file(tiny_models.ldm(tiny_models.sd()), folder / "sd.safetensors")
    save_file(tiny_models.ldm(tiny_models.sdxl()), folder / "sdxl.safetensors")
    save_file(public_layouts.with_ema(tiny_models.ldm(tiny_models.sd())), folder / "ema.safetensors")


def build_torch_files(folder: Path) -> None:
    weights = tiny_models.ldm(tiny_models.sd())
    torch.save({"state_dict": weights, "global_step": 3}, folder / "sd.ckpt")
    torch.save(weights, folder / "old.ckpt", _use_new_zipfile_serialization=False)


def build_loras(folder: Path) -> None:
    generator, network = torch.Generator().manual_seed(0), tiny_models.unet()
    linear = [(name, each) for name, each in tiny_models.layers(network, torch.nn.Linear) if "attn" in name][:6]
    pairs = [(name, *tiny_models.low_rank(each, 2, generator), each) for name, each in linear]
    kinds: dict[str, dict[str, torch.Tensor]] = {
        "kohya": {},
        "peft": {},
        "diffusers": {},
        "dora": {},
        "loha": {},
        "lokr": {},
    }
    for name, down, up, layer in pairs:
        key, shape = f"lora_unet_{name.replace('.', '_')}", layer.weight.shape
        kinds["kohya"] |= tiny_models.kohya(key, down, up, 1.0)
        kinds["peft"] |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        kinds["diffusers"] |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
        kinds["dora"] |= {**tiny_models.kohya(key, down, up, 1.0), f"{key}.dora_scale": torch.ones(shape[0], 1)}
        kinds["loha"] |= {
            f"{key}.hada_w{n}_{end}": each.clone() for n in (1, 2) for end, each in (("a", up), ("b", down))
        }
        kinds["lokr"] |= {
            f"{key}.lokr_w1": torch.ones(2, 2),
            f"{key}.lokr_w2": torch.ones(shape[0] // 2, shape[1] // 2),
        }
    for name, weights in kinds.items():
        header = {"ss_network_dim": "2", "ss_output_name": "style"} if name == "kohya" else {"format": "pt"}
        save_file(weights, folder / f"{name}.safetensors", header)
    torch.save(kinds["kohya"], folder / "kohya.pt")
    (folder / "folder").mkdir()
    save_file(kinds["peft"], folder / "folder" / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_k"], "peft_type": "LORA", "use_dora": False}
    (folder / "folder" / "adapter_config.json").write_text(json.dumps(config))


def build_embeddings(folder: Path) -> None:
    vector = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    save_file({"dog7": vector}, folder / "dog7.safetensors")
    save_file({"clip_l": vector}, folder / "clip.safetensors")
    torch.save({"<dog7>": vector}, folder / "word.bin")
    about = {"name": "dog7", "step": 5, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vector}, **about}, folder / "a1111.pt")


def build_controlnets(folder: Path) -> None:
    network = controlnet(public_layouts.unet())
    network.save_pretrained(folder / "folder")
    save_file(dict(network.state_dict()), folder / "diffusers.safetensors")
    save_file(original(network, "control_model."), folder / "original.safetensors")
    T2IAdapter(3, [32, 64, 64, 64], 1, 8, "full_adapter").save_pretrained(folder / "t2i")


def read_controlnet(path: Path, out: Path) -> None:
    maps = Video(np.zeros((2, 64, 64, 3), np.uint8), 4.0)
    _use(_load(base("public"), controlnet={"canny": path}), control={"canny-map": maps}, height=64, width=64)


def use_controlnet(path: Path, out: Path) -> Sequence[object]:
    control = movie(_extra(out) / "map.mp4", [np.zeros((64, 64, 3), np.uint8)] * 2)
    flags = ["--controlnet", f"canny={path}", "--control", f"canny-map={control}"]
    return ["generate", "a fish", "-m", base("public"), *flags, *TINY_FLAGS, *SIDES, "-o", out / "x.mp4"]


def build_ip_adapters(folder: Path) -> None:
    for kind, projection in (("plain", ip_projection()), ("plus", ip_resampler())):
        (folder / kind).mkdir()
        save_encoder(folder / kind)
        save_file(ip_attention() | projection, folder / kind / "ip.safetensors")


def read_ip_adapter(path: Path, out: Path) -> None:
    model = _load(base("public"), ip_adapter=path / "ip.safetensors")
    _use(model, image=_pixels(), height=64, width=64)


def use_ip_adapter(path: Path, out: Path) -> Sequence[object]:
    Image.fromarray(_pixels()).save(_extra(out) / "a.png")
    flags = ["--ip-adapter", path / "ip.safetensors", "--image", _extra(out) / "a.png"]
    return ["generate", "a fish", "-m", base("public"), *flags, *TINY_FLAGS, *SIDES, "-o", out / "x.mp4"]


def build_motion_modules(folder: Path) -> None:
    _motion_folder(folder / "folder")
    weights = tiny_models.motion_module().state_dict()
    save_file({name: each.clone() for name, each in released(weights).items()}, folder / "released.safetensors")
    torch.save({"state_dict": released(weights)}, folder / "released.ckpt")


def build_vaes(folder: Path) -> None:
    network = tiny_models.vae()
    network.save_pretrained(folder / "folder")
    save_file(tiny_models.ldm_vae(network), folder / "ldm.safetensors")
    save_file({name: each.clone() for name, each in network.state_dict().items()}, folder / "diffusers.safetensors")
    torch.save({"state_dict": tiny_models.ldm_vae(network)}, folder / "ldm.pt")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    ).save_pretrained(folder / "taesd")  # fmt: skip


def _reads_option(name: str, value: Callable[[Path], Any] = lambda path: path) -> Callable[[Path, Path], None]:
    def read(path: Path, out: Path) -> None:
        _use(_load(base("sd"), **{name: value(path)}))

    return read


def _uses_option(flag: str) -> Callable[[Path, Path], Sequence[object]]:
    return lambda path, out: ["generate", "a fish", "-m", base("sd"), flag, path, *TINY_FLAGS, "-o", out / "x.mp4"]


def generate(path: Path, out: Path) -> Sequence[object]:
    config = [] if path.is_dir() else ["--config", base("sdxl" if path.stem == "sdxl" else "sd")]
    return ["generate", "a fish", "-m", path, *config, *TINY_FLAGS, "-o", out / "x.mp4"]


def convert(path: Path, out: Path) -> Sequence[object]:
    return ["convert", path, out / "converted", "--config", base("sdxl" if path.stem == "sdxl" else "sd")]


BASE = Path()


def base(name: str) -> Path:
    """Return the folder of a valid model: "sd", "sdxl", or "public", with the usual VAE, or a data set, "footage"."""
    return BASE / name


def build_base(folder: Path) -> None:
    tiny_models.sd().save_pretrained(folder / "sd")
    tiny_models.sdxl().save_pretrained(folder / "sdxl")
    public_layouts.sd().save_pretrained(folder / "public")
    (folder / "footage").mkdir()
    Image.fromarray(_pixels(64, 64)).save(folder / "footage" / "a.png")


def warm_up() -> None:
    """Import what libraries import at their first use, before processes are forked."""
    _use(_load(base("sd")), image=_pixels(), first_frame="pinned")
    importlib.import_module("peft")
    for name in ("ControlNetModel", "T2IAdapter", "MotionAdapter", "AutoencoderTiny", "StableDiffusionXLPipeline"):
        getattr(importlib.import_module("diffusers"), name)


# --- texts

OPTIONS = {
    "camera": ("pan:12,12", "zoom:1.02+rotate:-3", "path:0,0;40,0;40,40", "none"),
    "prompt": ("a red fish", "a ((big)) [red] (fish:1.5) BREAK on \\(sea\\)", "a cat <lora:style:0.8>, {a|b} __x__"),
    "braces": ("a-{08..10}.tar", "{a,b}/c{1..3}.tar"),
    "numbers": ("0.9,0.5", "1"),
    "size": ("768x512",),
    "lora": ("style.safetensors=0.8", "a=b.safetensors=unet:0.8,text_encoder:0.5"),
    "named": ("canny=in.mp4", "24=a blue fish"),
    "override": ("training.learning_rate=1e-4", "cuts.longest=4", "control.canny=[1, {a: b}]"),
    "prompt_at": ("24=a blue fish", "1=x"),
}


def build_texts(folder: Path) -> None:
    for kind, texts in OPTIONS.items():
        for number, text in enumerate(texts):
            (folder / f"{kind}-{number}.txt").write_text(text)


def read_option_text(path: Path, out: Path) -> None:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    match path.stem.partition("-")[0]:
        case "camera":
            camera_offset(parse(text), 3, 8)
            complete({"camera": text})
        case "prompt":
            for weights in ("a1111", "comfyui", "off"):
                parse_weights(text, weights)
                check_prompts([take_loras(text)[0]], weights)
        case "braces":
            for _ in expand_braces(text):
                pass
        case "numbers":
            parse_numbers(text, "a list")
        case "size":
            parse_size(text)
        case "lora":
            parse_lora(text)
        case "named":
            parse_named([text], "an option")
        case "override":
            apply_override({"training": {}, "cuts": {"longest": 1}}, text)
        case _:
            complete({"prompt_at": parse_named([text], "an option")})


def use_option_text(path: Path, out: Path) -> Sequence[object]:
    text = path.read_bytes().decode("utf-8", "surrogateescape").replace("\0", " ")
    kind = path.stem.partition("-")[0]
    flags = {
        "camera": "--camera",
        "size": "--refine-size",
        "lora": "--lora",
        "prompt_at": "--prompt-at",
        "override": "--set",
    }
    prompt = text if kind == "prompt" else "a fish"
    more = [f"{flags[kind]}={text}"] if kind in flags else []
    more += ["--memory", "0.7GB"] if kind == "size" else []  # a valid size may be beyond the limit
    return ["generate", *TINY_FLAGS, *more, "-o", out / "x.mp4", "--", prompt]


# --- kept clips, records and checkpoints


def build_clips(folder: Path) -> None:
    model = kg.load("pocket-vidrd", device="cpu")
    kg.generate(model, "a fish", **TINY, clips=2, keep_clips=folder / "kept")
    for lock in folder.rglob(".lock"):
        lock.unlink()


def read_clips(path: Path, out: Path) -> None:
    files = ClipFiles(next(path.iterdir()))
    if files.recorded_seed() is not None:
        files.load(["a fish"] * 3, 3)


def use_clips(path: Path, out: Path) -> Sequence[object]:
    kept = ["--clips", 3, "--keep-clips", shutil.copytree(path, _extra(out) / "kept")]
    return ["generate", "a fish", "-m", "pocket-vidrd", "--device", "cpu", *kept, *TINY_FLAGS, "-o", out / "x.mp4"]


def _encode(folder: Path) -> None:
    """Read a training clip through a cache of latents."""
    encode = cached_latent_encoder(_load(base("sd")), folder)
    encode(ClipRequest(("a",), "a fish", lambda: Clip(np.stack([_pixels()] * 2), 8.0, "a fish")))


def build_latents(folder: Path) -> None:
    _encode(folder / "cache")


def read_latents(path: Path, out: Path) -> None:
    _encode(Path(shutil.copytree(path, out / "cache")))


def _training() -> TrainingSettings:
    return TrainingSettings(max_train_steps=3, train_batch_size=1, checkpointing_steps=1, log_every=1, ema_decay=0.9)


def build_checkpoints(folder: Path) -> None:
    run = fit(tiny_net(), _training(), folder / "run", load_batch=load_batch, loss=loss)
    with closing(run) as steps:
        for step in steps:
            if step.step == 2:
                break


def read_checkpoint(path: Path, out: Path) -> None:
    shutil.copytree(path, out / "run")
    for _ in fit(tiny_net(), _training(), out / "run", load_batch=load_batch, loss=loss):
        pass


READERS = (
    Reader("images", build_images, lambda path, out: read_image(path), animate, 3),
    Reader("videos", build_videos, lambda path, out: open_video(path), inspect_file, 3),
    Reader("footage", build_videos, read_footage, edit, 3),
    Reader("frames", build_frames, lambda path, out: open_video(path), inspect_file, 3),
    Reader("labels", build_labels, read_label, inspect_label, 3),
    Reader("inspect", build_labels, read_inspect, inspect_label, 2),
    Reader("replay", build_settings, read_replay, replay, 3),
    Reader("settings", build_yaml, read_settings_file, use_settings_file, 3),
    Reader("customisations", build_customisations, read_settings_file, None, 1),
    Reader("texts", build_texts, read_option_text, use_option_text, 3),
    Reader("datasets", build_datasets, read_dataset, None, 3),
    Reader("sources", build_sources, read_sources, curate, 0.3),
    Reader("curated", build_curated, read_curated, None, 0.3),
    Reader("captions", build_captions, lambda path, out: read_captions(path), None, 1),
    Reader("photos", build_photos, lambda path, out: load_photos(path, least=2, side=16), customise, 2),
    Reader("collections", build_collection, read_collection, evaluate, 2),
    Reader("reports", build_reports, lambda path, out: read_scores(path), None, 1),
    Reader("prompt-lists", build_prompt_lists, lambda path, out: read_prompts(path), None, 1),
    Reader("models", build_models, read_model, generate, 0.5),
    Reader("tokenizers", build_tokenizers, read_tokenizer, use_tokenizer, 0.7),
    Reader("single-files", build_single_files, read_model, convert, 0.5),
    Reader("torch-files", build_torch_files, read_model, generate, 0.5),
    Reader("loras", build_loras, _reads_option("lora"), _uses_option("--lora"), 0.7),
    Reader(
        "embeddings", build_embeddings, _reads_option("textual_inversion"), _uses_option("--textual-inversion"), 0.7
    ),
    Reader("controlnets", build_controlnets, read_controlnet, use_controlnet, 0.5),
    Reader("ip-adapters", build_ip_adapters, read_ip_adapter, use_ip_adapter, 0.5),
    Reader(
        "motion-modules", build_motion_modules, _reads_option("motion_module"), _uses_option("--motion-module"), 0.5
    ),
    Reader("vaes", build_vaes, _reads_option("vae"), _uses_option("--vae"), 0.7),
    Reader("clips", build_clips, read_clips, use_clips, 2),
    Reader("latents", build_latents, read_latents, None, 0.7),
    Reader("checkpoints", build_checkpoints, read_checkpoint, None, 0.7),
)
