"""Contact sheets of the built-in models, of prompts and seeds that follow from the weights' SHA-256.

`prompts` draws prompts and seeds, `sets` generates images and videos, `layout` draws sheets, `page` is the page beside
them, and `sheets` is the command `kineograph sheets`.
"""
