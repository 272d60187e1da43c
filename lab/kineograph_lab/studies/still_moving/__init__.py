"""still_moving."""
