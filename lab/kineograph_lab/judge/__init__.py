"""The judge: networks that recognise subject, colour, scene, style, individual, motion and geometry in generated frames.

`networks.py` and `geometry.py` hold the networks and load their weights, `training.py` trains them on rendered images and
clips, `metrics.py` offers them to `kineograph evaluate`.
"""
