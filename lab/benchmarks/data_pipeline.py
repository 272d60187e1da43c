"""Speed of the data pipeline: `python lab/benchmarks/data_pipeline.py [--videos 24] [--nodes 2] [--repeats 3]`.

Clips per second of the same steps on the same videos: in a plain loop in one process, on Ray Data on this machine, and
on a Ray cluster of several local nodes. Ray's times are given with and without its start. Rows are written to
lab/benchmarks/data_pipeline.json.
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
from kineograph.media.metadata import FileTags

FPS, SECONDS, HEIGHT, WIDTH = 24, 2, 360, 640


def write_video(path: Path, shots: int, seed: int) -> None:
    """Write a video of several shots of two seconds, each a pan over an image of its own."""
    rng, count = np.random.default_rng(seed), FPS * SECONDS
    frames = []
    for _ in range(shots):
        low_resolution = Image.fromarray(rng.integers(20, 256, (5, 12, 3), dtype=np.uint8))
        wide = np.asarray(low_resolution.resize((WIDTH + 2 * count, HEIGHT), Image.Resampling.BICUBIC))
        frames += [wide[:, 2 * number : 2 * number + WIDTH] for number in range(count)]
    write_mp4(path, np.stack(frames), FPS, FileTags())


def measure_run(name: str, folder: Path, output: Path, run: str) -> dict[str, object]:
    """Run the pipeline once and return its clips and clips per second, with and without Ray's start."""
    start = time.perf_counter()
    times = [
        time.perf_counter() for _ in curate_dataset(CurationSettings(sources=[str(folder)], output=output, run=run))
    ]
    end, clips = time.perf_counter(), read_manifest(output)["clips"]
    startup = times[0] - start if run == "ray" else 0.0  # start of Ray's processes, and one task
    row = {"how": name, "clips": clips, "seconds": round(end - start, 2), "begin": round(startup, 2)}
    return row | {
        "clips_per_second": round(clips / (end - start), 3),
        "once_begun": round(clips / (end - start - startup), 3),
    }


@contextmanager
def cluster(nodes: int) -> Iterator[None]:
    """Start a Ray cluster of `nodes` nodes on this machine, one core each, and set its address in the environment."""
    ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(nodes - 1):
            ray_cluster.add_node(num_cpus=1)
        ray_cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = ray_cluster.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        ray.shutdown()
        ray_cluster.shutdown()


def measure_rows(folder: Path, work: Path, nodes: int, repeats: int) -> Iterator[dict[str, object]]:
    """Yield the rows of all repeats."""
    for number in range(repeats):
        yield measure_run("plain loop", folder, work / f"loop-{number}", "alone")
        yield measure_run(f"Ray Data, {os.cpu_count()} cores", folder, work / f"ray-{number}", "ray")
        with cluster(nodes):
            yield measure_run(f"Ray Data, {nodes} local nodes of one core", folder, work / f"nodes-{number}", "ray")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos, rows = Path(folder) / "films", []
        videos.mkdir()
        for number in range(arguments.videos):
            write_video(videos / f"{number:03d}.mp4", arguments.shots, number)
        for row in measure_rows(videos, Path(folder), arguments.nodes, arguments.repeats):
            rows.append(row)
            print(json.dumps(row), flush=True, file=sys.stderr)
    arguments.out.write_text(json.dumps(rows, indent=1))
    for name in dict.fromkeys(row["how"] for row in rows):
        runs = [row for row in rows if row["how"] == name]
        rate, once_started = (np.median([row[name] for row in runs]) for name in ("clips_per_second", "once_begun"))
        print(f"{name}: {rate:.2f} clips a second, {once_started:.2f} once started")
