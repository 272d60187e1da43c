"""Studies: experiments that measure the papers' claims on the pocket world, run by `kineograph reproduce`.

A study has cases (protocol.py) of a split (splits.py), models (weights.py), arms, metrics (frame_metrics.py,
set_distances.py) and claims (claims.py, report.py); study.py runs one and keeps its records, reproduce.py runs a paper's,
schedule.py those of all. Each paper's studies are in the folder named after it.
"""
