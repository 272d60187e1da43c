"""Built-in configurations of models that come as a single file, so that none is downloaded.

The family is inferred from the names and shapes of the tensors. The prediction type, which they do not determine, is
that of the family's first release unless given or stated.
Source: the configurations released with Stable Diffusion 1.5, 2.1 and XL, SSD-1B, Segmind-Vega and Playground v2.5.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kineograph.errors import InputError, InputWarning
from kineograph.models.formats.tensor_files import Tensors, preview_names

Config = dict[str, Any]

UNET = "model.diffusion_model."
FIRST_LAYER = UNET + "input_blocks.0.0.weight"
DEEPEST = re.compile(re.escape(UNET) + r"input_blocks\.7\.1\.transformer_blocks\.\d+\.norm1\.weight")
WIDTH = 320
CHECKPOINT_PARTS = {
    "U-Net": (UNET,),
    "VAE": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner."),
}
CONTROLNET = "a ControlNet: load a model, and pass this as `controlnet`"
CONTROL_LORA = "a Control-LoRA: load a model, and pass this as `controlnet`"
T2I_ADAPTER = "a T2I-Adapter: load a model, and pass this as `controlnet`"
TEXTUAL_INVERSION = "a textual inversion: load the model it was made for, and pass this as `textual_inversion`"
# parts of tensors' names that a kind of file has, all of them -> the kind, with advice; the first one that fits
FILE_KINDS: dict[tuple[str, ...], str] = {
    ("spatial_adapter.",): "a subject or style of `kineograph customise`: load its model, and pass this as `adapter`",
    ("motion_adapter.",): "a motion adapter of Still-Moving: load a video model, and pass this as `motion_adapter`",
    ("lora_controlnet",): CONTROL_LORA,
    ("lllite_",): "a ControlLLLite, which is not supported: take a ControlNet or a T2I-Adapter",
    ("motion_modules.", "controlnet_"): "a SparseCtrl, which is not supported: take a ControlNet",
    ("motion_modules.", "lora"): "a motion LoRA: load an image model with `motion_module`, and pass this as `lora`",
    ("temporal_attentions.",): "Hotshot-XL, which is not supported: take AnimateDiff's motion modules for SDXL",
    ("control_add_embedding.",): "a ControlNet-Union, which is not supported: take one for a single kind of control",
    ("base_to_ctrl",): "a ControlNet-XS, which is not supported: take a ControlNet",
    ("enc_zero_convs",): "a ControlNet-XS, which is not supported: take a ControlNet",
    ("controlnet_x_embedder.",): "a ControlNet for Flux: expected one for a model of the SD 1.x, 2.x or SDXL family",
    ("controlnet_blocks.",): "a ControlNet for a transformer (SD3 or alike): expected one for SD 1.x, 2.x or SDXL",
    ("style_embedding",): "a T2I style adapter, which is not supported: an IP-Adapter takes the style of an image",
    ("spatial_feat_mapping",): "a fuser of CoAdapters, which is not supported: load the T2I-Adapters themselves",
    ("body.", "block1."): T2I_ADAPTER,
    ("lora_",): "a LoRA: load the model it was made for, and pass this as `lora`",
    ("_lora.",): "a LoRA: load the model it was made for, and pass this as `lora`",
    ("hada_",): "a LoHa: load the model it was made for, and pass this as `lora`",
    ("lokr_",): "a LoKr: load the model it was made for, and pass this as `lora`",
    ("control_model.",): CONTROLNET,
    ("zero_convs.", "input_hint_block."): CONTROLNET,
    ("controlnet_down_blocks.",): CONTROLNET,
    ("string_to_param",): TEXTUAL_INVERSION,
    ("emb_params",): TEXTUAL_INVERSION,
    ("clip_l", "clip_g"): TEXTUAL_INVERSION,
    ("double_blocks.",): "a transformer (Flux or alike): expected a U-Net of the SD 1.x, 2.x or SDXL family",
    ("joint_blocks.",): "a transformer (SD3 or alike): expected a U-Net of the SD 1.x, 2.x or SDXL family",
    ("motion_modules.",): "motion modules without an image model: load an image model, and pass this as "
    "`motion_module`",
    ("image_proj", "ip_adapter"): "an IP-Adapter: load the model it was made for, and pass this as `ip_adapter`",
    ("down_blocks.",): "one network in diffusers' layout: pass the folder of the whole pipeline",
    ("decoder.",): "a VAE: load a model, and pass this as `vae`",
    (UNET,): "a U-Net alone",
}
GUIDANCE_EMBEDDING = UNET + "time_embedding.cond_proj.weight"  # of latent consistency models, as diffusers names it
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
EDM = {
    "num_train_timesteps": 1000,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
COSXL = {
    "_class_name": "EDMEulerScheduler",
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": "v_prediction",
}
STATED = {"v": "v_prediction", "epsilon": "epsilon"}  # prediction types in metadata -> in diffusers
VAE = {
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}
REFINER_TEXT_ENCODER = "conditioner.embedders.0.model."
REFINER = (
    "is SDXL's refiner, which improves images of the base model and generates none from a prompt: load the base model"
)
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_H_VISION = CLIP_H | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "image_size": 224}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


class Family(NamedTuple):
    """Configuration of the models of one architecture.

    cross_attention  width of the tokens that the U-Net reads
    depth            number of transformer blocks at `DEEPEST`, by which families with the same width are told apart
    """

    name: str
    cross_attention: int
    unet: Config
    text_encoders: tuple[Config, ...]
    scaling_factor: float
    prediction_type: str
    depth: int = 1


SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_TEXT_ENCODERS = (
    CLIP_L | {"hidden_act": "quick_gelu", "projection_dim": 768},
    CLIP_G | {"hidden_act": "gelu", "projection_dim": 1280},
)
# U-Nets distilled from SDXL's (Gupta et al. 2024): fewer transformer blocks, a middle without a transformer
SSD_1B = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, 2, 4],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
VEGA = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, 1, 2],
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
}

FAMILIES = (
    Family(
        name="Stable Diffusion 1.x",
        cross_attention=768,
        unet={"sample_size": 64, "attention_head_dim": 8},
        text_encoders=(CLIP_L | {"hidden_act": "quick_gelu", "projection_dim": 768},),
        scaling_factor=0.18215,
        prediction_type="epsilon",
    ),
    Family(
        name="Stable Diffusion 2.x",
        cross_attention=1024,
        unet={"sample_size": 96, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        text_encoders=(CLIP_H | {"hidden_act": "gelu", "projection_dim": 512},),
        scaling_factor=0.18215,
        prediction_type="v_prediction",
    ),
    Family("Stable Diffusion XL", 2048, SDXL_UNET, SDXL_TEXT_ENCODERS, 0.13025, "epsilon", depth=10),
    Family("SSD-1B", 2048, SDXL_UNET | SSD_1B, SDXL_TEXT_ENCODERS, 0.13025, "epsilon", depth=4),
    Family("Segmind-Vega", 2048, SDXL_UNET | VEGA, SDXL_TEXT_ENCODERS, 0.13025, "epsilon", depth=2),
)


def refuse_partial_checkpoint(path: Path, checkpoint: Tensors, *, given_apart: Sequence[str] = ()) -> None:
    """Raise InputError unless a file has all parts of a checkpoint in the layout of Stable Diffusion's code.

    given_apart: "vae" if another VAE is given. Names files of SDXL's refiner, and quantised ones.
    """
    parts = {part: prefixes for part, prefixes in CHECKPOINT_PARTS.items() if part.lower() not in given_apart}
    missing = [part for part, prefixes in parts.items() if not any(n.startswith(prefixes) for n in checkpoint)]
    if missing:
        lacks, found = " and no ".join(missing), describe_tensors(checkpoint)
        advice = "load it with one, `vae`. " if missing == ["VAE"] else ""
        raise InputError(f"{path} is not a checkpoint of Stable Diffusion: it has no {lacks}. {advice}{found}")
    if any(name.startswith(REFINER_TEXT_ENCODER) for name in checkpoint):
        raise InputError(f"{path} {REFINER}")


def describe_tensors(tensors: Mapping[str, Any], given_as: str = "") -> str:
    """Return the probable kind of a file, inferred from tensor names, and some of the names, for error messages.

    given_as: the option that the file was given as; a kind that belongs there is not named.
    """
    kind = file_kind(tensors)
    belongs_there = given_as != "" and option_of(kind) == given_as
    looks = f"It looks like {kind}. " if kind and not belongs_there else ""
    return f"{looks}Its {len(tensors)} tensors are called {preview_names(tensors)}"


def file_kind(tensors: Mapping[str, Any]) -> str:
    """Return the probable kind of a file, inferred from tensor names, with advice; empty if it is not known."""
    names, values = "\n".join(tensors), [*tensors.values()]
    is_one_word = len(values) == 1 and "." not in names and getattr(values[0], "ndim", 0) in (1, 2)
    kinds = (kind for parts, kind in FILE_KINDS.items() if all(part in names for part in parts))
    return next(kinds, TEXTUAL_INVERSION if is_one_word else "")


def option_of(kind: str) -> str | None:
    """Return the option of `load` that takes files of a kind; None if none does."""
    found = re.search(r"pass this\s+as `(\w+)`", kind)
    return found and found[1]


def refuse_other_kind(path: Path, tensors: Mapping[str, Any], given_as: str) -> None:
    """Raise InputError for a file that another option takes than this one."""
    kind = file_kind(tensors)
    if option_of(kind) not in (None, given_as):
        raise InputError(f"{path} is no file for `{given_as}`. It looks like {kind}")


def match_family(path: Path, checkpoint: Tensors) -> Family:
    """Return the family of a checkpoint, inferred from its U-Net: channels, width of the tokens, and depth.

    Raises InputError if the family is not built in.
    """
    width = len(checkpoint.get(FIRST_LAYER, ()))
    reads = {each.shape[-1] for name, each in checkpoint.items() if name.startswith(UNET) and "attn2.to_k." in name}
    found = [family for family in FAMILIES if width == WIDTH and reads == {family.cross_attention}]
    if found:
        depth = sum(DEEPEST.fullmatch(name) is not None for name in checkpoint)
        return next((family for family in found if family.depth == depth), found[0])
    known = dict.fromkeys(f"({WIDTH}, {family.cross_attention})" for family in FAMILIES)
    names = {size: [family.name for family in FAMILIES if str(family.cross_attention) in size] for size in known}
    built_in = ", ".join(f"{' and '.join(each)} {size}" for size, each in names.items())
    token_widths = preview_names(map(str, reads)) or "of no"
    raise InputError(
        f"{path} has a U-Net {width} wide that reads tokens {token_widths} wide; built in are {built_in}. For another, "
        "name a folder in diffusers layout with the same architecture in `config`"
    )


def scheduler_marks(checkpoint: Tensors, metadata: Mapping[str, str]) -> Config:
    """Return the settings of the scheduler that a checkpoint states itself.

    Trainers mark networks with v-prediction and zero terminal SNR by empty tensors, `v_pred` and `ztsnr`; files in
    Stability's format have the prediction type in their metadata. Playground's and CosXL's files hold numbers of EDM. A
    network with an embedding of the guidance scale is a latent consistency model, whose scheduler is LCM's.
    """
    if {"edm_mean", "edm_std"} <= checkpoint.keys():
        return EDM | {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon"}
    if "edm_vpred.sigma_max" in checkpoint:
        numbers = {name: checkpoint.get(f"edm_vpred.{name}") for name in ("sigma_min", "sigma_max")}
        own = {name: float(each) for name, each in numbers.items() if each is not None and not each.is_meta}
        return EDM | COSXL | own
    marks: Config = {"_class_name": "LCMScheduler"} if GUIDANCE_EMBEDDING in checkpoint else {}
    if stated := STATED.get(metadata.get("modelspec.prediction_type", "")):
        marks["prediction_type"] = stated
    if "v_pred" in checkpoint:
        marks["prediction_type"] = "v_prediction"
    if "ztsnr" in checkpoint:
        marks |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return marks


def write_configuration(family: Family, checkpoint: Tensors, marks: Config, folder: Path) -> None:
    """Write the configuration of every component of a checkpoint as a folder in diffusers layout.

    marks: the settings of the scheduler that are known. Warns if the prediction type is not among them and the family
    has models of two.
    """
    if family.prediction_type == "v_prediction" and "prediction_type" not in marks:
        warnings.warn(
            f"a file of {family.name} does not state its prediction type: assuming v_prediction, that of the models "
            "for 768 x 768; `prediction_type` epsilon is that of those for 512 x 512",
            InputWarning,
            stacklevel=2,
        )
    scheduler = marks if "sigma_data" in marks else SCHEDULER | {"prediction_type": family.prediction_type} | marks
    own: Config = {"cross_attention_dim": family.cross_attention, "in_channels": checkpoint[FIRST_LAYER].shape[1]}
    if GUIDANCE_EMBEDDING in checkpoint:
        own["time_cond_proj_dim"] = checkpoint[GUIDANCE_EMBEDDING].shape[1]
    _write(folder / "unet", family.unet | own)
    _write(folder / "vae", _vae(family))
    _write(folder / "scheduler", scheduler, "scheduler_config.json")
    index: Config = {
        "force_zeros_for_empty_prompt": len(family.text_encoders) > 1,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for suffix, text_encoder in zip(("", "_2"), family.text_encoders, strict=False):
        _write(folder / f"text_encoder{suffix}", text_encoder | {"model_type": "clip_text_model"})
        index[f"text_encoder{suffix}"] = ["transformers", "CLIPTextModelWithProjection" if suffix else "CLIPTextModel"]
    _write(folder, index, "model_index.json")


def write_videocrafter_configuration(folder: Path) -> None:
    """Write the configuration of VideoCrafter's VAE, text and image encoders: those of Stable Diffusion 2.x."""
    family = next(each for each in FAMILIES if each.cross_attention == CLIP_H["hidden_size"])
    _write(folder / "vae", _vae(family))
    _write(folder / "text_encoder", family.text_encoders[0] | {"model_type": "clip_text_model"})
    vision = {"patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu", "model_type": "clip_vision_model"}
    _write(folder / "image_encoder", CLIP_H_VISION | vision)


def _write(folder: Path, config: Config, name: str = "config.json") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(config))


def _vae(family: Family) -> Config:
    return VAE | {"sample_size": 8 * family.unet["sample_size"], "scaling_factor": family.scaling_factor}


def vae_marks(checkpoint: Tensors) -> Config:
    """Return the settings of the VAE that a checkpoint states itself: those of latents in Playground's files."""
    numbers = {f"latents_{each}": checkpoint.get(f"edm_{each}") for each in ("mean", "std")}
    found = {name: each.flatten().tolist() for name, each in numbers.items() if each is not None}
    return found | ({"scaling_factor": EDM["sigma_data"]} if found else {})
