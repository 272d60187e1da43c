"""VAE on the frames of a video.

`autoencoder` encodes and decodes a few frames at a time, `temporal_decoder` adds temporal convolutions to the decoder,
`vae_files` opens VAEs and temporal decoders.
"""
