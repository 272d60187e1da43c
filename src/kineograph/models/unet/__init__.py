"""U-Nets of Stable Diffusion on the frames of a video.

`video_unet` and `controlnet` are the networks, `forward` their forward pass; `frame_attention` and `cross_attention`
compute attention; `supported_layers` refuses unknown architectures; `windows` covers long videos.
"""
