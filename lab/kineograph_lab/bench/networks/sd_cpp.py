"""Script for an environment with stable-diffusion-cpp-python: sampling steps of an image with guidance.

python sd_cpp.py CHECKPOINT TYPE SIZE THREADS: for every line of stdin samples two steps of an image of
this size and writes "seconds S" of the second step.
"""

import sys
import time

from stable_diffusion_cpp import StableDiffusion  # type: ignore[import-not-found]

STEPS, GUIDANCE = 2, 7.5


def _main(checkpoint: str, dtype: str, size: str, threads: str) -> None:
    """Load and sample."""
    model = StableDiffusion(model_path=checkpoint, wtype=dtype, n_threads=int(threads), verbose=True)
    sys.stdout.write("seconds 0\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        ends = [time.perf_counter()]

        def on_step(step: int, steps: int, seconds: float, ends: list[float] = ends) -> None:
            ends.append(time.perf_counter())

        model.generate_image(
            prompt="a red fish over the sea", width=int(size), height=int(size), sample_steps=STEPS, cfg_scale=GUIDANCE,
            seed=0, progress_callback=on_step,
        )  # fmt: skip
        sys.stdout.write(f"seconds {ends[STEPS] - ends[STEPS - 1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
