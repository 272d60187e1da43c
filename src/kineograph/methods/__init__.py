"""One module a paper; open one beside its PDF. Methods never import one another."""
