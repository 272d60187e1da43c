"""Extractors against the networks that they run, with tiny weights."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_metrics import I3DLike, Network, decoded, noise, save_videomae, scripted
from torch import nn
from transformers import CLIPModel, VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel

from kineograph import plugins
from kineograph.errors import InputError
from kineograph.metrics.encoders import load_clip_encoder
from kineograph.metrics.extractors import default_extractor, load_extractor, load_extractors, load_metrics
from kineograph.metrics.features import EVENLY_SPACED, check_video_lengths
from kineograph.metrics.torchscript import ClipFormat, format_clip
from kineograph.metrics.video_metrics import clip_metric
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab.world.world import ShotSpec, Subject, render_clip

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still what released extractors are


def test_clip_encoder_equals_transformers(clip_folder) -> None:
    encoder, frames = load_clip_encoder(clip_folder), noise(0, 3, 32, 32)
    network = CLIPModel.from_pretrained(clip_folder)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711),
    ))  # fmt: skip
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        seen = network.vision_model(pixels).pooler_output
        wanted = nn.functional.normalize(network.visual_projection(seen), dim=-1).numpy()
    assert np.allclose(encoder.encode_frames(frames), wanted, atol=1e-5)
    assert np.linalg.norm(encoder.encode_text("a red fish")) == pytest.approx(1)
    assert np.allclose(
        load_extractor(f"clip:{clip_folder}").extract(frames).features[:3], wanted[[0, 1, 2]].mean(0)[:3], atol=0.2
    )


def test_videomae_returns_last_hidden_state_and_classes(tmp_path) -> None:
    frames = noise(1, 6, 32, 32)
    plain = load_extractor(f"videomae:{save_videomae(tmp_path / 'pretrained', VideoMAEForPreTraining)}")
    network = VideoMAEModel.from_pretrained(tmp_path / "pretrained")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(frames[:4]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        wanted = network(pixels[None], output_hidden_states=True).hidden_states[-1].mean(1)[0].numpy()
    assert (
        np.allclose(plain.extract(frames).features, wanted, atol=1e-4) and plain.extract(frames).probabilities is None
    )
    save_videomae(tmp_path / "classifier", VideoMAEForVideoClassification, num_labels=5)
    classes = load_extractor(f"videomae:{tmp_path / 'classifier'}").extract(frames).probabilities
    assert classes.shape == (5,) and classes.sum() == pytest.approx(1)


def test_torchscript_gets_the_format_of_its_file(network, tmp_path) -> None:
    extractor = load_extractor(f"torchscript:{network}")
    reading = extractor.extract(noise(0))
    with torch.no_grad():
        wanted = torch.jit.load(network)(format_clip(noise(0)[:2], ClipFormat(frames=2, height=16, width=16)))[0]
    assert np.allclose(reading.features, wanted) and np.allclose(reading.probabilities, wanted.softmax(0))
    assert extractor.name == "c3d" and extractor.num_frames == 2
    i3d = load_extractor(f"torchscript:{scripted(tmp_path / 'i3d.pt', I3DLike())}")
    frames = noise(0, 16)
    assert i3d.extract(frames).features == pytest.approx(frames.mean((0, 1, 2)))  # 0 to 255, at its own size
    assert i3d.extract(frames).probabilities is None


def test_clip_formats() -> None:
    frames = noise(0, 2, 4, 8)
    plain = format_clip(frames, ClipFormat(height=None, width=None, black=0, white=255, layout="btchw"))
    assert np.array_equal(plain[0].permute(0, 2, 3, 1).round().numpy(), frames)
    assert format_clip(frames, ClipFormat(height=4, width=4)).shape == (1, 3, 2, 4, 4)
    squashed = format_clip(frames, ClipFormat(height=4, width=4, fit="squash"))
    assert squashed.min() >= -1 and squashed.max() <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i3d", "there is no extractor 'i3d': expected pocket, clip, clip:PATH"),
        ("clip:", "there is no extractor"),
        ("torchscript:gone.pt", "there is no file gone.pt"),
        ("clip:./gone/folder", "there is no"),
        (f"videomae:{POCKET / 'clip'}", "holds a model of the type clip, expected videomae"),
        (f"torchscript:{__file__}", "is no TorchScript file"),
    ],
)
def test_unknown_extractors_are_refused(text, message) -> None:
    with pytest.raises(InputError, match=message):
        load_extractor(text)


def test_broken_extractors_are_refused(network, tmp_path, clip_folder) -> None:
    with pytest.raises(InputError, match="have the same name"):
        load_extractors(["pocket", "pocket"])
    path = scripted(tmp_path / "net.pt", Network(4))
    path.with_name("net.pt.json").write_text('{"frames": 4, "tall": 3}')
    with pytest.raises(InputError, match=r"net.pt.json does not describe the input format"):
        load_extractor(f"torchscript:{path}")
    path.with_name("net.pt.json").write_text('{"frames": 2, "layout": "btchw"}')
    with pytest.raises(InputError, match=r"net.pt cannot read a clip of 2 frames .*net.pt.json"):
        load_extractor(f"torchscript:{path}").extract(noise(0))
    weights = tmp_path / "half"
    CLIPModel.from_pretrained(clip_folder).vision_model.save_pretrained(weights)
    (weights / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(InputError, match=r"lacks \d+ weights of CLIPModel"):
        load_clip_encoder(weights)


def test_too_short_videos_are_counted_and_named() -> None:
    extractor = load_extractor("pocket")._replace(min_frames=3, selection=EVENLY_SPACED)
    with pytest.raises(InputError, match=r"at least 3, and 2 of 3 videos are shorter \(a has 1, c has 2\)"):
        check_video_lengths({"a": 1, "b": 3, "c": 2}, extractor)


def test_metrics_follow_from_the_extractors(tmp_path, clip_folder, network) -> None:
    Image.fromarray(noise(0)[0]).save(tmp_path / "me.png")
    _, metrics = load_metrics(["pocket"], images=tmp_path)
    assert {name for metric in metrics for name in metric.aspects} >= {"CLIP-T", "CLIP-I", "motion", "subject accuracy"}
    _, metrics = load_metrics([f"clip:{clip_folder}"])
    assert {name for metric in metrics for name in metric.aspects} >= {"CLIP-T", "frame consistency"}
    extractors, metrics = load_metrics([f"torchscript:{network}"])
    assert len(metrics) == 2 and extractors[0].name == "c3d"
    with pytest.raises(InputError, match="needs a CLIP"):
        load_metrics([f"torchscript:{network}"], images=tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"broken.png is not an image"):
        load_metrics(["pocket"], images=tmp_path)


def test_clip_i_is_highest_for_the_subject(tmp_path) -> None:
    fish, cat = (ShotSpec("sea", "flat", (Subject(kind, "red", 1),)) for kind in ("fish", "cat"))
    Image.fromarray(render_clip(fish, 1)[0]).save(tmp_path / "fish.png")
    _, metrics = load_metrics(["pocket"], images=tmp_path)
    (metric,) = [each for each in metrics if "CLIP-I" in each.aspects]
    same, other = (dict(metric.measure(decoded(render_clip(shot, 2))))["CLIP-I"] for shot in (fish, cat))
    assert same > other and same > 90 and "pictures" in metric.protocol


def test_clip_metric_values(clip_folder) -> None:
    metric = clip_metric(load_clip_encoder(clip_folder))
    frames = np.repeat(noise(0, 1, 32, 32), 3, axis=0)
    one = decoded(frames, "a red fish")
    found = dict(metric.measure(one))
    assert found["frame consistency"] == pytest.approx(100) and -100 <= found["CLIP-T"] <= 100
    assert set(dict(metric.measure(one._replace(prompt=None)))) == {"frame consistency"}
    assert dict(metric.measure(one._replace(frames=frames[:1], prompt=None))) == {}


def test_clip_t_compares_each_part_with_its_own_prompt(clip_folder) -> None:
    metric = clip_metric(load_clip_encoder(clip_folder))
    parts = [(noise(seed, 4, 32, 32), prompt) for seed, prompt in enumerate(("a red fish", "a blue cat"))]
    both = decoded(np.concatenate([frames for frames, _ in parts]), "a red fish")._replace(
        later_prompts=("a blue cat",)
    )
    one, other = (dict(metric.measure(decoded(*part)))["CLIP-T"] for part in parts)
    assert dict(metric.measure(both))["CLIP-T"] == pytest.approx((one + other) / 2, rel=1e-4) and one != other


def test_the_default_extractor_needs_no_laboratory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_extractor() == "pocket"
    monkeypatch.setattr(plugins, "entry_points", lambda group: ())
    assert default_extractor() == "clip"
    (extractor,), metrics = load_metrics()
    assert extractor.name == "pocket-clip"
    assert {name for metric in metrics for name in metric.aspects} == {
        "CLIP-T", "frame consistency", "motion", "followed", "warp error", "sharpness",
    }  # fmt: skip
    with pytest.raises(InputError, match="'pocket' comes with .* not installed: pip install kineograph-lab"):
        load_metrics(["pocket"])


def test_missing_opencv_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"^measuring .* OpenCV, which is not installed: pip .*\[control\]'$"):
        load_metrics(["clip"])
