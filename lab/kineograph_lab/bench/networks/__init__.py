"""Rows of single networks in full size, with random weights: one evaluation, beside what else computes it.

network.py has the rows; the other files are scripts that the Python of another environment runs, with packages that
this library does not need.
"""
