#!/usr/bin/env bash
# Speed of full-size SD 1.5 and SDXL networks on a GPU beside diffusers: 16 frames, float16 and bfloat16, attention to the
# first frame, at most 8 minutes. Writes speed.json and speed.md, whose rows of a CPU stay, to docs/results or to $1.
#
#   bash lab/bench/gpu.sh [FOLDER]
#
# PYTHON: of an environment with torch for this GPU, this repository and lab (pip install -e . -e lab); python by default.
set -euo pipefail

cd "$(dirname "$0")/../.."
out="${1:-docs/results}"
python="${PYTHON:-python}"

"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "expected a CUDA device, and torch finds none")'
exec "$python" -m kineograph bench --rows gpu --repeats 7 --minutes 6 --out "$out"
