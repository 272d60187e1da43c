"""Temporal layers of video networks.

`config` says which layer follows which image layers, `layers` has the layers, `temporal_layers` builds them around an
image U-Net, `adapters` has Still-Moving's motion and spatial adapters.
"""
