"""Videos and images as files.

video, codecs, metadata, files: saving and opening videos with the settings that generated them.
footage, images, annotators: input videos and images of a request, and control maps.
frames, seek: decoding of videos, which every command shares.
dataset, dataset_layouts, shards, training_clips: training data sets.
"""
