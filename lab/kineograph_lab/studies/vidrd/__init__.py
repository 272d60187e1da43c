"""vidrd."""
