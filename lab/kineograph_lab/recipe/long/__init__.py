"""long."""
