"""The long training of the built-in model, over many sessions.

`training.py` runs its stages, `growing_pool.py` renders its data beside it, `text_encoder.py` trains the one text
encoder of all its models.
"""
