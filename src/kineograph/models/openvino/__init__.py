"""OpenVINO as an engine for CPUs: networks converted to its graphs, which compute the same in less time."""
