"""`kineograph evaluate`: real extractors with tiny weights, real files, the protocols of scores, and the reports."""

import csv
import json
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

from kineograph.errors import InputError, InputWarning
from kineograph.media.video import Video
from kineograph.metrics.collection import collect_videos, decode_video, read_prompts
from kineograph.metrics.distances import frechet_distance, moments
from kineograph.metrics.encoders import load_clip_encoder
from kineograph.metrics.evaluate import evaluate, load_metrics, write_reports
from kineograph.metrics.extractors import load_extractor, load_extractors
from kineograph.metrics.features import EVENLY_SPACED, check_video_lengths
from kineograph.metrics.report import compare_reports
from kineograph.metrics.scores import compute_scores, measure_videos
from kineograph.metrics.torchscript import ClipFormat, format_clip
from kineograph.metrics.video_metrics import clip_metric, flow_metric, pocket_gauge, told
from kineograph.models.pocket import WEIGHTS as POCKET
from kineograph_lab.judge.networks import load_judge
from kineograph_lab.studies.vidrd import ucf101
from kineograph_lab.studies.vidrd.degradations import DAMAGES, distances, frozen, shuffled
from kineograph_lab.world.captions import caption_clip
from kineograph_lab.world.world import Shot, Subject, render_clip, sample_shots

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # torch would rather have users export anew
FISH = "a red fish over the sea moving to the right"


def noise(seed: int, frames: int = 4, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


def folder_of(path, count=3, first=0, **shape):
    path.mkdir()
    for number in range(count):
        Video(noise(first + number, **shape), 8, {"prompt": f"prompt {number}"}).save(path / f"{number}.mp4")
    return path


class Network(nn.Module):
    """Means of the halves of a clip [b c t h w] in time, times fixed weights: an honest network of a few numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(6, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool3d(x, (2, 1, 1)).flatten(1))


class I3DLike(nn.Module):
    """With the arguments that StyleGAN-V's I3D has, and what they should be."""

    def forward(self, x, rescale: bool, resize: bool, return_features: bool):  # noqa: FBT001 (those are its names)
        assert rescale and resize and return_features
        return x.mean((2, 3, 4))


def scripted(path, network):
    torch.manual_seed(0)
    torch.jit.script(network.eval()).save(str(path))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = scripted(tmp_path_factory.mktemp("c3d") / "c3d.pt", Network(4))
    told = {"frames": 2, "height": 16, "width": 16, "gives": "classes"}
    path.with_name("c3d.pt.json").write_text(json.dumps(told))
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    text = sizes | {"vocab_size": 1000, "max_position_embeddings": 48, "eos_token_id": 863, "projection_dim": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((POCKET / "clip" / name).read_text())
    return folder


def save_videomae(folder, kind, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    shape = {"image_size": 32, "patch_size": 16, "num_frames": 4, **settings}
    kind(VideoMAEConfig(**sizes, **decoder, **shape)).save_pretrained(folder)
    return folder


# -- extractors


def test_clip_is_that_of_transformers_on_pictures_of_its_size(clip_folder):
    tower, frames = load_clip_encoder(clip_folder), noise(0, 3, 32, 32)
    network = CLIPModel.from_pretrained(clip_folder)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711),
    ))  # fmt: skip
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        seen = network.vision_model(pixels).pooler_output
        wanted = nn.functional.normalize(network.visual_projection(seen), dim=-1).numpy()
    assert np.allclose(tower.see(frames), wanted, atol=1e-5)
    assert np.linalg.norm(tower.read("a red fish")) == pytest.approx(1)
    assert np.allclose(
        load_extractor(f"clip:{clip_folder}").of(frames).features[:3], wanted[[0, 1, 2]].mean(0)[:3], atol=0.2
    )


def test_videomae_gives_its_last_layer_and_its_classes(tmp_path):
    frames = noise(1, 6, 32, 32)
    plain = load_extractor(f"videomae:{save_videomae(tmp_path / 'pretrained', VideoMAEForPreTraining)}")
    network = VideoMAEModel.from_pretrained(tmp_path / "pretrained")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(frames[:4]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        wanted = network(pixels[None], output_hidden_states=True).hidden_states[-1].mean(1)[0].numpy()
    assert np.allclose(plain.of(frames).features, wanted, atol=1e-4) and plain.of(frames).classes is None
    save_videomae(tmp_path / "classifier", VideoMAEForVideoClassification, num_labels=5)
    classes = load_extractor(f"videomae:{tmp_path / 'classifier'}").of(frames).classes
    assert classes.shape == (5,) and classes.sum() == pytest.approx(1)


def test_a_torchscript_gets_clips_as_its_file_says(network, tmp_path):
    extractor = load_extractor(f"torchscript:{network}")
    reading = extractor.of(noise(0))
    with torch.no_grad():
        wanted = torch.jit.load(network)(format_clip(noise(0)[:2], ClipFormat(frames=2, height=16, width=16)))[0]
    assert np.allclose(reading.features, wanted) and np.allclose(reading.classes, wanted.softmax(0))
    assert extractor.name == "c3d" and extractor.frames == 2
    i3d = load_extractor(f"torchscript:{scripted(tmp_path / 'i3d.pt', I3DLike())}")
    frames = noise(0, 16)
    assert i3d.of(frames).features == pytest.approx(frames.mean((0, 1, 2)))  # 0 to 255, at its own size
    assert i3d.of(frames).classes is None


def test_layouts_of_clips():
    frames = noise(0, 2, 4, 8)
    plain = format_clip(frames, ClipFormat(height=None, width=None, black=0, white=255, layout="btchw"))
    assert np.array_equal(plain[0].permute(0, 2, 3, 1).round().numpy(), frames)
    assert format_clip(frames, ClipFormat(height=4, width=4)).shape == (1, 3, 2, 4, 4)
    squashed = format_clip(frames, ClipFormat(height=4, width=4, fit="squash"))
    assert squashed.min() >= -1 and squashed.max() <= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("i3d", "there is no extractor 'i3d': expected pocket, clip:PATH"),
        ("clip:", "there is no extractor"),
        ("torchscript:gone.pt", "there is no file gone.pt"),
        ("clip:./gone/folder", "there is no"),
        (f"videomae:{POCKET / 'clip'}", "holds a model of the type clip, expected videomae"),
        (f"torchscript:{__file__}", "is no TorchScript file"),
    ],
)
def test_what_is_no_extractor_is_said(text, said):
    with pytest.raises(InputError, match=said):
        load_extractor(text)


def test_more_of_what_is_no_extractor(network, tmp_path, clip_folder):
    with pytest.raises(InputError, match="called alike"):
        load_extractors(["pocket", "pocket"])
    path = scripted(tmp_path / "net.pt", Network(4))
    path.with_name("net.pt.json").write_text('{"frames": 4, "tall": 3}')
    with pytest.raises(InputError, match=r"net.pt.json does not say how clips are given"):
        load_extractor(f"torchscript:{path}")
    path.with_name("net.pt.json").write_text('{"frames": 2, "layout": "btchw"}')
    with pytest.raises(InputError, match=r"net.pt cannot read a clip of 2 frames .*net.pt.json"):
        load_extractor(f"torchscript:{path}").of(noise(0))
    weights = tmp_path / "half"
    CLIPModel.from_pretrained(clip_folder).vision_model.save_pretrained(weights)
    (weights / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(InputError, match=r"lacks \d+ weights of CLIPModel"):
        load_clip_encoder(weights)


def test_the_pocket_judge_is_an_extractor():
    extractor = load_extractor("pocket")
    reading = extractor.of(render_clip(Shot("sea", "flat", (Subject("fish", "red", 1),)), 4))
    assert reading.features.shape == (224,) and reading.features.dtype == np.float64
    assert reading.classes.sum() == pytest.approx(1) and reading.classes.max() > 0.5


def test_the_pocket_judge_is_not_asked_about_other_worlds(tmp_path):
    folder = folder_of(tmp_path / "set", 1)
    with pytest.warns(InputWarning, match="1 of 1 videos are not 128 x 128"), pytest.warns(InputWarning, match="Incep"):
        evaluate([folder], extractors=[load_extractor("pocket")], gauges=[])


def test_too_short_videos_are_counted_and_named():
    extractor = load_extractor("pocket")._replace(least=3, taken=EVENLY_SPACED)
    with pytest.raises(InputError, match=r"at least 3, and 2 of 3 videos are shorter \(a has 1, c has 2\)"):
        check_video_lengths({"a": 1, "b": 3, "c": 2}, extractor)


# -- what known damage does


def test_distances_rise_with_known_damage_on_a_few_clips():
    extractor, films = load_extractor("pocket"), [render_clip(shot) for shot in islice(sample_shots(7), 4)]
    for name in ("blur", "frozen frames"):
        damage, degrees = DAMAGES[name]
        found = distances(extractor, films, films, damage, (degrees[0], degrees[-2], degrees[-1]))
        assert found[0] == pytest.approx(0, abs=1e-6 * found[-1])
        assert found[0] < found[1] < found[2], name


@pytest.fixture(scope="module")
def world():
    """Two sets of 128 different clips."""
    drawn = sample_shots(11)
    return [[render_clip(shot) for shot in islice(drawn, 128)] for _ in range(2)]


@pytest.mark.claims
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", DAMAGES)
def test_fvd_rises_with_known_damage(world, name):
    extractor, (real, others) = load_extractor("pocket"), world
    damage, degrees = DAMAGES[name]
    found = distances(extractor, real, others, damage, degrees)
    print(name, dict(zip(degrees, found, strict=True)))
    assert found == sorted(found) and found[-1] > 1.3 * found[0]


def test_damage_of_degree_0_is_none_and_of_1_is_whole():
    frames = noise(0, 8)
    for damage, degrees in DAMAGES.values():
        assert np.array_equal(damage(frames, degrees[0], 3), frames)
        assert damage(frames, degrees[-1], 3).shape == frames.shape
    assert np.array_equal(frozen(frames, 1, 0), np.repeat(frames[:1], 8, axis=0))
    whole = shuffled(frames, 1, 0)
    assert sorted(frame.tobytes() for frame in whole) == sorted(frame.tobytes() for frame in frames)
    assert not any(np.array_equal(*pair) for pair in zip(whole, frames, strict=True))


# -- numbers of a video


def test_clip_scores_are_cosines(clip_folder):
    gauge = clip_metric(load_clip_encoder(clip_folder))
    frames = np.repeat(noise(0, 1, 32, 32), 3, axis=0)
    one = read_clip(frames, "a red fish")
    found = dict(gauge.measure(one))
    assert found["frame consistency"] == pytest.approx(100) and -100 <= found["CLIP-T"] <= 100
    assert set(dict(gauge.measure(one._replace(prompt=None)))) == {"frame consistency"}
    assert dict(gauge.measure(one._replace(frames=frames[:1], prompt=None))) == {}


def read_clip(frames, prompt=None, fps=8.0):
    from kineograph.metrics.collection import DecodedVideo

    return DecodedVideo("a.mp4", frames, fps, prompt)


def test_the_judge_sees_what_the_prompt_asks_for():
    gauge = pocket_gauge(load_judge())
    film = render_clip(Shot("sea", "flat", (Subject("fish", "red", 1, motion="right"),)))
    found = dict(gauge.measure(read_clip(film, FISH)))
    assert found == {"thing seen": 1, "colour seen": 1, "scene seen": 1, "motion seen": 1}
    wrong = dict(gauge.measure(read_clip(film, "a blue cat in the snow")))
    assert wrong == {"thing seen": 0, "colour seen": 0, "scene seen": 0}
    assert dict(gauge.measure(read_clip(film))) == {}


def test_each_part_of_a_video_is_measured_by_its_own_prompt(clip_folder):
    fish, cat = (
        render_clip(Shot(place, "flat", (Subject(kind, colour, 1, motion="right"),)))
        for place, kind, colour in (("sea", "fish", "red"), ("snow", "cat", "blue"))
    )
    both = read_clip(np.concatenate([fish, cat]), FISH)._replace(then=("a blue cat moving to the left",))
    seen = {"thing seen": 1, "colour seen": 1, "scene seen": 1, "motion seen": 0.5}
    assert dict(pocket_gauge(load_judge()).measure(both)) == seen
    gauge = clip_metric(load_clip_encoder(clip_folder))
    one, other = (dict(gauge.measure(read_clip(*each)))["CLIP-T"] for each in ((fish, FISH), (cat, *both.then)))
    assert dict(gauge.measure(both))["CLIP-T"] == pytest.approx((one + other) / 2, rel=1e-4) and one != other


def test_prompts_of_the_world_are_understood():
    rng = np.random.default_rng(0)
    for shot in islice(sample_shots(3), 200):
        main = shot.things[0]
        assert told(caption_clip(shot, rng)) == {
            "thing": main.kind, "colour": main.colour, "scene": shot.scene, "motion": main.motion,
        }  # fmt: skip
    assert told("a dog") == {}


# -- folders


def test_a_folder_holds_files_and_folders_of_frames_with_their_prompts(tmp_path):
    folder = folder_of(tmp_path / "set", 1)
    Video(noise(5), 8, {"prompt": "as pictures"}).save(folder / "below" / "frames")
    Video(noise(6), 8).save(folder / "plain.webp")
    Video(noise(6), 8).save(folder / ".hidden.mp4")
    (folder / "notes.txt").write_text("no video")
    found = collect_videos(folder)
    assert [(reel.name, reel.prompt) for reel in found.reels] == [
        ("0.mp4", "prompt 0"), ("below/frames", "as pictures"), ("plain.webp", None),
    ]  # fmt: skip
    assert np.array_equal(decode_video(found.reels[1]).frames, noise(5))
    listed = collect_videos(folder, {"plain": "told", "0.mp4": "another"})
    assert [reel.prompt for reel in listed.reels] == ["another", "as pictures", "told"]
    assert len(decode_video(collect_videos(folder, fps=4).reels[0]).frames) == 2


def test_a_video_of_several_prompts_has_one_for_each_clip(tmp_path):
    told = {"prompt": "a fish", "then": ["a cat", "a dog"], "clips": 4}
    Video(noise(0, 8), 8, told).save(tmp_path / "whole.mp4")
    Video(noise(0, 7), 8, told).save(tmp_path / "cut.mp4")
    with pytest.warns(InputWarning, match=r"cut\.mp4 has 3 prompts and does not say where its clips begin"):
        cut, whole = (decode_video(reel) for reel in collect_videos(tmp_path).reels)
    assert [(len(frames), prompt) for frames, prompt in whole.told] == [
        (2, "a fish"), (2, "a cat"), (2, "a dog"), (2, "a dog"),
    ]  # fmt: skip
    assert [(len(frames), prompt) for frames, prompt in cut.told] == [(7, "a fish")]
    assert [*collect_videos(tmp_path, {"whole": "a bird", "cut": "a bird"}).reels][1].then == ()


def test_what_cannot_be_read_is_counted_and_named(tmp_path, network):
    folder = folder_of(tmp_path / "set", 2)
    (folder / "broken.mp4").write_bytes((folder / "0.mp4").read_bytes()[:500])
    with pytest.warns(InputWarning, match=r"1 of 3 videos in .* cannot be read and do not count: broken.mp4"):
        found = collect_videos(folder)
    assert [each.name for each in found.problems] == ["broken.mp4"]
    with (
        pytest.warns(InputWarning, match="1 of 1 prompts belong to no video"),
        pytest.warns(InputWarning, match="do not count"),
    ):
        collect_videos(folder, {"gone.mp4": "a fish"})
    (folder / "0.mp4").unlink()
    (folder / "1.mp4").unlink()
    with pytest.raises(InputError, match="none of the 1 videos"):
        collect_videos(folder)


def test_folders_without_videos(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        collect_videos(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("no video")
    with pytest.raises(InputError, match=r"holds no video: expected files that end in .*\.mp4"):
        collect_videos(tmp_path)
    Video(noise(0), 8).save(tmp_path / "frames")
    with pytest.raises(InputError, match="is one video"):
        collect_videos(tmp_path / "frames")


def test_prompts_come_from_tables(tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text('File_name,Prompt\na.mp4,"a fish, red"\nb.mp4,a cat\n')
    assert read_prompts(table) == {"a.mp4": "a fish, red", "b.mp4": "a cat"}
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"video": "a.mp4", "caption": "a fish"}\n\n')
    assert read_prompts(lines) == {"a.mp4": "a fish"}
    for text, said in (
        ("file,prompt\na.mp4,\n", "line 2: expected a prompt"),
        ("name,prompt\na.mp4,b\n", "line 2: expected a file"),
        ("file,prompt\n", "holds no prompts"),
        ("file,prompt\na,b\na,c\n", "line 3: a has had another prompt"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=said):
            read_prompts(table)
    lines.write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1: expected a JSON object, got 'nonsense'"):
        read_prompts(lines)
    with pytest.raises(InputError, match=r"neither a .csv nor a .jsonl"):
        read_prompts(tmp_path / "prompts.xml")
    with pytest.raises(InputError, match="there is no file"):
        read_prompts(tmp_path / "gone.csv")


# -- scores and their protocols


@pytest.fixture(scope="module")
def sets(tmp_path_factory, network):
    """Two folders of 20 videos that differ, and what measures them."""
    root = tmp_path_factory.mktemp("sets")
    extractors = load_extractors([f"torchscript:{network}"])
    return folder_of(root / "ours", 20, frames=2), folder_of(root / "theirs", 20, first=100, frames=2), extractors


@pytest.fixture(scope="module")
def reported(sets, tmp_path_factory):
    ours, theirs, extractors = sets
    out = tmp_path_factory.mktemp("report")
    found = evaluate([ours, theirs], extractors=extractors, gauges=[flow_metric()], against=theirs)
    return write_reports(found, out), found


def test_scores_have_values_errors_counts_and_protocols(sets, reported):
    (ours, theirs, extractors), (_, (found, _)) = sets, reported
    named = {score.name: score for score in found.scores}
    assert set(named) == {"motion", "followed", "warp error", "IS (c3d)", "FVD (c3d)", "KVD (c3d)"}
    assert all(score.count == 20 and score.value.error > 0 for score in found.scores)
    features = [
        np.stack([extractors[0].of(decode_video(reel).frames).features for reel in collect_videos(folder).reels])
        for folder in (ours, theirs)
    ]
    assert named["FVD (c3d)"].value.value == pytest.approx(frechet_distance(*map(moments, features)))
    sample = named["FVD (c3d)"].settings["sample"]
    assert (sample["videos"], sample["frames"], sample["fps"]) == (20, [2, 2], [8, 8])


def test_a_set_against_itself_is_at_0(sets):
    ours, _, extractors = sets
    (found,) = evaluate([ours], extractors=extractors, gauges=[], against=ours)
    assert {s.name: s.value.value for s in found.scores}["FVD (c3d)"] == pytest.approx(0, abs=1e-9)


def test_every_part_of_a_protocol_changes_its_id(sets, tmp_path, network):
    ours, theirs, extractors = sets
    kept, real = (measure_videos(collect_videos(folder), extractors) for folder in (ours, theirs))

    def fvd(ours=kept, against=real, extractor=extractors[0]):
        (found,) = [s for s in compute_scores(ours, [extractor], [], against) if s.name.startswith("FVD")]
        return found.protocol

    fewer = measure_videos(collect_videos(ours), extractors)
    prompts = {f"{number}.mp4": "another" for number in range(20)}
    ids = [
        fvd(),
        fvd(extractor=extractors[0]._replace(weights="other")),
        fvd(extractor=extractors[0]._replace(resize="to 8 x 8")),
        fvd(extractor=extractors[0]._replace(frames=1)),
        fvd(ours=measure_videos(collect_videos(ours, prompts), extractors)),
        fvd(ours=measure_videos(collect_videos(ours, fps=8.5), extractors)),
        fvd(against=kept),
    ]
    assert fvd() == fvd(ours=fewer) == ids[0] and len({*ids}) == len(ids)
    with pytest.warns(InputWarning, match=r"FVD \(c3d\) is of 20 videos against 19"):
        less = fvd(against=measure_videos(collect_some(theirs, 19), extractors))
    assert less not in ids


def collect_some(folder, count):
    from dataclasses import replace

    found = collect_videos(folder)
    return replace(found, reels=found.reels[:count])


def test_few_videos_are_warned_of(sets):
    ours, theirs, extractors = sets
    few, one = (measure_videos(collect_some(ours, count), extractors) for count in (4, 1))
    real = measure_videos(collect_videos(theirs), extractors)
    singular = "4 against 20 videos with 4 features: the covariance of so few"
    with pytest.warns(InputWarning, match="20 videos, and 4 came"), pytest.warns(InputWarning, match=singular):
        named = {score.name for score in compute_scores(few, extractors, [], real)}
    assert named == {"FVD (c3d)", "KVD (c3d)"}
    with pytest.warns(InputWarning, match="FVD is left out"), pytest.warns(InputWarning, match="Inception"):
        assert compute_scores(one, extractors, [], real) == []


def test_a_video_that_breaks_off_does_not_count(tmp_path, network):
    folder = folder_of(tmp_path / "set", 3, frames=30)
    found, extractors = collect_videos(folder), load_extractors([f"torchscript:{network}"])
    whole = (folder / "1.mp4").read_bytes()
    (folder / "1.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(InputWarning, match=r"1.mp4 does not count"):
        seen = measure_videos(found, extractors)
    assert [video.name for video in seen.videos] == ["0.mp4", "2.mp4"]
    assert [problem.name for problem in seen.problems] == ["1.mp4"]


# -- reports


def test_the_same_videos_give_the_same_json_and_nothing_half_written(reported, sets):
    path, _ = reported
    ours, theirs, extractors = sets
    (again,) = evaluate([ours], extractors=extractors, gauges=[flow_metric()], against=theirs)
    assert json.loads((path.parent / "ours.json").read_text()) == again.as_json()
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "index.html",
        "ours.json",
        "report.md",
        "theirs.json",
    ]


def test_the_table_has_a_row_for_each_score_and_protocol(reported):
    path, found = reported
    text = (path.parent / "report.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len({(score.name, score.protocol) for each in found for score in each.scores})
    assert "motion quality" in text and "±" in text


def test_the_page_needs_nothing_else_and_shows_sets_side_by_side(reported):
    path, _ = reported
    text = path.read_text()
    assert text.count("<video") == 12 * 3 and text.count("data:video/mp4;base64,") == 12 * 3
    assert 'src="http' not in text and "<script" not in text
    assert "prompt 1<" in text and "<th>against</th>" in text


def test_what_a_prompt_says_is_no_part_of_the_page(tmp_path, network):
    folder = tmp_path / "set"
    Video(noise(0), 8, {"prompt": "<script>alert(1)</script>"}).save(folder / "a<b>.mp4")
    extractors = load_extractors([f"torchscript:{network}"])
    with pytest.warns(InputWarning, match="Inception"):
        found = evaluate([folder], extractors=extractors, gauges=[])
    assert "<script" not in write_reports(found, tmp_path / "out").read_text()


def test_scores_of_one_protocol_are_compared_and_others_refused(reported, tmp_path):
    path, _ = reported
    ours, theirs = path.parent / "ours.json", tmp_path / "other.json"
    told = json.loads(ours.read_text())
    same = {row.name: row for row in compare_reports(ours, ours)}
    assert same["motion"].difference.value == 0
    assert same["motion"].difference.error == pytest.approx(same["motion"].ours.error * 2**0.5)
    for score in told["scores"]:
        if score["name"] == "FVD (c3d)":
            score["settings"]["extractor"]["resize"] = "to 8 x 8"
            score["protocol"] = "another"
    theirs.write_text(json.dumps(told))
    with pytest.raises(
        InputError, match=r"FVD \(c3d\) was measured by protocol .* extractor.resize is bicubic.* to 8 x 8"
    ):
        compare_reports(ours, theirs)
    assert len(compare_reports(ours, theirs, across=["FVD (c3d)"])) == len(same)
    with pytest.raises(InputError, match="there is no score FID on both sides"):
        compare_reports(ours, theirs, across=["FID"])
    theirs.write_text('{"scores": 3}')
    with pytest.raises(InputError, match="is no report"):
        compare_reports(ours, theirs)
    with pytest.raises(InputError, match="there is no file"):
        compare_reports(ours, tmp_path / "gone.json")


def test_names_of_folders(tmp_path, sets, network):
    extractors = sets[2]
    with pytest.raises(InputError, match="give each once"):
        evaluate([sets[0], sets[0]], extractors=extractors, gauges=[])
    one, other = tmp_path / "one" / "set", tmp_path / "other" / "set"
    for folder in (one, other):
        folder.parent.mkdir()
        folder_of(folder, 1)
    with pytest.warns(InputWarning, match="Inception"):
        names = [each.name for each in evaluate([one, other], extractors=extractors, gauges=[])]
    assert names == ["set", "set-2"]


# -- with the pocket world's own, and the command


def test_instruments_go_with_the_extractors(tmp_path, clip_folder, network):
    Image.fromarray(noise(0)[0]).save(tmp_path / "me.png")
    _, gauges = load_metrics(["pocket"], pictures=tmp_path)
    assert {name for gauge in gauges for name in gauge.numbers} >= {"CLIP-T", "CLIP-I", "motion", "thing seen"}
    _, gauges = load_metrics([f"clip:{clip_folder}"])
    assert {name for gauge in gauges for name in gauge.numbers} >= {"CLIP-T", "frame consistency"}
    extractors, gauges = load_metrics([f"torchscript:{network}"])
    assert len(gauges) == 1 and extractors[0].name == "c3d"
    with pytest.raises(InputError, match="takes a CLIP"):
        load_metrics([f"torchscript:{network}"], pictures=tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"broken.png is no picture"):
        load_metrics(["pocket"], pictures=tmp_path)


def test_clip_i_knows_the_subject(tmp_path):
    fish, cat = (Shot("sea", "flat", (Subject(kind, "red", 1),)) for kind in ("fish", "cat"))
    Image.fromarray(render_clip(fish, 1)[0]).save(tmp_path / "fish.png")
    _, gauges = load_metrics(["pocket"], pictures=tmp_path)
    (gauge,) = [each for each in gauges if "CLIP-I" in each.numbers]
    same, other = (dict(gauge.measure(read_clip(render_clip(shot, 2))))["CLIP-I"] for shot in (fish, cat))
    assert same > other and same > 90 and "pictures" in gauge.protocol


def test_the_command(tmp_path, monkeypatch, capsys):
    import typer

    from kineograph.cli import terminal
    from kineograph.cli.evaluate import evaluate as command

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end, terminal.errors_as_messages():
            app()
        return int(end.value.code or 0), *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    film = render_clip(Shot("sea", "flat", (Subject("fish", "red", 1, motion="right"),)), 4)
    for number in range(2):
        Video(np.roll(film, number, axis=2), 8, {"prompt": FISH}).save(tmp_path / "made" / f"{number}.mp4")
    status, out, err = run("made", "--against", "made", "--device", "cpu")
    assert status == 0 and out.strip() == "report/index.html"
    assert "FVD (pocket): 0.000" in err and "protocol" in err and "singular" in err
    status, out, err = run("made", "--beside", "report/made.json", "-o", "again", "--device", "cpu", "--json")
    assert status == 0 and {score["name"] for score in json.loads(out)["sets"][0]["scores"]} >= {
        "CLIP-T",
        "motion seen",
    }
    assert "beside report/made.json  motion" in err
    status, out, err = run("made", "--beside", "gone.json")
    assert status == 2 and "there is no file gone.json" in err
    with (tmp_path / "prompts.csv").open("w") as file:
        csv.writer(file).writerows([["file", "prompt"], ["0.mp4", "a blue cat"]])
    status, out, err = run("made", "--prompts", "prompts.csv", "--beside", "report/made.json", "--device", "cpu")
    assert status == 2 and "CLIP-T was measured by protocol" in err and "sample.prompts" in err
    status, out, err = run("gone")
    assert status == 2 and "there is no folder gone" in err


# -- UCF-101


def actions(path, counts):
    with path.open("w") as file:
        rows = [[f"class {k}", f"someone does {k}", count] for k, count in enumerate(counts)]
        csv.writer(file).writerows([["class", "prompt", "count"], *rows])
    return path


def test_ucf101_draws_classes_as_the_training_set_has_them(tmp_path):
    counts = np.random.default_rng(0).integers(70, 125, 101).tolist()
    found = ucf101.read_actions(actions(tmp_path / "classes.csv", counts))
    made = list(ucf101.asked(found, first_seed=5))
    assert len(made) == 10_000 and [each.seed for each in made[:2]] == [5, 6]
    assert len({each.seed for each in made}) == 10_000
    of_class = [sum(each.label == action.label for each in made) for action in found]
    exact = np.array(counts) * 10_000 / sum(counts)
    assert np.abs(np.array(of_class) - exact).max() < 1
    assert ucf101.shares([1, 1, 1], 2) == [1, 1, 0] and sum(ucf101.shares([3, 5, 9], 1)) == 1


def test_ucf101_says_what_is_wrong_with_its_file(tmp_path):
    with pytest.warns(InputWarning, match="2 classes and UCF-101 has 101"):
        ucf101.read_actions(actions(tmp_path / "classes.csv", [3, 4]))
    with pytest.raises(InputError, match=r"line 3: expected a class, its prompt and a count"):
        ucf101.read_actions(actions(tmp_path / "classes.csv", [3, 0]))
    (tmp_path / "classes.csv").write_text("class,prompt,count\na,b,1\na,c,2\n")
    with pytest.raises(InputError, match="line 3: the class a was there before"):
        ucf101.read_actions(tmp_path / "classes.csv")
    (tmp_path / "classes.csv").write_text("class,prompt,count\n")
    with pytest.raises(InputError, match="holds no classes"):
        ucf101.read_actions(tmp_path / "classes.csv")
