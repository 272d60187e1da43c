"""The judge: networks that recognise subject, colour, scene, style, individual, motion, geometry and anatomy in frames.

`networks.py`, `geometry.py` and `parts.py` hold the networks and load their weights, `training.py` and `parts_training.py`
train them on rendered images and clips, `corruption.py` draws subjects with wrong parts, `metrics.py` offers the networks
to `kineograph evaluate`.
"""
