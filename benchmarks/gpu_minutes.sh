#!/usr/bin/env bash
# From a bare machine with PyTorch to trained and packed models, in so many seconds, the most valuable first.
#
#     benchmarks/gpu_minutes.sh [SECONDS] [WHAT...]
#
# WHAT is "first" (lite-t1, lite-t2, paper-t1; the default), "second" (paper-t2, restoration-t1, cddpm-t1), or names of
# RECIPES in gpu_minutes.py. The environment says where things are:
#     T1, T2     what `brainuad pack DATA -o FILE experiment=lite datamodule.cfg.mode=t1` (t2) wrote [train_t1.npz, train_t2.npz]
#     WHEELS     folder of wheels that the machine lacks, installed before the clock of the first training starts [none]
#     OUT        where packed models and record.json are written, each as soon as it is there; nothing else [gpu_minutes]
#     WORK       where runs, logs and wheels go, which need not be brought back [gpu_minutes_work]
#     PYTHON     which Python [python3]
set -euo pipefail
began=$(date +%s)
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
export OUT=${OUT:-gpu_minutes} WORK=${WORK:-gpu_minutes_work}
if [ -n "${WHEELS:-}" ]; then
  mkdir -p "$WORK"
  site=$(cd "$WORK" && pwd)/site
  "$python" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/benchmarks/gpu_minutes.py" --began "$began" "${@:-570}"
