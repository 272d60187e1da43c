"""An option that a request does not use is refused or warned of, if it does not change the frames.

From formats/34-inert-options.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cases.program import SMALL, Said, run

import kineograph as kg
from kineograph.models.loading import load as load_module
from kineograph.models.loading.describe import describe

OPTIONS = {
    "--window": "3", "--video-steps": "3", "--clip-overlap": "1", "--foreground-masks": "rembg",
    "--controlnet-conditioning-scale": "0.2", "--clip-anchor": "0.5", "--video-prompt": "a cat",
    "--clip-noise-order": "kept", "--overlap": "1", "--revision": "main", "--lora-folder": ".",
}  # fmt: skip


@pytest.fixture(scope="module")
def generate(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Said, str]]:
    """A function that generates a video of one image model, and returns what was printed and the frames' hash."""

    def generate(*options: str) -> tuple[Said, str]:
        file = tmp_path_factory.mktemp("videos") / "s.mp4"
        said = run("generate", "a red fish", "--model", sd_folder, *SMALL, "--seed", 1, "-o", file, *options)
        return said, str(kg.open_video(file).settings["frames_sha256"]) if said.status == 0 else ""

    return generate


@pytest.fixture(scope="module")
def plain(generate: Callable[..., tuple[Said, str]]) -> str:
    """The hash of the frames without any of the options."""
    said, frames = generate()
    assert said.status == 0 and "warning" not in said.text
    return frames


@pytest.mark.slow
@pytest.mark.parametrize(("option", "value"), OPTIONS.items(), ids=OPTIONS)
def test_option_that_is_not_used_is_refused_or_warned_of(
    generate: Callable[..., tuple[Said, str]], plain: str, option: str, value: str
) -> None:
    said, frames = generate(option, value)
    assert said.status != 0 or "warning" in said.text or frames != plain
    assert not said.crashed


LOADING = {
    "config of a built-in model": ("pocket", {"config": "folder"}, "`config` does nothing here: .* pocket is built in"),
    "revision of a built-in model": ("pocket-video", {"revision": "main"}, "`revision` does nothing here"),
    "variant of a built-in model": (None, {"variant": "fp16"}, "`variant` does nothing here"),
    "config of a folder": ("folder", {"config": "folder"}, "`config` does nothing here: .* is a folder"),
    "revision of a folder": ("folder", {"revision": "main"}, "`revision` does nothing here: .* is a folder"),
    "two dtypes": ("folder", {"dtype": "float32", "torch_dtype": "float32"}, "older name of `dtype`"),
    "missing LoRA": ("folder", {"lora": "there-is-none.safetensors"}, "there is no there-is-none.safetensors"),
    "folder without LoRA": ("folder", {"lora": "folder"}, "expected pytorch_lora_weights.safetensors"),
    "missing LoRA of several": ("folder", {"lora": [("no/lora.pt", 0.5)]}, "there is no no/lora.pt"),
    "missing decoder": ("folder", {"decoder": "no/decoder.pt"}, "there is no no/decoder.pt"),
    "missing VAE": ("folder", {"vae": "no/vae.safetensors"}, "there is no no/vae.safetensors"),
    "missing textual inversion": ("folder", {"textual_inversion": {"<a>": "no/a.pt"}}, "there is no no/a.pt"),
    "missing motion module": ("folder", {"motion_module": "no/motion.ckpt"}, "there is no no/motion.ckpt"),
    "missing IP-Adapter": ("folder", {"ip_adapter": "no/ip.bin"}, "there is no no/ip.bin"),
    "missing ControlNet": ("folder", {"controlnet": {"canny": "no/net.pth"}}, "there is no no/net.pth"),
    "unknown device": ("folder", {"device": "warp:3"}, "there is no device"),
    "missing device": ("folder", {"device": "cuda:77"}, "device cuda:77 is not available"),
    "unknown dtype": ("folder", {"dtype": "int3"}, "expected dtype to be"),
}


@pytest.mark.parametrize(("source", "options", "message"), LOADING.values(), ids=LOADING)
def test_options_of_load_are_refused_before_weights_are_read(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, options: dict[str, object], message: str
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(load_module, "_open_source", fail)
    given = {name: str(sd_folder) if value == "folder" else value for name, value in options.items()}
    for function in (kg.load, describe):
        with pytest.raises(kg.InputError, match=message):
            function(str(sd_folder) if source == "folder" else source, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--lora", "no.safetensors"), ("--decoder", "no.pt"), ("--textual-inversion", "no.pt"),
                ("--device", "warp"), ("--revision", "main"), ("--camera", "pan:4,4")], ids=lambda value: value[0],
)  # fmt: skip
def test_program_refuses_before_it_loads(sd_folder: Path, tmp_path: Path, options: tuple[str, str]) -> None:
    said = run("generate", "a red fish", "--model", sd_folder, *SMALL, "-n", 1, "-o", tmp_path / "s.mp4", *options)
    assert said.status == 2 and "loading" not in said.text and "error" in said.text
