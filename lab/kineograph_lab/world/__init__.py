"""The pocket world: procedural shots, rendered images and clips, captions and exact ground truth.

`world.py` samples and renders shots, `subjects.py`, `individuals.py`, `scenery.py`, `shapes.py` and `painting.py` draw
them, `truth.py` computes ground truth, `captions.py`, `wide.py` and `edits.py` write captions and instructions;
`unseen*.py` hold subjects and styles that are never trained on, `training_source.py` the source of `kineograph train`.
"""
