#!/usr/bin/env bash
# Everything in one command: three clips, each of which continues the one before (VidRD), sampled by an image model that
# follows the edges of a video (ControlNet), together with a video model (VideoElevator) that was taught a subject, a fox
# that prompts call "a sks cat" (Still-Moving).
#
#   bash examples/everything.sh              # writes in.mp4 and everything.mp4 into the current folder, in minutes
#   STEPS=2 FRAMES=2 bash examples/everything.sh     # in seconds, to try it out
#
# kineograph inspect everything.mp4 then shows all options, and kineograph replay everything.mp4 generates it again.
set -euo pipefail
steps=${STEPS:-50} frames=${FRAMES:-8} clips=3

# The video whose edges are followed, as long as all clips.
kineograph generate "a orange cat in the desert" --camera pan:0,4 --fps 8 --num-frames $((clips * frames)) \
    --steps "$steps" --seed 1 --output in.mp4 --overwrite

kineograph generate "a sks cat rising in the desert" --video-model pocket-video --video-adapter pocket-fox \
    --control canny=in.mp4 --clips "$clips" --num-frames "$frames" --guidance-scale 4 \
    --steps "$steps" --seed 1 --output everything.mp4 --overwrite
