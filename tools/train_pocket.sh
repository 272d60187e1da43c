#!/bin/sh
# Train the pocket models in the background, over several sessions.
#
#   tools/train_pocket.sh [start]    start, or resume from the last checkpoint; no effect if it runs already
#   tools/train_pocket.sh pause      suspend it until `continue`: before tests, CI and timing (SIGSTOP to its processes)
#   tools/train_pocket.sh continue   resume it (SIGCONT)
#   tools/train_pocket.sh status     print its state, the last lines of its logs, and the number of rendered shards
#   tools/train_pocket.sh stop       end it; at most five minutes of training are lost
#
# Environment: TRAIN_OUT, the output folder (default: ../train-out beside this checkout), PYTHON, STAGES.
# It runs niced, as a process group of its own, from this checkout's src and lab. The training loop has a thread for each
# core, each of which computes alone, so OMP_NUM_THREADS=1 uses all cores.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
out=${TRAIN_OUT:-$here/../train-out}
python=${PYTHON:-python}
mkdir -p "$out"
out=$(cd "$out" && pwd)
pid_file=$out/train.pid

runs() { # true if the process of the PID file is this training, not another process with the same number
    [ -s "$pid_file" ] || return 1
    tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$pid_file")/cmdline" | grep -q "kineograph_lab.recipe.long.training --out $out "
}

signal() {
    runs || { echo "not running" >&2; exit 1; }
    kill -s "$1" -- "-$(cat "$pid_file")"
}

case ${1:-start} in
start)
    if runs; then
        echo "already running or paused: process group $(cat "$pid_file")"
        exit 0
    fi
    cd "$here"
    # If the kernel schedules each session as a group, niceness counts within the group alone, so the group is niced.
    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=$here/src:$here/lab setsid sh -c '
        { echo 19 >/proc/self/autogroup; } 2>/dev/null
        exec nohup nice -n 19 "$@"
    ' sh "$python" -m kineograph_lab.recipe.long.training --out "$out" ${STAGES:+--stages "$STAGES"} \
        >>"$out/train.log" 2>&1 </dev/null &
    echo $! >"$pid_file"
    echo "started: process group $(cat "$pid_file"), log $out/train.log"
    ;;
pause)
    signal STOP
    echo "paused"
    ;;
continue)
    signal CONT
    echo "resumed"
    ;;
stop)
    signal TERM
    signal CONT # a stopped process ends when it is resumed
    echo "ended"
    ;;
status)
    if runs; then
        case $(ps -o stat= -p "$(cat "$pid_file")") in
        T*) echo "paused: process group $(cat "$pid_file")" ;;
        *) echo "running: process group $(cat "$pid_file")" ;;
        esac
    else
        echo "not running"
    fi
    find "$out" -name log.jsonl -exec tail -n 1 {} \;
    echo "shards of 2,048 images: $(find "$out/images" -name '*-latents.npy' 2>/dev/null | wc -l)"
    ;;
*)
    echo "usage: $0 [start|pause|continue|status|stop]" >&2
    exit 2
    ;;
esac
