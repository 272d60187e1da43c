"""Generation of videos: `generate`, `animate`, `edit` and `replay`. Only here models and methods meet.

options.py: the options of each function, and the table of methods; check.py: options against descriptions of the
models; resolve.py: options and models to a plan; run.py: plan to a video; clip_files.py: finished clips on disk;
schema.py: the options' JSON schema; api.py: the functions; recorded.py: a saved video is generated again.
"""
