"""FreeNoise's study: three methods for long videos, their seams and their evaluations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from generation.test_animate import model  # noqa: F401

from kineograph.models.model import Model
from kineograph_lab.studies.freenoise import long_videos
from kineograph_lab.studies.freenoise.long_videos import CONTINUED, FREENOISE, WINDOWS
from kineograph_lab.studies.judges import load_pocket_judges
from kineograph_lab.studies.study import run_study, summarise_study

STAMP = {"protocol": "test", "commit": "none"}


def test_seams_are_where_the_windows_change():
    assert long_videos.seams_of([range(16), range(16, 32)], 32) == [16]
    assert long_videos.seams_of([range(8), range(6, 14)], 14) == [6, 8]
    assert long_videos.seams_of([range(8)], 8) == []


def test_changes_at_the_seams_of_each_arm():
    changes = [0.0] * 7
    changes[3] = 5.0  # from frame 3 to frame 4
    records = [{"arm": arm, "case": 0, "flow": changes} for arm in ("a", "b")]
    seams = {"a": [4], "b": [2, 6]}
    found = {
        (arm, place): list(long_videos._mean_changes(records, seams, arm, "flow", place).values)
        for arm in seams
        for place in long_videos.PLACES
    }
    assert found == {("a", "seam"): [5], ("a", "inside"): [0], ("b", "seam"): [0], ("b", "inside"): [1]}


@pytest.mark.slow
def test_three_methods_study(model: Model, tmp_path):  # noqa: F811
    study = long_videos.three_methods_study(model, load_pocket_judges(), 2, 2)
    assert study.settings["seams"][WINDOWS] and study.settings["seams"][CONTINUED] == [6, 12, 18]
    records = list(run_study(study, tmp_path, STAMP))
    assert [(each["case"], each["arm"]) for each in records] == [
        (case, arm) for case in (0, 1) for arm in (FREENOISE, WINDOWS, CONTINUED)
    ]  # any prefix is balanced
    evaluations = {each["arm"]: each["evaluations"] for each in records}
    assert evaluations[FREENOISE] == 2 * 2 and evaluations[FREENOISE] < evaluations[WINDOWS]
    assert all(len(each["flow"]) == len(each["pixels"]) == 23 for each in records)
    summary = summarise_study(study.analysis, records, tmp_path)
    assert len(summary.claims) == 4 + 8 + 6 + 2 and {each.count for each in summary.claims} == {2}
    assert {row: set(cells) for row, cells in summary.table.items()} == {row: set(study.arms) for row in summary.table}
    assert json.loads(json.dumps(study.settings))

    resumed = study._replace(arms=dict.fromkeys(study.arms, lambda cases: pytest.fail("generated again")))
    assert list(run_study(resumed, tmp_path, STAMP)) == records


@pytest.mark.slow
def test_arms_are_different_videos_of_the_same_noise(model: Model):  # noqa: F811
    study = long_videos.three_methods_study(model, load_pocket_judges(), 1, 2)
    videos = {name: generate(study.cases)[0] for name, generate in study.arms.items()}
    assert {len(each) for each in videos.values()} == {24}
    assert not np.array_equal(videos[FREENOISE], videos[WINDOWS])
    assert len(long_videos.evenly_spread(videos[FREENOISE])) == 8
