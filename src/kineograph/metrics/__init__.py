"""Metrics of generated videos: FVD, KVD, IS, CLIP-T, CLIP-I, frame consistency, motion, warp error.

`collection.py` finds the videos of a folder; `extractors.py` loads networks and metrics by name (`features.py` is their
interface); `scores.py` measures and computes scores with protocols; `evaluate.py` and `report.py` are the program.
"""
