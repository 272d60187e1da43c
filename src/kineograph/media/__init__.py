"""Videos and images as files.

video, codecs, metadata, files: saving and opening videos with the settings that generated them.
footage, images, annotators: input videos and images of a request, and control maps.
dataset, dataset_layouts, shards, seek, training_clips, shuffling: training data sets.
"""
