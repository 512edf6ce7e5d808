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
if [ "$device" = cpu ]; then quick=--quick sizes=tiny steps=3 seeds=2 tests=tests/lo_framework/native seconds=20
else quick= sizes=0.1M,1M,10M,100M steps=200 seeds=5 tests="-m gpu" seconds=120; fi

step() {  # name, seconds at most, command
  local name=$1 limit=$2 begun=$SECONDS code=0
  shift 2
  timeout "$limit" bash -c '"$@"' _ "$@" >"$run/$name.log" 2>&1 || code=$?
  printf '%-12s %5d s   %s\n' "$name" $((SECONDS - begun)) "$([ $code = 0 ] && echo done || echo "exit code $code: $(tail -n 1 "$run/$name.log")")"
  return $code
}
same() { cmp "$run/a/optimizer.safetensors" "$run/b/optimizer.safetensors"; }
train() { "$python" -m meta_train --optimizees mlp,cnn --device "$device" --no-evaluate "$@"; }
killed() {  # the same run again, killed in the middle and resumed
  timeout -s KILL "$1" "$python" -m meta_train --optimizees mlp,cnn --device "$device" --no-evaluate \
    --outer-steps "$2" --out "$run/b"
  train --out "$run/b" --resume
}

export -f same train killed
export device run python

failed=0
step tests 90 "$python" -m pytest -q $tests || failed=1
step throughput 120 "$python" -m benchmarks.meta_throughput --device "$device" $quick --out "$out" || failed=1
step face 60 "$python" -m benchmarks.optimizer_step --device "$device" $quick --sizes "$sizes" --out "$out" || failed=1
# As many outer steps as fit into the time, found by a first short run.
step first 60 train --outer-steps 2 --out "$run/first" || failed=1
outer=$("$python" - "$run/first/metrics.jsonl" "$seconds" <<'P'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
print(max(2, min(120, int(float(sys.argv[2]) / 3 / max(rows[-1]["seconds"], 1e-3)))))
P
) || outer=2
step quick "$seconds" train --outer-steps "$outer" --out "$run/a" || failed=1
step resume "$seconds" killed $((seconds / 6)) "$outer" || failed=1
step same-bits 5 same || failed=1
step transfer 120 "$python" -m eval transfer --device "$device" --optimizees mlp,cnn \
  --learned results/quick/optimizer.safetensors --baselines adamw,metaoptimize,metaadamw \
  --steps "$steps" --seeds "$seeds" --out "$out/transfer" || failed=1
"$python" - "$out" <<'P'
import json, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    content = json.loads(path.read_text())
    for kind, rows in content.get("headline", {}).items():
        if isinstance(rows, dict):
            for name, row in rows.items():
                if isinstance(row, dict):
                    print(f"{kind:6} {name:28} {row['best']:12,.0f} inner steps/s")
    for size, rows in content.get("sizes", {}).items():
        for name, row in rows["optimizers"].items():
            print(f"{size:6} {name:36} {row['milliseconds']:9.3f} ms")
P
exit $failed
