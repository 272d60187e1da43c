"""The training recipe of the built-in model, stage by stage, on the pocket world.

`run.py` trains all stages once, `long/` over many sessions; `*_stages.py` list them, `image/` and `video/` hold each
network's batches, losses and reports, `loop.py` the training loop, `pool.py` rendered data; `export.py` writes what ships.
"""
