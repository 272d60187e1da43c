"""Script for an environment with optimum-intel and diffusers: evaluations of an OVStableDiffusionPipeline's U-Net.

python optimum_intel.py PIPELINE THREADS: exports the pipeline in this folder with the defaults, then evaluates its
U-Net on two samples, as guidance does for one image, for every line of stdin, and writes "seconds S".
"""

import sys
import time

import torch
from optimum.intel import OVStableDiffusionPipeline  # type: ignore[import-not-found]

TIMESTEP = 500


def _main(folder: str, threads: str) -> None:
    """Export, compile and evaluate."""
    pipe = OVStableDiffusionPipeline.from_pretrained(
        folder, export=True, ov_config={"INFERENCE_NUM_THREADS": int(threads)}
    )
    side, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    # the export fixes the number of tokens
    sample, tokens = torch.randn(2, 4, side, side), torch.randn(2, pipe.tokenizer.model_max_length, width)

    def evaluate() -> None:
        pipe.unet(sample, torch.tensor(TIMESTEP), tokens)

    evaluate()
    _write(0.0)
    for _ in sys.stdin:
        start = time.perf_counter()
        evaluate()
        _write(time.perf_counter() - start)


def _write(seconds: float) -> None:
    sys.stdout.write(f"seconds {seconds}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
