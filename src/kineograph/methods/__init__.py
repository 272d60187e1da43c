"""Methods, one file per paper; they never import one another: `generation/` composes them."""
