"""Benchmarks of `kineograph bench`: this library beside diffusers and other programs, with equal weights.

bench.py has the table of rows and runs them, report.py writes their page, setting.py has what all rows share; timing.py
and memory.py measure. Rows: frames.py, of the same frames (both sides in text2video_zero.py, controlnet.py,
animatediff.py and training.py); quality.py, of equal quality with fewer steps; networks/, of single networks; start.py,
of a whole run. presets.py chooses presets.
"""
