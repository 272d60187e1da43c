"""Networks, and what stands between them and the noise convention. Nothing here imports a method."""
