"""The bench's two sides draw the same video, and learn the same: our walk with motion modules, and diffusers'."""

from pathlib import Path

import numpy as np
import pytest

from kineograph_lab.bench import animatediff, training
from kineograph_lab.bench.text2video_zero import save_random_pipeline
from kineograph_lab.bench.timing import Variant

FLOAT32 = Variant("float32", 1)
pytestmark = pytest.mark.parity


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs warns of what it will change
def test_the_same_video_comes_out(tmp_path: Path) -> None:
    save_random_pipeline(tmp_path, channels=32, side=8, text_layers=1)
    ours = animatediff.SIDES.load_ours(tmp_path, "float32", "torch")(5, 4)
    theirs = animatediff.SIDES.load_theirs(tmp_path, FLOAT32)(5, 4)
    assert ours.shape == theirs.shape == (5, 64, 64, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(np.diff(ours.astype(int), axis=0)).mean() > 1


@pytest.mark.slow
def test_training_comes_to_the_same(tmp_path: Path) -> None:
    save_random_pipeline(tmp_path, channels=32, side=8, text_layers=1)
    untrained = training.SIDES.load_ours(tmp_path, "float32", "torch")
    ours, theirs = untrained(3, 4), training.SIDES.load_theirs(tmp_path, FLOAT32)(3, 4)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(untrained(3, 1).astype(int) - ours).mean() > 0.01
