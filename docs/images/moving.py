"""Generate moving.gif of the README with the pocket video model: `python docs/images/moving.py`.

Each video is that of `kineograph generate PROMPT --model pocket-video --guidance-scale 5 --steps 20 --seed SEED`.
"""

from pathlib import Path

from layout import captioned, grid

import kineograph as kg

CHOSEN = (
    ("a red fish swimming to the right", 1),
    ("a purple balloon rising in the desert", 1),
    ("a yellow truck shrinking in the snow", 1),
    ("an orange crab moving in a circle", 1),
    ("a blue car moving to the left in a city", 1),
    ("a pink boat sinking in space", 1),
)

if __name__ == "__main__":
    model = kg.load("pocket-video")
    options = {"guidance_scale": 5.0, "num_inference_steps": 20}
    videos = [(kg.generate(model, prompt, seed=seed, **options), prompt) for prompt, seed in CHOSEN]
    frames = grid([captioned(video.frames, prompt) for video, prompt in videos])
    kg.Video(frames, fps=8).overwrite(Path(__file__).with_suffix(".gif"))
