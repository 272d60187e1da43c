"""Files of tiny models in every layout that `kineograph.load` reads, and mutations of such files."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderTiny
from models.conftest import scheduler, sd, seg_controlnet
from models.loading.conftest import in_ldm, prefixed
from models.loading.test_ip_adapter import saved as save_ip_adapter
from tiny_videos import adapter, shaken, two_levels, videocrafter

import kineograph as kg
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.formats.adapter_files import save_motion_adapter
from kineograph.models.formats.tensor_files import write_tensors
from kineograph.models.loading import video_checkpoints
from kineograph.models.loading.components import Components
from kineograph.models.loading.save import save
from kineograph.models.loading.video_folder import write_layers
from kineograph.models.temporal.adapters import MotionAdapter
from kineograph.models.vae.temporal_decoder import TemporalDecoder, TemporalDecoderConfig

DELETED = object()
VALUES = (
    None, True, 0, 1, -1, 2, 3, 7, 10**6, 10**18, 0.5, -0.5, 1e308, 1e-300, "", "x", "None", "silu", [], [1], [None],
    ["x"], [[1]], [1, 2], [1] * 5, {}, {"a": 1}, [{}], ["DownBlock2D"] * 2, ["diffusers", "X"], "LCMScheduler",
    "EDMEulerScheduler", "v_prediction", "trailing", DELETED,
)  # fmt: skip
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "C64", "F8_E4M3", "X", 3)
Mutation = tuple[str, Callable[[random.Random, bytes], bytes]]


class ModelFile(NamedTuple):
    """Files that `load` reads together: a file or a folder. load: returns a model with them."""

    path: Path
    load: Callable[[], kg.Model]


def write_model_files(folder: Path) -> dict[str, ModelFile]:
    """Write files of tiny models in every layout, and return them by their kind."""
    base, own = folder / "sd", folder / "files"
    sd().save_pretrained(base)
    own.mkdir()
    unet, text = sd().unet, sd().text_encoder
    names = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "encoder.layers.0.self_attn.q_proj"
    layers = {"unet": unet.get_submodule(names[0]), "te": text.get_submodule(names[1])}
    lora = {}
    for (part, layer), name in zip(layers.items(), names, strict=True):
        key = f"lora_{part}_{'text_model_' * (part == 'te')}{name.replace('.', '_')}"
        lora |= {f"{key}.lora_down.weight": torch.ones(2, layer.in_features), f"{key}.alpha": torch.tensor(1.0)}
        lora |= {f"{key}.lora_up.weight": torch.ones(layer.out_features, 2)}
    peft = {f"unet.{names[0]}.lora_{side}.weight": torch.ones(*size) for side, size in (("A", (2, 8)), ("B", (8, 2)))}
    settings = {"unet.r": 2, "unet.lora_alpha": 4, "unet.use_rslora": True, "unet.target_modules": ["to_q"]}
    motion = shaken(adapter())
    motion.save_pretrained(folder / "motion")
    net = seg_controlnet(unet)
    net.save_pretrained(folder / "controlnet")
    save_ip_adapter(folder / "ip", 32)
    two, one = (8, 8), (1, 1)
    AutoencoderTiny(3, 3, two, two, num_encoder_blocks=one, num_decoder_blocks=one).save_pretrained(folder / "taesd")
    video = kg.load(base, motion_module=motion)
    still = MotionAdapter(video.net.temporal).eval()
    video = replace(video, net=kg.load(base, motion_module=motion).net)
    kg.save(video, folder / "video")
    write_layers(TemporalDecoder(TemporalDecoderConfig(blocks=((16, 2), (8, 2)), groups=4)), folder / "decoder")
    save_motion_adapter(still, video.net.temporal, own / "still.safetensors", name="video")
    components = Components(
        crafted := two_levels(), sd().vae, (TextEncoder(sd().tokenizer, sd().text_encoder),),
        dict(scheduler().config), False, temporal=videocrafter(shaken(crafted)).temporal,
    )  # fmt: skip
    components.text_encoders[0].network.config.hidden_act = "gelu"
    save(components, folder / "crafter")
    write_tensors(in_ldm(sd()) | prefixed("cond_stage_model.transformer.text_model.", text), own / "ldm.safetensors")
    write_tensors(video_checkpoints.components_to_videocrafter(components), own / "crafter.safetensors")
    write_tensors(lora, own / "lora.safetensors")
    write_tensors(peft, own / "peft.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    write_tensors({"<dog>": torch.ones(2, 32)}, own / "word.safetensors")
    write_tensors(motion.state_dict(), own / "motion.safetensors")
    write_tensors(net.state_dict(), own / "controlnet.safetensors")
    write_tensors(sd().vae.state_dict(), own / "vae.safetensors")
    torch.save({"state_dict": lora}, own / "lora.ckpt")
    torch.save({"string_to_param": {"*": torch.ones(2, 32)}, "name": "<cat>"}, own / "word.pt")

    def part(option: str, path: Path, source: Path = base) -> ModelFile:
        return ModelFile(path, lambda: kg.load(source, **{option: path}))

    return {
        "folder": ModelFile(base, lambda: kg.load(base)),
        "video folder": ModelFile(folder / "video", lambda: kg.load(folder / "video")),
        "checkpoint": ModelFile(own / "ldm.safetensors", lambda: kg.load(own / "ldm.safetensors", config=base)),
        "VideoCrafter": ModelFile(
            own / "crafter.safetensors", lambda: kg.load(own / "crafter.safetensors", config=folder / "crafter")
        ),
        "LoRA": part("lora", own / "lora.safetensors"),
        "peft": part("lora", own / "peft.safetensors"),
        "torch": part("lora", own / "lora.ckpt"),
        "textual inversion": part("textual_inversion", own / "word.safetensors"),
        "embedding": part("textual_inversion", own / "word.pt"),
        "IP-Adapter": ModelFile(folder / "ip", lambda: kg.load(base, ip_adapter=folder / "ip/ip-adapter.safetensors")),
        "ControlNet folder": part("controlnet", folder / "controlnet"),
        "ControlNet": part("controlnet", own / "controlnet.safetensors"),
        "motion module folder": part("motion_module", folder / "motion"),
        "motion module": part("motion_module", own / "motion.safetensors"),
        "motion adapter": part("motion_adapter", own / "still.safetensors", folder / "video"),
        "VAE": part("vae", own / "vae.safetensors"),
        "TAESD": part("vae", folder / "taesd"),
        "temporal decoder": part("decoder", folder / "decoder"),
    }


def list_files(model_file: ModelFile) -> list[Path]:
    """Return the files that can be mutated."""
    kinds = {".json", ".safetensors", ".ckpt", ".pt", ".txt"}
    inside = sorted(model_file.path.rglob("*")) if model_file.path.is_dir() else [model_file.path]
    return [file for file in inside if file.suffix in kinds]


def mutate(content: bytes, suffix: str, generator: random.Random) -> bytes:
    """Return the content of a file with one change: of its settings, its header, or its bytes."""
    if generator.random() < 0.15 or suffix not in (".json", ".safetensors"):
        return _with_other_bytes(content, generator)
    if suffix == ".json":
        return json.dumps(_with_other_value(json.loads(content), generator)).encode()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if generator.random() < 0.3:
        header = _with_other_value(header, generator)
    else:
        _change_tensor(header, generator)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def _with_other_bytes(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    limit = generator.choice([16, 400, len(changed)])
    for _ in range(generator.choice([0, 1, 4])):
        changed[generator.randrange(min(limit, len(changed)))] = generator.randrange(256)
    return bytes(changed[: generator.randrange(len(changed))] if generator.random() < 0.3 else changed)


def _paths(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for place, each in list(inside)[:40]:
        yield from _paths(each, (*at, place))


def _with_other_value(content: Any, generator: random.Random) -> Any:
    changed, value = deepcopy(content), generator.choice(VALUES)
    *at, last = ("whole", *generator.choice(list(_paths(content))))
    owner = {"whole": changed}
    place: Any = owner
    for each in at:
        place = place[each]
    if value is DELETED:
        del place[last]
    else:
        place[last] = value
    return owner.get("whole", {})


def _change_tensor(header: dict[str, Any], generator: random.Random) -> None:
    """Change the name, dtype, shape or place of a tensor in the header of a safetensors file."""
    names = [name for name in header if name != "__metadata__"]
    name, other = generator.choice(names), generator.choice(names)
    entry, size = header[name], len(header[name]["shape"])
    kind = generator.randrange(8)
    if kind == 0:
        renamed = generator.choice([f"{name}x", name[1:], "x", f"{name}.9999", other.replace("0", "7")])
        header[renamed] = header.pop(name)
    elif kind == 1:
        entry["dtype"] = generator.choice(DTYPES)
    elif kind == 2:
        entry["shape"] = entry["shape"][::-1]
    elif kind == 3:
        entry["shape"] = [1] * generator.randrange(3) + entry["shape"] + [1] * generator.randrange(3)
    elif kind == 4:
        count = 1
        for each in entry["shape"]:
            count *= each
        entry["shape"] = [count]
    elif kind == 5:
        entry["shape"] = generator.choice([[], [0], [10**9], [-1], [2**62, 4], entry["shape"][: size // 2]])
    elif kind == 6:
        header[name], header[other] = header[other], header[name]
    else:
        entry["data_offsets"] = generator.choice([header[other]["data_offsets"], [0, 0], [0, 10**18], [5, 1]])
