"""Videos of a folder and their prompts, from real files."""

import numpy as np
import pytest
from tiny_metrics import folder_of, noise

from kineograph.errors import InputError, InputWarning
from kineograph.media.video import Video
from kineograph.metrics.collection import collect_videos, decode_video, read_prompts


def test_files_and_frame_folders_are_found_with_their_prompts(tmp_path) -> None:
    folder = folder_of(tmp_path / "set", 1)
    Video(noise(5), 8, {"prompt": "as pictures"}).save(folder / "below" / "frames")
    Video(noise(6), 8).save(folder / "plain.webp")
    Video(noise(6), 8).save(folder / ".hidden.mp4")
    (folder / "notes.txt").write_text("no video")
    found = collect_videos(folder)
    assert [(entry.name, entry.prompt) for entry in found.entries] == [
        ("0.mp4", "prompt 0"), ("below/frames", "as pictures"), ("plain.webp", None),
    ]  # fmt: skip
    assert np.array_equal(decode_video(found.entries[1]).frames, noise(5))
    listed = collect_videos(folder, {"plain": "a fish", "0.mp4": "another"})
    assert [entry.prompt for entry in listed.entries] == ["another", "as pictures", "a fish"]
    assert len(decode_video(collect_videos(folder, fps=4).entries[0]).frames) == 2


def test_each_clip_of_a_long_video_has_its_prompt(tmp_path) -> None:
    settings = {"prompt": "a fish", "then": ["a cat", "a dog"], "clips": 4}
    Video(noise(0, 8), 8, settings).save(tmp_path / "whole.mp4")
    Video(noise(0, 7), 8, settings).save(tmp_path / "cut.mp4")
    with pytest.warns(InputWarning, match=r"cut\.mp4 has 3 prompts and does not say where its clips begin"):
        cut, whole = (decode_video(entry) for entry in collect_videos(tmp_path).entries)
    assert [(len(frames), prompt) for frames, prompt in whole.prompted_parts] == [
        (2, "a fish"), (2, "a cat"), (2, "a dog"), (2, "a dog"),
    ]  # fmt: skip
    assert [(len(frames), prompt) for frames, prompt in cut.prompted_parts] == [(7, "a fish")]
    assert [*collect_videos(tmp_path, {"whole": "a bird", "cut": "a bird"}).entries][1].later_prompts == ()


def test_unreadable_videos_are_counted_and_named(tmp_path, network) -> None:
    folder = folder_of(tmp_path / "set", 2)
    (folder / "broken.mp4").write_bytes((folder / "0.mp4").read_bytes()[:500])
    with pytest.warns(InputWarning, match=r"1 of 3 videos in .* cannot be read and are left out: broken.mp4"):
        found = collect_videos(folder)
    assert [each.name for each in found.problems] == ["broken.mp4"]
    with (
        pytest.warns(InputWarning, match="1 of 1 prompts belong to no video"),
        pytest.warns(InputWarning, match="are left out"),
    ):
        collect_videos(folder, {"gone.mp4": "a fish"})
    (folder / "0.mp4").unlink()
    (folder / "1.mp4").unlink()
    with pytest.raises(InputError, match="none of the 1 videos"):
        collect_videos(folder)


def test_folders_without_videos_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        collect_videos(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("no video")
    with pytest.raises(InputError, match=r"holds no video: expected files that end in .*\.mp4"):
        collect_videos(tmp_path)
    Video(noise(0), 8).save(tmp_path / "frames")
    with pytest.raises(InputError, match="is one video"):
        collect_videos(tmp_path / "frames")


def test_prompts_are_read_from_csv_and_jsonl(tmp_path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('File_name,Prompt\na.mp4,"a fish, red"\nb.mp4,a cat\n')
    assert read_prompts(table) == {"a.mp4": "a fish, red", "b.mp4": "a cat"}
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"video": "a.mp4", "caption": "a fish"}\n\n')
    assert read_prompts(lines) == {"a.mp4": "a fish"}
    for text, message in (
        ("file,prompt\na.mp4,\n", "line 2: expected a prompt"),
        ("name,prompt\na.mp4,b\n", "line 2: expected a file"),
        ("file,prompt\n", "holds no prompts"),
        ("file,prompt\na,b\na,c\n", "line 3: a has another prompt"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            read_prompts(table)
    lines.write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read_prompts(lines)
    with pytest.raises(InputError, match=r"neither a .csv nor a .jsonl"):
        read_prompts(tmp_path / "prompts.xml")
    with pytest.raises(InputError, match="there is no file"):
        read_prompts(tmp_path / "gone.csv")
