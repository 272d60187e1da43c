"""Every test runs offline and on few threads: the machine is small and the suite is not the only thing on it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
