"""videocrafter1."""
