"""Benchmarks of `kineograph bench`: this library against diffusers' pipelines, with equal weights, steps and seeds.

bench.py compares and reports; text2video_zero.py, controlnet.py, animatediff.py and training.py hold both sides of a
mode; memory.py measures the peak memory of one side in a process of its own.
"""
