"""VidRD's studies: long videos, temporal decoder, panned and zoomed images, FVD, and the UCF-101 protocol."""
