"""Released file formats: reading tensor files, and key maps from tensor names in files to those of our networks.

`tensor_files` reads files, `key_map` moves tensors between names; `ldm` (Stable Diffusion's VAE, OpenCLIP), `lora`,
`animatediff`, `modelscope`, `videocrafter` and `vidrd` hold one format each; `shapes` infers architectures.
"""
