"""Draws the README's picture of videos that follow a video: `python docs/images/follow.py`.

A clip of the pocket world, and what `kineograph generate PROMPT --control canny=CLIP --guidance-scale 3` and
`kineograph edit CLIP PROMPT --guidance-scale 3` make of it, all with seed 1.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from pictures import cell, write

import kineograph as kg
from kineograph_lab.world.world import ShotSpec, Subject, render_clip

FILMED = ShotSpec("sea", "flat", (Subject("fish", "red", individual=5, motion="bouncing"),), backdrop=3)
FOLLOWING = ("a purple fish in a city", "a green fish in space, pencil sketch")
EDITS = ("paint it yellow", "make it snow", "turn the fish into a rocket")

if __name__ == "__main__":
    film = render_clip(FILMED, 8, 4.0)
    how = {"guidance_scale": 3.0, "seed": 1}
    with TemporaryDirectory() as folder:
        path = kg.Video(film).save(Path(folder) / "clip")
        model, editor = kg.load(), kg.load("pocket-edit")
        cells = [cell(film, "the input")]
        for prompt in FOLLOWING:
            cells.append(cell(kg.generate(model, prompt, control={"canny": path}, **how).frames, prompt))
        for prompt in EDITS:
            cells.append(cell(kg.edit(editor, path, prompt, **how).frames, f'"{prompt}"'))
    write(cells, Path(__file__).with_suffix(".gif"))
