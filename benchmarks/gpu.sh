#!/usr/bin/env bash
# What can only be seen on a GPU, in under 8 minutes: tests, throughput, step times, a run and its
# resume, an evaluation. JSON goes to OUT, a short table to stdout.
#
#     benchmarks/gpu.sh [DEVICE] [OUT]          # cuda, results/gpu
#
# With DEVICE cpu it is a dry run of the same commands at the smallest sizes.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda} out=${2:-results/gpu} run=$(mktemp -d) python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
export OMP_NUM_THREADS=1
mkdir -p "$out"
trap 'rm -rf "$run"' EXIT
if [ "$device" = cpu ]; then
  tests=(tests/lo_framework/native/test_conv.py) sizes=tiny steps=3 seeds=2 outer=4
  throughput=(--quick --no-curves --no-families --engines eager,native --tasks 2) quick=(--quick)
else
  tests=(-m gpu) sizes=0.1M,1M,10M,100M steps=200 seeds=5 outer=60 throughput=() quick=()
fi

step() {  # name, seconds at most, command
  local name=$1 limit=$2 begun=$SECONDS code=0 said
  shift 2
  timeout "$limit" bash -c '"$@"' _ "$@" >"$run/$name.log" 2>&1 || code=$?
  took=$((SECONDS - begun)) said=done
  [ $code = 0 ] || said="exit code $code: $(tail -n 1 "$run/$name.log" | cut -c1-200)"
  printf '%-12s %5d s   %s\n' "$name" $took "$said"
  return $code
}
# The preset quick, judged on one small probe: here it is the device that is on trial.
train() {
  "$python" -m meta_train --optimizees mlp,cnn --device "$device" --no-evaluate --workers 1 \
    --probes mlp-relu:hidden=256@50 --validation-seeds 2 --checkpoint-every 2 "$@"
}
killed() {  # the same run again, killed in the middle and resumed
  timeout -s KILL "$1" bash -c 'train "$@"' _ --outer-steps "$2" --out "$run/b"
  train --out "$run/b" --resume
}
same() { cmp "$run/a/optimizer.safetensors" "$run/b/optimizer.safetensors"; }
export -f train killed same
export device run python

failed=0
step tests 90 "$python" -m pytest -q "${tests[@]}" || failed=1
step throughput 120 "$python" -m benchmarks.meta_throughput --device "$device" --out "$out" \
  "${throughput[@]}" || failed=1
step face 60 "$python" -m benchmarks.optimizer_step --device "$device" --sizes "$sizes" \
  --out "$out" "${quick[@]}" || failed=1
step quick 120 train --outer-steps "$outer" --out "$run/a" || failed=1
step resume 180 killed $((took * 2 / 3 + 1)) "$outer" || failed=1
step same-bits 5 same || failed=1
step transfer 120 "$python" -m eval transfer --device "$device" --optimizees mlp,cnn \
  --learned results/quick/optimizer.safetensors --baselines adamw,metaoptimize,metaadamw \
  --steps "$steps" --seeds "$seeds" --out "$out/transfer" || failed=1
"$python" - "$out" <<'P'
import json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    content = json.loads(path.read_text())
    for kind, rows in content.get("headline", {}).items():
        for name, row in rows.items() if isinstance(rows, dict) else ():
            if isinstance(row, dict):
                print(f"{kind:6} {name:28} {row['best']:12,.0f} inner steps/s")
    for size, rows in content.get("sizes", {}).items():
        for name, row in rows["optimizers"].items():
            print(f"{size:6} {name:36} {row['milliseconds']:9.3f} ms")
P
exit $failed
