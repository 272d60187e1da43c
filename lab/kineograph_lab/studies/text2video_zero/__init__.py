"""text2video_zero."""
