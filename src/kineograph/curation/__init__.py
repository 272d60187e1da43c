"""VidRD's data pipeline: raw videos and images become captioned clips in shards.

settings, sources, run, parallel: a run, from its settings to its stages on Ray or in one process.
decoding, clips, clip_steps, filters, text_detection, watermarks: cutting and filtering the clips of one file.
captions, records, packing: captions, results of each file, shards and manifest.
"""
