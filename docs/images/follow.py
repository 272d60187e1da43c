"""Generate follow.gif of the README, of control videos and edits: `python docs/images/follow.py`.

A clip of the pocket world (needs the laboratory), and the videos of `kineograph generate PROMPT --control canny=CLIP
--guidance-scale 3` and `kineograph edit CLIP PROMPT --guidance-scale 3`, all with seed 1.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from layout import captioned, write

import kineograph as kg
from kineograph_lab.world.world import ShotSpec, Subject, render_clip

SHOT = ShotSpec("sea", "flat", (Subject("fish", "red", individual=5, motion="bouncing"),), backdrop=3)
PROMPTS = ("a purple fish in a city", "a green fish in space, pencil sketch")
EDITS = ("paint it yellow", "make it snow", "turn the fish into a rocket")

if __name__ == "__main__":
    clip = render_clip(SHOT, 8, 4.0)
    options = {"guidance_scale": 3.0, "seed": 1}
    with TemporaryDirectory() as folder:
        path = kg.Video(clip).save(Path(folder) / "clip")
        model, editor = kg.load(), kg.load("pocket-edit")
        cells = [captioned(clip, "the input")]
        for prompt in PROMPTS:
            cells.append(captioned(kg.generate(model, prompt, control={"canny": path}, **options).frames, prompt))
        for prompt in EDITS:
            cells.append(captioned(kg.edit(editor, path, prompt, **options).frames, f'"{prompt}"'))
    write(cells, Path(__file__).with_suffix(".gif"))
