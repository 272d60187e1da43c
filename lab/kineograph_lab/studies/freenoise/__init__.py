"""FreeNoise's study: long videos, against overlapping windows of the network and VidRD's clips."""
