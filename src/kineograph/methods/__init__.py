"""Methods, one file per paper; open one beside its PDF. Methods never import one another: `generate/` composes them."""
