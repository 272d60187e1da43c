"""Prompts of the UCF-101 benchmark: classes as frequent as in its training set."""

import csv

import numpy as np
import pytest

from kineograph.errors import InputError, InputWarning
from kineograph_lab.studies.vidrd import ucf101


def actions(path, counts):
    with path.open("w") as file:
        rows = [[f"class {k}", f"someone does {k}", count] for k, count in enumerate(counts)]
        csv.writer(file).writerows([["class", "prompt", "count"], *rows])
    return path


def test_classes_are_as_frequent_as_in_the_training_set(tmp_path) -> None:
    counts = np.random.default_rng(0).integers(70, 125, 101).tolist()
    found = ucf101.read_actions(actions(tmp_path / "classes.csv", counts))
    videos = list(ucf101.benchmark_videos(found, first_seed=5))
    assert len(videos) == 10_000 and [each.seed for each in videos[:2]] == [5, 6]
    assert len({each.seed for each in videos}) == 10_000
    of_class = [sum(each.label == action.label for each in videos) for action in found]
    exact = np.array(counts) * 10_000 / sum(counts)
    assert np.abs(np.array(of_class) - exact).max() < 1
    assert ucf101.allocate_videos([1, 1, 1], 2) == [1, 1, 0] and sum(ucf101.allocate_videos([3, 5, 9], 1)) == 1


def test_invalid_class_files_are_refused(tmp_path) -> None:
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
