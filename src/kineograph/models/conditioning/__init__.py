"""Conditioning inputs: prompts, learned words and images, encoded as tokens for the U-Net.

`text_encoder` encodes prompts, `textual_inversion` adds learned words to its vocabulary; `image_encoder` encodes images
for IP-Adapters, of which `resampler` builds the kind with a resampler.
"""
