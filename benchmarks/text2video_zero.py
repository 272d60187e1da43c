"""Our Text2Video-Zero and diffusers', side by side: `python benchmarks/text2video_zero.py [--steps 50] [--repeats 3]`.

Both networks and modes of `kineograph bench`, one after the other; rows go to benchmarks/text2video_zero.json.
"""

import argparse
from pathlib import Path

from kineograph_lab.bench.bench import as_json, bench, table
from kineograph_lab.bench.memory import MODES

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["pocket", "sd15"])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    sizes = {"frames": asked.frames, "steps": asked.steps, "repeats": asked.repeats}
    rows = [row for network in asked.networks for mode in MODES for row in bench(network, mode, **sizes)]
    asked.out.write_text(as_json(rows))
    print(table(rows))
