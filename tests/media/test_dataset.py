"""Data sets of every layout: contents, order, and messages about what is missing."""

from __future__ import annotations

import csv
import gzip
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
from numbered import tar

from kineograph.errors import InputError, InputWarning
from kineograph.media.dataset import Dataset, open_dataset
from kineograph.media.shards import expand_braces, open_range, read_text


def files(folder: Path, contents: Mapping[str, str | bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def captions(dataset: Dataset) -> dict[str, str]:
    return {item.name: item.caption for item in dataset}


def problems(dataset: Dataset) -> dict[str, str]:
    return dict(dataset.problems)


def with_problems(source: str | Path, match: str = "") -> Dataset:
    with pytest.warns(InputWarning, match=match) as warned:
        dataset = open_dataset(source)
    assert len(warned) == 1
    return dataset


def rows(*each: Mapping[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in each)


@pytest.mark.parametrize("file_column", ["file_name", "video", "path"])
@pytest.mark.parametrize("caption_column", ["caption", "text", "prompt"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_folder_with_metadata(tmp_path: Path, name, file_column, caption_column) -> None:
    files(tmp_path, {"videos/b.mp4": b"bb", "a.png": b"a", "unlisted.mp4": b"u"})
    expected = [("videos/b.mp4", 'a dog, that says "wuff"'), ("a.png", "ein Bär")]
    with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as file:
        if name.endswith("csv"):
            csv.writer(file).writerows([[file_column, "seconds", caption_column], *[(f, 3, c) for f, c in expected]])
        else:
            file.write(rows(*({file_column: f, "seconds": 3, caption_column: c} for f, c in expected)))
    for source in (tmp_path, str(tmp_path), tmp_path / name):
        dataset = open_dataset(source)
        assert captions(dataset) == {"a.png": "ein Bär", "videos/b.mp4": 'a dog, that says "wuff"'}
        assert [item.kind for item in dataset] == ["image", "video"] and dataset.problems == ()
        assert dataset.layout == name and len(dataset) == 2 and dataset[1].name == "videos/b.mp4"
    with open_range(dataset[1].file_range) as part:
        assert part.read() == b"bb"


def test_each_split_has_metadata_of_its_own(tmp_path: Path) -> None:
    one = rows({"file_name": "a.mp4", "text": "one"})
    other = rows({"file_name": "a.mp4", "text": "other"})
    files(tmp_path, {"train/a.mp4": b"", "train/metadata.jsonl": one, "test/a.mp4": b"", "test/metadata.jsonl": other})
    assert captions(open_dataset(tmp_path)) == {"test/a.mp4": "other", "train/a.mp4": "one"}
    assert captions(open_dataset(tmp_path / "train")) == {"a.mp4": "one"}


def test_unusable_rows_are_named_with_their_lines(tmp_path: Path) -> None:
    good = [{"file_name": f"{name}.mp4", "caption": name} for name in "ab"]
    bad = [{"file_name": "gone.mp4", "caption": "x"}, {"caption": "nothing"}, {"file_name": "c.mp4", "caption": " "}]
    bad += [{"file_name": "notes.pdf", "caption": "x"}, {"file_name": "x" * 5000 + ".mp4", "caption": "x"}]
    text = rows(good[0], *bad) + "{half a line\n\n[1]\n" + rows(good[1], {"file_name": "d.mp4", "caption": ["p", "q"]})
    contents = dict.fromkeys(("a.mp4", "b.mp4", "c.mp4", "d.mp4", "notes.pdf"), b"")
    files(tmp_path, {**contents, "metadata.jsonl": text})
    dataset = with_problems(tmp_path, r"4 images .* 7 times .* and 2 more")
    assert captions(dataset) == {"a.mp4": "a", "b.mp4": "b", "c.mp4": "", "d.mp4": "p"}
    reasons = problems(dataset)
    assert reasons["gone.mp4"] == "is not there (metadata.jsonl, line 2)"
    assert reasons["metadata.jsonl, line 3,"].startswith("has none of the columns file_name, video")
    assert reasons["c.mp4"] == "has no caption (metadata.jsonl, line 4)"
    assert reasons["notes.pdf"].startswith("is neither an image nor a video")
    assert reasons["metadata.jsonl, line 7,"] == reasons["metadata.jsonl, line 9,"] == "is not a JSON object"
    assert len(reasons) == 7


def test_rows_before_an_unreadable_line_are_kept(tmp_path: Path) -> None:
    text = b"file_name,caption\na.mp4,one\n" + b"x" * 10000 + b"\nb.mp4,B\xe4r\n"
    dataset = with_problems(files(tmp_path, {"a.mp4": b"", "b.mp4": b"", "metadata.csv": text}), "cannot be read")
    assert captions(dataset) == {"a.mp4": "one"}
    assert any("can't decode byte 0xe4" in reason for reason in problems(dataset).values())


def test_caption_files_beside_videos_and_images(tmp_path: Path) -> None:
    contents = {"b.mp4": b"", "b.txt": "\ufeff a dog\n", "a.JPG": b"", "a.txt": "a cat", "deep/c.webm": b""}
    contents |= {"deep/c.json": '{"text": "a cow", "fps": 8}', "d.v2.webp": b"", "d.v2.caption": "a hen"}
    contents |= {"e.gif": b"", "e.txt": "by text", "e.json": '{"caption": "by json"}', "README.md": "#", ".x.mp4": b""}
    contents |= {".cache/y.mp4": b"", "__MACOSX/z.mp4": b""}
    dataset = open_dataset(files(tmp_path, contents))
    assert captions(dataset) == {
        "a.JPG": "a cat",
        "b.mp4": "a dog",
        "d.v2.webp": "a hen",
        "deep/c.webm": "a cow",
        "e.gif": "by text",
    }
    assert [item.name for item in dataset.only("image")] == ["a.JPG", "d.v2.webp"]
    assert [item.name for item in dataset.only("video")] == ["b.mp4", "deep/c.webm", "e.gif"]
    assert dataset.layout == "files with captions beside them"


def test_missing_captions_are_empty_and_named(tmp_path: Path) -> None:
    contents = {"a.mp4": b"", "b.mp4": b"", "b.txt": "  ", "c.mp4": b"", "c.txt": b"\xff\xfe\x00", "d.mp4": b""}
    contents |= {"d.json": '{"fps": 8}', "e.mp4": b"", "e.txt": "fine", "e.jpg": b""}
    dataset = with_problems(files(tmp_path, contents), "5 images and videos can be used; 5 times")
    assert captions(dataset) == {"a.mp4": "", "b.mp4": "", "c.mp4": "", "d.mp4": "", "e.mp4": "fine"}
    reasons = problems(dataset)
    assert reasons["a.mp4"] == "has no caption" and reasons["b.mp4"] == "has an empty caption"
    assert reasons["c.mp4"].startswith("has a caption that cannot be read")
    assert reasons["d.mp4"] == "has a .json without text in any of caption, text, prompt"
    assert reasons["e.jpg"] == "is left out, as the preview of the video of this name"


def test_one_file_is_a_dataset_of_one(tmp_path: Path) -> None:
    files(tmp_path, {"a.mp4": b"", "a.txt": "alone", "b.mp4": b""})
    assert captions(open_dataset(tmp_path / "a.mp4")) == {"a.mp4": "alone"}


CONTENTS = {f"{n:03d}.{end}": f"{n} {end}".encode() for n in range(6) for end in ("mp4", "txt")}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / ".cache" / "shards"  # only what is in a dataset can be hidden
    folder.mkdir(parents=True)
    for shard in range(3):
        names = list(CONTENTS)[4 * shard : 4 * shard + 4]
        tar(folder / f"s-{shard:03d}.tar", {name: CONTENTS[name] for name in names})
    return folder


def test_shards_hold_what_the_folder_holds_in_the_same_order(tmp_path: Path, shards) -> None:
    folder = open_dataset(files(tmp_path / "folder", CONTENTS))
    assert [item.caption for item in folder] == [f"{n} txt" for n in range(6)]
    for source in (shards, str(shards / "s-{000..002}.tar"), str(shards / "s-00{0,1,2}.tar")):
        dataset = open_dataset(source)
        assert dataset.layout == "webdataset shards" and dataset.problems == ()
        assert [item.name.rsplit("/", 1)[1] for item in dataset] == [item.name for item in folder]
        assert [item.caption for item in dataset] == [item.caption for item in folder]
        assert [read_text(item.file_range) for item in dataset] == [read_text(item.file_range) for item in folder]
    assert captions(open_dataset(shards / "s-001.tar")) == {"s-001.tar/002.mp4": "2 txt", "s-001.tar/003.mp4": "3 txt"}


def test_a_part_of_a_tar_reads_like_a_file(shards) -> None:
    with open_range(open_dataset(shards / "s-001.tar")[0].file_range) as part:
        assert (part.read(2), part.tell(), part.read(), part.read(), part.size) == (b"2 ", 2, b"mp4", b"", 5)
        assert (part.seek(-3, os.SEEK_END), part.read(99)) == (2, b"mp4")
        assert (part.seek(1), part.seek(1, os.SEEK_CUR), part.read(1)) == (1, 2, b"m")
        assert part.seek(-9, os.SEEK_CUR) == 0 and part.seek(50) == 50 and part.read(1) == b""


def test_members_of_tars_of_several_writers_are_found(tmp_path: Path) -> None:
    name = "deep/" + "long" * 40 + ".mp4"
    contents = {
        "./a.mp4": b"1",
        "./a.json": b'{"caption": "a"}',
        name: b"2",
        f"{name[:-4]}.txt": b"b",
        "./._a.mp4": b"",
    }
    dataset = open_dataset(tar(tmp_path / "s.tar", contents))
    assert captions(dataset) == {"s.tar/a.mp4": "a", f"s.tar/{name}": "b"}


def test_missing_truncated_and_compressed_shards_are_named(shards) -> None:
    whole = (shards / "s-001.tar").read_bytes()
    (shards / "s-001.tar").write_bytes(whole[:1030])  # the first file and a bit of the next one's header
    (shards / "s-002.tar").write_bytes(gzip.compress((shards / "s-002.tar").read_bytes()))
    dataset = with_problems(str(shards / "s-{000..003}.tar"), r"3 images")
    assert [item.caption for item in dataset] == ["0 txt", "1 txt", ""]
    reasons = {Path(name).name: reason for name, reason in dataset.problems}
    assert "breaks off after 1 files" in reasons["s-001.tar"] and "breaks off after 0 files" in reasons["s-002.tar"]
    assert (reasons["s-003.tar"], reasons["002.mp4"]) == ("is not there", "has no caption")


def test_a_truncated_member_is_left_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"a.mp4": b"1", "a.txt": b"a", "b.mp4": b"2" * 5000})
    path.write_bytes(path.read_bytes()[:4000])
    assert captions(with_problems(path, "unexpected end of data")) == {"s.tar/a.mp4": "a"}


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = ["b.mp4", "a/z.mp4", "a.mp4", "B.mp4", "é.mp4"]
    for number, order in enumerate((names, names[::-1])):
        contents = {file: b"" for name in order for file in (name, name.replace("mp4", "txt"))}
        with warnings.catch_warnings(action="ignore"):
            found = open_dataset(files(tmp_path / str(number), contents))
        assert [item.name for item in found] == ["B.mp4", "a.mp4", "a/z.mp4", "b.mp4", "é.mp4"]


def test_an_empty_dataset_is_refused_with_what_was_looked_for_and_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(InputError, match=r"Looked for: metadata\.jsonl or .*\.mp4.*Found: no files"):
        open_dataset(tmp_path)
    files(tmp_path / "x", {"a.parquet": b"", "b.parquet": b"", "notes": b""})
    with pytest.raises(InputError, match=r"Found: 2 of \.parquet, 1 of no ending$"):
        open_dataset(tmp_path / "x")
    files(tmp_path / "y", {"metadata.jsonl": rows({"file_name": "gone.mp4", "caption": "x"})})
    with pytest.raises(InputError, match=r"Problems: gone\.mp4 is not there \(metadata\.jsonl, line 1\)"):
        open_dataset(tmp_path / "y")
    with pytest.raises(InputError, match=r"Found: 3 of \.tar.*s-0\.tar is not there"):
        open_dataset(tmp_path / "s-{0..2}.tar")
    with pytest.raises(InputError, match=r"Found: 1 of \.parquet"):
        open_dataset(tmp_path / "x" / "a.parquet")


def test_long_names_of_files_are_shortened_in_messages(tmp_path: Path) -> None:
    files(tmp_path, {"metadata.csv": f"file_name,caption\n{'a' * 200}/{'b' * 5000}.mp4,a fish\n"})
    with pytest.raises(InputError, match="holds nothing to train on") as caught:
        open_dataset(tmp_path)
    assert len(str(caught.value)) < 1500
