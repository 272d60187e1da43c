"""Calls that type checkers refuse, in each line that ends in `# error`; see `right_calls.py`."""

from __future__ import annotations

import kineograph as kg

model = kg.load()
fox = kg.load("pocket-video", adapter="pocket-fox")

# an option that does not exist, or no longer
kg.generate(model, "a red fish", steps=3)  # error
kg.generate(model, "a red fish", num_frame=3)  # error
kg.generate(model, "a red fish", elevation={})  # error
kg.animate(model, "fish.png", "a fish", adapter="pocket-fox")  # error
kg.edit(model, "fish.mp4", "make it snow", keep=3)  # error
kg.load("pocket", num_frames=8)  # error

# a value of another type
kg.generate(model, "a red fish", num_frames="8")  # error
kg.generate(model, "a red fish", num_frames=8.0)  # error
kg.generate(model, "a red fish", negative_prompt=None)  # error
kg.generate(model, "a red fish", then="a car")  # error
kg.generate(model, "a red fish", refine_at=0.5)  # error
kg.generate(model, "a red fish", refine_at=("a", "b"))  # error
kg.generate(model, "a red fish", control="in.mp4")  # error
kg.generate(model, "a red fish", control={"canny": 3})  # error
kg.generate(model, "a red fish", drift_correction="often")  # error
kg.generate(model, ["a red fish", "a cat"], batch_size="all")  # error
kg.generate(model, "a red fish", on_step="step")  # error
kg.generate(model, "a red fish", video_model=3)  # error
kg.generate(model, "a red fish", progress="yes")  # error
kg.generate(model, "a red fish", generator=3)  # error
kg.generate(model, "a red fish", num_videos_per_prompt="2")  # error
model.to(3)  # error
kg.load("pocket", clip_skip=1.5)  # error
kg.load("pocket", adapter=3)  # error

# a value that is none of the listed ones
kg.generate(model, "a red fish", output_type="video")  # error
kg.generate(model, "a red fish", noise="own")  # error
kg.generate(model, "a red fish", first_frame="first")  # error
kg.generate(model, "a red fish", foreground_masks="depth")  # error
kg.animate(model, "fish.png", "a fish", renoise="back")  # error
kg.edit(model, "fish.mp4", "make it snow", clip_noise_order="forwards")  # error
kg.load("pocket", prediction_type="velocity")  # error

# an argument that is given twice, is missing, or is no prompt, image or model
kg.animate(model, "fish.png", "a fish", image="cat.png")  # error
kg.edit(model, "fish.mp4", "make it snow", video="cat.mp4")  # error
kg.generate(model, 3)  # error
kg.generate(model, "a red fish", fox)  # error
kg.edit(model, 3, "make it snow")  # error

# the result is one video for a prompt, and a list for a list
kg.generate(model, "a red fish")[0]  # error
kg.generate(model, ["a red fish"]).save("fish.mp4")  # error
kg.animate(model, "fish.png", ["a fish"]).save("fish.mp4")  # error
kg.edit(model, "fish.mp4", ["make it snow"]).overwrite("snow.mp4")  # error

# a dictionary of options
few: kg.GenerateOptions = {"num_frames": 4, "num_inference_step": 2}  # error
animated: kg.AnimateOptions = {"image": "fish.png"}  # error
edited: kg.EditOptions = {"num_frames": "4"}  # error
