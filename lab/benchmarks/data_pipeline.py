"""The data pipeline's speed: `python benchmarks/data_pipeline.py [--videos 24] [--nodes 2] [--repeats 3]`.

Clips a second of the same steps on the same videos: in a plain loop in one process, on Ray Data on this machine, and
on a Ray cluster of several local nodes. Times of Ray are with and without what it takes to begin it. Rows go to
benchmarks/data_pipeline.json.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from kineograph.curation.packing import read_manifest
from kineograph.curation.run import curate_dataset
from kineograph.curation.settings import CurationSettings
from kineograph.media.codecs import write_mp4
from kineograph.media.metadata import VideoMetadata

FPS, SECONDS, HEIGHT, WIDTH = 24, 2, 360, 640


def film(path: Path, shots: int, seed: int) -> None:
    """A video of several shots of two seconds, each of which slides over a picture of its own."""
    rng, count = np.random.default_rng(seed), FPS * SECONDS
    frames = []
    for _ in range(shots):
        small = Image.fromarray(rng.integers(20, 256, (5, 12, 3), dtype=np.uint8))
        wide = np.asarray(small.resize((WIDTH + 2 * count, HEIGHT), Image.Resampling.BICUBIC))
        frames += [wide[:, 2 * number : 2 * number + WIDTH] for number in range(count)]
    write_mp4(path, np.stack(frames), VideoMetadata(len(frames), HEIGHT, WIDTH, FPS, {}))


def measured(name: str, folder: Path, output: Path, run: str) -> dict[str, object]:
    """One run from the start: its clips, and how many are made a second, with what it takes to begin and without."""
    begun = time.perf_counter()
    times = [
        time.perf_counter() for _ in curate_dataset(CurationSettings(sources=[str(folder)], output=output, run=run))
    ]
    ended, clips = time.perf_counter(), read_manifest(output)["clips"]
    before = times[0] - begun if run == "ray" else 0.0  # Ray's processes begin; one task is in it too
    row = {"how": name, "clips": clips, "seconds": round(ended - begun, 2), "begin": round(before, 2)}
    return row | {
        "clips_per_second": round(clips / (ended - begun), 3),
        "once_begun": round(clips / (ended - begun - before), 3),
    }


@contextmanager
def cluster(nodes: int) -> Iterator[None]:
    """A Ray cluster of so many nodes on this machine, a core each; the pipeline is told where, and nothing else."""
    held = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(nodes - 1):
            held.add_node(num_cpus=1)
        held.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = held.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()
        held.shutdown()


def rows(folder: Path, work: Path, nodes: int, repeats: int) -> Iterator[dict[str, object]]:
    for number in range(repeats):
        yield measured("plain loop", folder, work / f"loop-{number}", "alone")
        yield measured(f"Ray Data, {os.cpu_count()} cores", folder, work / f"ray-{number}", "ray")
        with cluster(nodes):
            yield measured(f"Ray Data, {nodes} local nodes of one core", folder, work / f"nodes-{number}", "ray")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        films, found = Path(place) / "films", []
        films.mkdir()
        for number in range(asked.videos):
            film(films / f"{number:03d}.mp4", asked.shots, number)
        for row in rows(films, Path(place), asked.nodes, asked.repeats):
            found.append(row)
            print(json.dumps(row), flush=True, file=sys.stderr)
    asked.out.write_text(json.dumps(found, indent=1))
    for how in dict.fromkeys(row["how"] for row in found):
        of = [row for row in found if row["how"] == how]
        whole, once = (np.median([row[name] for row in of]) for name in ("clips_per_second", "once_begun"))
        print(f"{how}: {whole:.2f} clips a second, {once:.2f} once begun")
