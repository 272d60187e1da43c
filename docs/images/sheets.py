"""Generate the contact sheets of docs/composing.md with the pocket models: `python docs/images/sheets.py`.

everything.jpg shows what `bash examples/everything.sh` writes into the current folder; strength.jpg a video and
its edits by rising strength; travel.jpg a video whose prompt changes. Time runs from left to right.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

import kineograph as kg

FOLDER = Path(__file__).parent
COLUMNS = 8


def write_sheet(videos: Iterable[kg.Video], name: str) -> None:
    """Write one row of frames for each video, evenly spread over it."""
    rows = []
    for video in videos:
        chosen = np.linspace(0, len(video) - 1, COLUMNS).round().astype(int)
        rows.append(np.concatenate(list(video.frames[chosen]), axis=1))
    Image.fromarray(np.concatenate(rows)).save(FOLDER / name, quality=88)


def main() -> None:
    """Write the three sheets."""
    model, video_model = kg.load(), kg.load("pocket-video")
    fish = kg.generate(model, "a red fish swimming over the sea", seed=1)
    edits = [
        kg.edit(model, fish, "a blue fish swimming in the snow", strength=strength, guidance_scale=5, seed=3)
        for strength in (0.3, 0.5, 0.7, 0.9)
    ]
    write_sheet([fish, *edits], "strength.jpg")
    prompt = {0: "a red fish swimming to the right over the sea", 15: "a blue fish swimming to the right in the snow"}
    write_sheet([kg.generate(video_model, prompt, guidance_scale=5, seed=2)], "travel.jpg")
    write_sheet([kg.open_video("in.mp4"), kg.open_video("everything.mp4")], "everything.jpg")


if __name__ == "__main__":
    main()
