"""`generate` with control videos, and `edit`, on tiny networks."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from models.conftest import sd, sdxl, seg_controlnet
from PIL import Image

import kineograph as kg
from kineograph.errors import InputError, InputWarning
from kineograph.media.video import Video
from kineograph.request import ZERO_SCALE

FEW = {"num_inference_steps": 3, "seed": 1}


def frames(count: int, seed: int = 0, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> kg.Model:
    base = sd()
    net = seg_controlnet(base.unet)
    made = tmp_path_factory.mktemp("guided")
    base.save_pretrained(made / "sd")
    net.save_pretrained(made / "net")
    return kg.load(made / "sd", controlnet={"canny": made / "net", "seg": made / "net"}, dtype="float32")


@pytest.fixture(scope="module")
def editor() -> kg.Model:
    return kg.load(sd(in_channels=8))


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    return Video(frames(5), 10).save(tmp_path / "maps")


def test_a_video_is_as_long_and_as_fast_as_its_control(model, maps) -> None:
    video = kg.generate(model, "a fish", control={"seg-map": maps}, **FEW)
    assert (len(video), video.fps) == (5, 10)
    fewer = kg.generate(model, "a fish", control={"seg-map": maps}, fps=5, num_frames=2, **FEW)
    assert (len(fewer), fewer.fps) == (2, 5)


def test_the_control_scale_and_range_have_effect(model, maps) -> None:
    def drawn(**how: float) -> np.ndarray:
        return kg.generate(model, "a fish", control={"seg-map": maps}, **FEW, **how).frames

    full, none = drawn(), drawn(controlnet_conditioning_scale=ZERO_SCALE)
    assert (full != none).any()
    assert (none == none[:1]).all()  # one noise, one prompt: nothing else moves the frames
    with pytest.warns(InputWarning, match="no effect: none of the 3 steps is between `control_guidance_start`"):
        early = drawn(control_guidance_end=0.01)
    assert np.array_equal(early, none)  # the first timestep of three is past it already


def test_edges_of_the_control_video_are_its_maps(model, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from kineograph.models.annotators import canny

    seen = frames(3)
    video = Video(seen).save(tmp_path / "in")
    edges = Video(np.stack([canny(frame) for frame in seen])).save(tmp_path / "edges")
    found, ready = (
        kg.generate(model, "a fish", control=each, **FEW) for each in ({"canny": video}, {"canny-map": edges})
    )
    assert np.array_equal(found.frames, ready.frames)


@pytest.mark.slow
def test_frames_in_chunks_are_the_frames_at_once(model, maps) -> None:
    whole, parts = (
        kg.generate(model, "a fish", control={"seg-map": maps}, chunk_size=size, **FEW).frames for size in (8, 2)
    )
    assert np.abs(whole.astype(int) - parts).max() <= 1
    with_motion = [
        kg.generate(model, "a fish", control={"seg-map": maps}, camera="pan:32,0", chunk_size=size, **FEW).frames
        for size in (8, 2)
    ]
    assert np.abs(with_motion[0].astype(int) - with_motion[1]).max() <= 1
    assert (with_motion[0] != whole).any()


def test_several_controls_add_up(model, maps, tmp_path: Path) -> None:
    other = Video(frames(5, seed=9), 10).save(tmp_path / "other")
    both = kg.generate(model, "a fish", control={"seg-map": maps, "canny-map": other}, **FEW)
    one = kg.generate(model, "a fish", control={"seg-map": maps}, **FEW)
    assert (both.frames != one.frames).any()
    longer = Video(frames(6), 10).save(tmp_path / "longer")
    with pytest.raises(InputError, match="not equally long"):
        kg.generate(model, "a fish", control={"seg-map": maps, "canny-map": longer}, **FEW)
    wide = Video(frames(5, width=32), 10).save(tmp_path / "wide")
    with pytest.raises(InputError, match="different shapes"):
        kg.generate(model, "a fish", control={"seg-map": maps, "canny-map": wide}, **FEW)


@pytest.mark.slow
def test_a_guided_video_is_replayed_and_a_changed_control_is_named(model, maps, tmp_path: Path) -> None:
    video = kg.generate(model, "a fish", control={"seg-map": maps}, **FEW)
    assert json.loads(json.dumps(video.settings)) == video.settings
    assert "controlnet seg" in video.settings["model"]["weights"]
    path = video.save(tmp_path / "out.webp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kg.replay(path, trust=True).digest == video.digest
    Video(frames(5, seed=3), 10).overwrite(maps)
    with pytest.warns(InputWarning, match=f"the hash of {maps} was"):
        kg.replay(path, trust=True)


@pytest.mark.parametrize(
    ("control", "how", "said"),
    [
        ({"seg-map": "maps"}, {"num_frames": 9}, "has 5 frames, and 9 are asked for"),
        ({"seg-map": "nowhere"}, {}, "there is no file"),
        ({"seg": "maps"}, {}, "maps of the kind 'seg'.*seg-map=VIDEO"),
        ({"depth-map": "maps"}, {}, "no ControlNet for 'depth', only for canny, seg"),
        (
            {"seg-map": "maps"},
            {"annotators": {"depth": "net"}},
            "`annotators` for depth, and no `control`",
        ),
        ({"seg-map": "maps"}, {"height": 16, "width": 48}, "another shape"),
        (
            {"seg-map": "maps"},
            {"control_guidance_start": 0.9, "control_guidance_end": 0.2},
            "got 0.9 and 0.2",
        ),
    ],
)
def test_errors_of_controls(model, maps, control, how, said) -> None:
    named = {kind: maps if video == "maps" else maps.parent / video for kind, video in control.items()}
    with pytest.raises(InputError, match=said):
        kg.generate(model, "a fish", control=named, **FEW, **how)


@pytest.mark.slow
def test_an_edit_keeps_length_rate_and_shape_and_follows_its_input(editor, tmp_path: Path) -> None:
    one, other = (Video(frames(3, seed, width=32), 5).save(tmp_path / str(seed)) for seed in (0, 1))
    edited = kg.edit(editor, one, "make it snow", **FEW)
    assert (len(edited), edited.fps, edited.frames.shape[1:3]) == (3, 5, (8, 16))
    assert (kg.edit(editor, other, "make it snow", **FEW).frames != edited.frames).any()
    independent = kg.edit(editor, one, "make it snow", noise="independent", **FEW)
    assert np.array_equal(independent.frames[0], independent.frames[0]) and (independent.frames != edited.frames).any()
    still = Video(frames(1).repeat(3, 0), 5).save(tmp_path / "still")
    same = kg.edit(editor, still, "make it snow", **FEW).frames
    assert (same == same[:1]).all()  # shared noise and the same picture: the same frame


def test_an_edit_in_chunks_is_the_edit_at_once(editor, tmp_path: Path) -> None:
    path = Video(frames(5), 5).save(tmp_path / "in")
    whole, parts = (kg.edit(editor, path, "make it snow", chunk_size=size, **FEW).frames for size in (8, 2))
    assert np.abs(whole.astype(int) - parts).max() <= 1


def test_smoothing_changes_the_frames_after_the_first(model) -> None:
    off, on = (kg.generate(model, "a fish", num_frames=3, smooth_background=s, **FEW).frames for s in (0.0, 0.6))
    assert np.array_equal(off[0], on[0])
    assert (off[1:] != on[1:]).any()


def test_masks_may_come_from_rembg_and_its_absence_is_an_error(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(InputError, match=r"pip install 'kineograph\[saliency\]'"):
        kg.generate(model, "a fish", num_frames=2, smooth_background=0.6, foreground_masks="rembg", **FEW)
    seen = []

    def remove(picture: Image.Image, *, session: str, only_mask: bool) -> Image.Image:
        seen.append((picture.size, session, only_mask))
        return Image.new("L", picture.size, 255)

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(new_session=str, remove=remove))
    off = kg.generate(model, "a fish", num_frames=2, **FEW).frames
    on = kg.generate(model, "a fish", num_frames=2, smooth_background=0.6, foreground_masks="rembg", **FEW).frames
    assert seen and set(seen) == {((16, 16), "birefnet-general-lite", True)}
    assert np.array_equal(off, on)  # all is foreground, says this one


ALONE = """
import json, sys
import kineograph as kg
from kineograph_lab.bench.memory import peak_memory
model = kg.load(device="cpu")
for path in sys.argv[1:]:  # the shorter one first: a process never forgets its peak
    video = kg.generate(model, "a red fish", control={"pose-map": path}, num_inference_steps=1, seed=1)
    print(json.dumps([len(video), peak_memory()]))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_frames_take_hardly_more_memory_than_sixteen(tmp_path: Path) -> None:
    paths = [str(Video(frames(count, height=128, width=128), 10).save(tmp_path / str(count))) for count in (16, 100)]
    told = subprocess.run([sys.executable, "-c", ALONE, *paths], stdout=subprocess.PIPE, check=True).stdout
    (few, less), (many, more) = map(json.loads, told.splitlines())
    assert (few, many) == (16, 100) and more < 1.25 * less


def test_controlnets_of_sdxl_are_conditioned_on_the_size_too(maps) -> None:
    base = sdxl()
    model = kg.load(base, controlnet=seg_controlnet(base.unet))
    some, none = (
        kg.generate(model, "a fish", control={"seg-map": maps}, controlnet_conditioning_scale=scale, **FEW).frames
        for scale in (1.0, ZERO_SCALE)
    )
    assert (some != none).any()


def test_a_lora_works_with_a_stock_controlnet(model, maps, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    base = sd()
    base.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(base.unet))
    stock = model.control("seg").controlnet
    plain, specialised = (kg.load(sd(), lora=lora, controlnet={"seg": stock}) for lora in (None, tmp_path / "lora"))
    assert specialised.control("seg").controlnet is stock
    frames = [kg.generate(each, "a fish", control={"seg-map": maps}, **FEW).frames for each in (plain, specialised)]
    assert (frames[0] != frames[1]).any()
