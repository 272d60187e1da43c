"""Loading, saving and converting models.

`load.load` and `save.save` are the entry points; `components` (folders and pipelines), `single_file` and
`video_checkpoints` open what a model consists of; the other modules add parts to it, or record where it came from.
"""
