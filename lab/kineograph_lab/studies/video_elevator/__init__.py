"""video_elevator."""
