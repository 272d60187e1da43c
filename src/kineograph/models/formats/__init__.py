"""Released file formats: reading tensor files, and key maps from tensor names in files to those of our networks.

`tensor_files` reads files, `key_map` moves tensors between names, `architecture` infers a U-Net's sizes from shapes;
`ldm` (Stable Diffusion's VAE, OpenCLIP), `lora`, `animatediff`, `modelscope`, `videocrafter`, `vidrd`: a format each.
"""
