"""Contact sheets: prompts and seeds from a digest, layout, records, resumption, counts and errors."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Run, files
from PIL import Image

import kineograph as kg
from kineograph_lab.recipe.long.training import DEVELOPMENT_PROMPTS
from kineograph_lab.sheets import layout, page, sets, sheets
from kineograph_lab.sheets.layout import SheetRow, draw_sheets, wrap_text
from kineograph_lab.sheets.prompts import sample_sheet_cases
from kineograph_lab.sheets.sets import SETS, SheetVideo, spread_clips, spread_frames
from kineograph_lab.world import captions, wide, world

DIGEST, OTHER = "a" * 64, "b" * 64


def cases_of(name: str, count: int, digest: str = DIGEST) -> list:
    return sample_sheet_cases(digest, name, count, SETS[name].sample_prompt)


@pytest.mark.parametrize("name", SETS)
def test_prompts_and_seeds_are_a_function_of_the_digest(name: str) -> None:
    cases = cases_of(name, 24)
    assert cases == cases_of(name, 24)
    assert cases[:5] == cases_of(name, 5)  # fewer leave the others as they are
    others = cases_of(name, 24, OTHER)
    assert not {case.seed for case in cases} & {case.seed for case in others}
    assert [case.prompt for case in cases] != [case.prompt for case in others]
    assert [case.number for case in cases] == [*range(1, 25)]


@pytest.mark.parametrize("name", SETS)
def test_prompts_differ_and_none_is_a_development_prompt(name: str) -> None:
    prompts = [case.prompt.text for case in cases_of(name, SETS[name].count)]
    assert len({*prompts}) == SETS[name].count
    assert not {*prompts} & {*DEVELOPMENT_PROMPTS}


def test_sets_of_the_same_weights_have_other_prompts() -> None:
    prompts = [[case.prompt.text for case in cases_of(name, 8)] for name in ("images", "image-model")]
    assert prompts[0] != prompts[1]


@pytest.mark.parametrize("name", ["images", "image-model", "video-model", "image-to-video", "elevator", "clips"])
def test_every_kind_is_shown_once_in_24_prompts(name: str) -> None:
    kinds = [case.prompt.named["thing"] for case in cases_of(name, 48)]
    assert sorted(kinds[:24]) == sorted(kinds[24:]) == sorted(world.SUBJECTS)
    assert kinds[:24] != kinds[24:]


@pytest.mark.parametrize("name", ["image-to-video", "edit", "control"])
def test_every_kind_is_an_input_once_in_24_cases(name: str) -> None:
    kinds = [case.prompt.shot.things[0].kind for case in cases_of(name, 24)]
    assert sorted(kinds) == sorted(world.SUBJECTS)


def test_prompts_name_all_colours_scenes_and_motions() -> None:
    named = [case.prompt.named for name in ("images", "video-model", "clips") for case in cases_of(name, 48)]
    for fact, values in (("colour", world.COLOURS), ("scene", world.SCENES), ("motion", world.MOTIONS)):
        assert {each[fact] for each in named if fact in each} == {*values}


def test_prompts_have_words_of_the_grammar_alone() -> None:
    known = {*wide.wide_vocabulary()}
    for name in ("images", "image-model", "video-model", "image-to-video", "control", "elevator", "clips"):
        for case in cases_of(name, 24):
            assert {*case.prompt.text.replace(",", "").lower().split()} <= known, case.prompt.text


def test_generated_input_images_alternate_with_rendered_ones() -> None:
    cases = cases_of("image-to-video", 8)
    assert [bool(case.prompt.image_prompt) for case in cases] == [False, True] * 4
    main = cases[1].prompt.shot.things[0]
    assert f"{captions.COLOURS[main.colour][0]} {captions.KINDS[main.kind][0]}" in cases[1].prompt.image_prompt


def test_instructions_edit_each_aspect_in_turn() -> None:
    aspects = [aspect for case in cases_of("edit", 8) for aspect in case.prompt.named]
    assert aspects == ["colour", "scene", "style", "thing"] * 2


def test_the_fox_moves_in_every_way() -> None:
    cases = cases_of("fox", 22)
    assert Counter(case.prompt.named["motion"] for case in cases) == dict.fromkeys(world.MOTIONS, 2)
    assert all(case.prompt.text.startswith("a sks cat ") for case in cases)


def grey(count: int, value: int = 100, side: int = 128) -> np.ndarray:
    return np.full((count, side, side, 3), value, np.uint8)


def test_sheets_show_each_frame_where_it_belongs() -> None:
    frames = np.concatenate([grey(1, 10 * k) for k in range(16)])
    (sheet,) = draw_sheets([SheetRow(1, "a red fish", frames)])
    pixels = np.asarray(sheet)
    step, top = layout.SIDE + layout.GAP, layout.LINE
    centres = [(top + row * step + 64, layout.MARGIN + column * step + 64) for row in range(2) for column in range(8)]
    assert [int(pixels[place][0]) for place in centres] == [10 * k for k in range(16)]
    assert (pixels[: layout.LINE] < 128).any()  # number and prompt


def test_inputs_are_above_or_left_of_the_frames() -> None:
    (wide_sheet,) = draw_sheets([SheetRow(1, "x", grey(8), first=grey(1, 50, 64)[0])])
    top = layout.LINE
    assert wide_sheet.width > layout.WIDTH
    assert np.asarray(wide_sheet)[top + 64, layout.MARGIN + 64, 0] == 50
    maps = np.concatenate([grey(8, 30), grey(8, 60)], axis=2)
    (tall_sheet,) = draw_sheets([SheetRow(1, "x", grey(8), above=maps)])
    pixels = np.asarray(tall_sheet)
    assert [int(pixels[top + 32, layout.MARGIN + x, 0]) for x in (32, 96)] == [30, 60]
    assert pixels[top + 64 + layout.GAP + 64, layout.MARGIN + 64, 0] == 100


def test_images_are_eight_in_a_row_with_their_prompts_below() -> None:
    (sheet,) = draw_sheets([SheetRow(k, "a red fish swimming over the sea", grey(1)) for k in range(1, 11)])
    row = layout.MARGIN + layout.SIDE + layout.CAPTION_LINES * layout.LINE
    assert sheet.size == (layout.WIDTH, 2 * row)
    assert (np.asarray(sheet)[layout.MARGIN + layout.SIDE : row] < 90).any()


def test_sheets_have_about_as_many_videos_each_and_fit_the_limits() -> None:
    for row in (SheetRow(1, "x", grey(8)), SheetRow(1, "x", grey(16)), SheetRow(1, "x", grey(8), first=grey(1)[0])):
        drawn = draw_sheets([row] * 24)
        assert all(sheet.width <= 1600 and sheet.height <= layout.MAX_HEIGHT for sheet in drawn)
        assert len({sheet.height for sheet in drawn}) == 1


def test_long_prompts_are_wrapped_and_end_in_dots() -> None:
    text = "a red fish swimming over the sea and a blue boat, cartoon style, panning to the left"
    lines = wrap_text(text, 128, 4)
    assert " ".join(lines) == text and len(lines) <= 4
    assert wrap_text("a fish", 128, 4) == ["a fish"]
    assert wrap_text(text, 128, 2)[-1].endswith("...")


def test_frames_are_evenly_spread_with_first_and_last() -> None:
    frames = np.arange(16)
    assert spread_frames(frames).tolist() == [0, 2, 4, 6, 9, 11, 13, 15]
    assert spread_frames(np.arange(8)).tolist() == [*range(8)]
    assert spread_clips(np.arange(64), 4)[:8].tolist() == [0, 5, 10, 15, 16, 21, 26, 31]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts of the videos that were generated: grey ones, in place of those of the models."""
    texts: list[str] = []

    def generate(load: object, case: Any, options: object) -> SheetVideo:
        texts.append(case.prompt.text)
        return SheetVideo(grey(8), {"prompt": case.prompt.text, "seed": case.seed, "num_frames": 8})

    for name, each in [*SETS.items()]:
        monkeypatch.setitem(SETS, name, replace(each, generate=generate))
    return texts


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "sheets.json").read_text())["sets"][name]


def make(folder: Path, *names: str, **given: Any) -> list[str]:
    """Make sheets of two cases each, and return the lines that were logged."""
    lines: list[str] = []
    sheets.make_sheets(names, out=folder, **{"count": 2, "log": lines.append, **given})
    return lines


@pytest.mark.usefixtures("generated")
def test_records_have_prompts_seeds_weights_options_and_command(tmp_path: Path) -> None:
    make(tmp_path, "fox", "video-model", command="kineograph sheets --count 2")
    assert files(tmp_path) == ["README.md", "fox-1.jpg", "sheets.json", "video-model-1.jpg"]
    assert [*json.loads((tmp_path / "sheets.json").read_text())["sets"]] == ["video-model", "fox"]
    found = record(tmp_path, "fox")
    assert found["command"] == "kineograph sheets --count 2"
    assert found["files"][0] == "fox/adapter.safetensors"
    assert found["settings"] == {"num_frames": 8}
    case = sample_sheet_cases(found["weights"], "fox", 2, SETS["fox"].sample_prompt)[1]
    assert found["cases"][1]["prompt"] == case.prompt.text
    assert (found["cases"][1]["number"], found["cases"][1]["seed"]) == (2, case.seed)
    with Image.open(tmp_path / "fox-1.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_sets_that_are_there_are_passed_over(tmp_path: Path, generated: list[str]) -> None:
    make(tmp_path, "images")
    written = (tmp_path / "sheets.json").read_text()
    assert make(tmp_path, "images") == ["images: there already"]
    assert (tmp_path / "sheets.json").read_text() == written
    make(tmp_path, "images", "fox")
    assert len(generated) == 4  # two images and two videos
    assert (tmp_path / "images-1.jpg").exists()


@pytest.mark.parametrize("change", [{"count": 3}, {"options": {"num_inference_steps": 4}}])
def test_other_options_are_made_again(tmp_path: Path, generated: list[str], change: dict[str, Any]) -> None:
    make(tmp_path, "images")
    before = record(tmp_path, "images")
    make(tmp_path, "images", **change)
    assert len(generated) > 2 and record(tmp_path, "images")["id"] != before["id"]
    assert record(tmp_path, "images")["weights"] == before["weights"]
    assert record(tmp_path, "images")["cases"][:2] == before["cases"]


def test_a_missing_sheet_is_made_again(tmp_path: Path, generated: list[str]) -> None:
    make(tmp_path, "images")
    (tmp_path / "images-1.jpg").unlink()
    make(tmp_path, "images")
    assert len(generated) == 4


def test_an_interrupted_set_is_made_again_and_finished_ones_stay(
    tmp_path: Path, generated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "images", "fox")
    whole = SETS["fox"]

    def interrupt(*_: object) -> SheetVideo:
        raise KeyboardInterrupt

    monkeypatch.setitem(SETS, "fox", replace(whole, generate=interrupt))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "images", "fox", count=3)
    assert [*json.loads((tmp_path / "sheets.json").read_text())["sets"]] == ["images"]
    monkeypatch.setitem(SETS, "fox", whole)
    assert make(tmp_path, "images", "fox", count=3)[0] == "images: there already"
    assert record(tmp_path, "fox")["count"] == 3


@pytest.mark.usefixtures("generated")
def test_sheets_that_a_smaller_set_no_longer_has_are_removed(tmp_path: Path) -> None:
    make(tmp_path, "fox", count=24)
    assert len(record(tmp_path, "fox")["sheets"]) > 1
    make(tmp_path, "fox")
    assert files(tmp_path) == ["README.md", "fox-1.jpg", "sheets.json"]


def test_prompts_follow_from_the_weights_of_a_set_alone(tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder", "fox", "video"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.safetensors").write_text(part)
    (tmp_path / "unet" / "config.json").write_text("{}")

    def identify(name: str) -> dict[str, Any]:
        return sheets.identify_set(SETS[name], tmp_path, 2)

    before = {name: identify(name) for name in ("images", "fox")}
    assert before["images"]["files"] == ["text_encoder/a.safetensors", "unet/a.safetensors", "vae/a.safetensors"]
    (tmp_path / "fox" / "a.safetensors").write_text("another fox")
    assert identify("images") == before["images"]
    assert identify("fox")["weights"] != before["fox"]["weights"]
    (tmp_path / "unet" / "config.json").write_text('{"guidance": 5}')
    assert identify("images")["weights"] == before["images"]["weights"]
    assert identify("images")["id"] != before["images"]["id"]


@pytest.mark.usefixtures("generated")
def test_counts_of_broken_ones_are_on_the_page_of_their_sheets_alone(tmp_path: Path) -> None:
    make(tmp_path, "images", "fox")
    text = (tmp_path / "README.md").read_text()
    assert text.count(page.NOT_LOOKED_AT) == 4 and "![Sheet fox-1.jpg](fox-1.jpg)" in text
    counts = {
        "images": {"id": record(tmp_path, "images")["id"], "broken": [[2, 1], []]},
        "fox": {"id": "0123456789ab", "broken": [[1]]},
    }
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    make(tmp_path, "images")
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert next(line for line in lines if "[images]" in line).split(" | ")[2:4] == ["2 of 2 (1, 2)", "0 of 2"]
    assert next(line for line in lines if "[fox]" in line).split(" | ")[2:4] == [page.NOT_LOOKED_AT] * 2


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("[]", "an object with a record of each set"),
        ('{"foxes": {}}', "has a record of 'foxes': expected images"),
        ('{"fox": {"broken": []}}', '"id": ID'),
        ('{"fox": {"id": "a", "broken": [1, 2]}}', "a list of at most 2 looks"),
        ('{"fox": {"id": "a", "broken": [[1], [1], [1]]}}', "a list of at most 2 looks"),
        ('{"fox": {"id": "a", "broken": [["1"]]}}', "a whole number from 1 to 240, not '1'"),
        ('{"fox": {"id": "a", "broken": [[0]]}}', "a whole number from 1 to 240, not 0"),
        ("{", "is not JSON"),
    ],
)
def test_counts_of_another_form_are_refused_before_any_work(
    tmp_path: Path, generated: list[str], counts: str, message: str
) -> None:
    (tmp_path / "counts.json").write_text(counts)
    with pytest.raises(kg.InputError, match="counts.json") as raised:
        make(tmp_path, "images")
    assert message in str(raised.value)
    assert not generated


def test_invalid_arguments_are_refused_before_any_work(tmp_path: Path, generated: list[str], run: Run) -> None:
    assert "there is no set 'foxes': expected images, image-model" in run("sheets", "--sets", "images,foxes").err
    assert "--count is a whole number from 1 to 240, not 0" in run("sheets", "--count", "0").err
    assert "--count is a whole number from 1 to 240, not 241" in run("sheets", "--count", "241").err
    (tmp_path / "file").touch()
    assert "--out is a folder, and file is a file" in run("sheets", "--out", "file").err
    for text in ('{"rows": []}', "[]", '{"sets": {"fox": {"id": "0123456789ab"}}}'):
        (tmp_path / "sheets.json").write_text(text)
        assert "sheets.json is not a file of kineograph sheets" in run("sheets", "--out", ".").err
    assert not generated


@pytest.mark.usefixtures("generated")
def test_the_command_prints_the_page(run: Run) -> None:
    result = run("sheets", "--sets", "fox,images", "--count", "2", "--out", "found")
    assert (result.status, result.out) == (0, "found/README.md\n")
    assert "images: 2 of kineograph generate PROMPT --num-frames 1 --seed SEED" in result.err
    found = json.loads(run("sheets", "--sets", "fox", "--count", "2", "--out", "found", "--json").out)
    assert found["sheets"] == {"images": ["found/images-1.jpg"], "fox": ["found/fox-1.jpg"]}
    assert json.loads(Path("found/sheets.json").read_text())["sets"]["fox"]["command"].startswith("kineograph sheets ")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_set_is_generated_by_the_built_in_models(run: Run) -> None:
    result = run("sheets", "--quick", "--out", "found")
    assert result.status == 0, result.err
    records = json.loads(Path("found/sheets.json").read_text())["sets"]
    assert [*records] == [*SETS]
    for name, found in records.items():
        with Image.open(f"found/{found['sheets'][0]}") as sheet:
            assert np.asarray(sheet).std() > 20, name
        assert found["settings"]["num_inference_steps"] == 4
        assert found["count"] == len(found["cases"]) == 2
    assert records["clips"]["settings"]["clips"] == sets.CLIPS
    assert records["elevator"]["settings"]["method"] == "video-elevator"
