"""Models: the networks of diffusion pipelines and what binds them to sampling. Nothing here imports a method.

`model` has Model, `schedule` the noise schedules, `placement` devices and dtypes, `foreground` masks from attention;
`unet`, `temporal`, `vae` and `conditioning` have the networks, `loading`, `formats` and `pocket` open them from files.
"""
