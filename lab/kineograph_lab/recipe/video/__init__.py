"""Stages of the video models: text-to-video, image-to-video, motion adapter, VidRD's layers, temporal decoder.

`clips.py`, `batches.py` and `pan_and_zoom.py` make data; `motion_readout.py` and `samples.py` serve the training of all.
"""
