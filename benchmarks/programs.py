"""Whole programs by the clock: `eval transfer` beside another checkout, ranks beside one process.

    python -m benchmarks.programs --peer PATH [--rounds 3] [--out results]

The evaluation is that of the built-in problems, with AdamW's whole grid; programs of both checkouts
run in turn, on one thread, and a ratio is taken within a round. Ranks: outer steps per second of
one run of meta-training under torchrun, the first steps (in which things are made) left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

EVALUATION = "eval transfer --learned OPTIMIZER --optimizees mlp,cnn --steps 200"
META = (
    "meta_train --optimizees mlp,cnn --vary none --learned attention-mlp --unroll-length 20"
    " --episode-length 100 --num-tasks 8 --shards 4 --outer-steps 12 --validate-every 100"
    " --validation-seeds 2 --probes none --no-evaluate --seed 3 --workers 1"
)
SKIPPED = 4
HERE = Path(__file__).resolve().parents[1]


def run(words: Sequence[str], tree: Path) -> float:
    """Seconds of a program in a checkout."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tree, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - begun


def evaluation(peer: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of the evaluation here and there, of an optimizer that the peer ships."""
    seconds: dict[str, list[float]] = {"here": [], "peer": []}
    file = min((peer / "results").rglob("optimizer.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        words = EVALUATION.replace("OPTIMIZER", str(file)).replace("200", str(steps))
        for k in range(rounds):
            for name, tree in (("here", HERE), ("peer", peer)):
                out = Path(folder) / f"{name}{k}"
                seconds[name].append(run([*words.split(), "--out", str(out)], tree))
    ratio = statistics.median(b / a for a, b in zip(*seconds.values()))
    command = EVALUATION.replace("OPTIMIZER", str(file.relative_to(peer)))
    return {"command": command, "seconds": seconds, "times as fast": ratio}


def ranks(rounds: int) -> dict[str, Any]:
    """Outer steps per second of one and of two ranks."""
    rates: dict[str, list[float]] = {"1": [], "2": []}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(rounds):
            for num in rates:
                out = Path(folder) / f"{num}-{k}"
                launch = f"torch.distributed.run --nproc-per-node {num} -m"
                run([*launch.split(), *META.split(), "--out", str(out)], HERE)
                lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()[SKIPPED:-1]
                rates[num].append(statistics.median(1 / json.loads(x)["seconds"] for x in lines))
    ratio = statistics.median(b / a for a, b in zip(*rates.values()))
    return {"command": META, "outer steps/s": rates, "times as fast": ratio}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults: dict[str, Any] = {"peer": "", "rounds": (1, 3), "steps": (10, 200)}
    args, content = harness.begin("programs", __doc__, argv, **defaults)
    content["ranks"] = ranks(args.rounds)
    print(f"two ranks: {content['ranks']['times as fast']:.2f} times one")
    if args.peer:
        content["evaluation"] = evaluation(Path(args.peer).resolve(), args.rounds, args.steps)
        print(f"evaluation: {content['evaluation']['times as fast']:.2f} times the peer")
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
