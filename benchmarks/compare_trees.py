"""Time and memory of this checkout beside those of another one of the project.

    python -m benchmarks.compare_trees --against PATH [--rounds 15] [--out results]

In every round each benchmark runs once in either tree, in fresh processes, the trees in turn. A
time is taken as a ratio to the yardstick in the same process (torch's AdamW; plain code), which
sees the same neighbours. Printed is new / old: the median over rounds and its 95% interval, which
order statistics give without an assumption about the noise.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, memory

ENGINES = "--no-curves --engines eager,graph"
# With --quick and without. Memory is measured point by point, of the longest unrolls alone.
ARGUMENTS = {
    "optimizer_step": ("--quick --sizes 1M --rounds 2", "--rounds 5"),
    "meta_throughput": (f"{ENGINES} --rounds 2", f"{ENGINES} --rounds 5"),
    "memory": ("", ""),
}
HERE = Path(__file__).resolve().parents[1]


def figures(name: str, content: dict[str, Any]) -> dict[str, float]:
    """Our own figures in a benchmark's file, of which smaller is better."""
    if name == "memory":
        return {label: points[-1][1] for label, points in content["bytes"].items()}
    if name == "meta_throughput":
        return {
            f"{kind} {label}": 1 / row["ratio_median"]
            for kind in ("pes", "tbptt")
            for label, row in content["headline"][kind].items()
            if label.startswith("ours")
        }
    steps = {
        f"{label}, {size}": row["time / AdamW foreach"]
        for size, part in content["sizes"].items()
        for label, row in part["optimizers"].items()
        if "AdamW f" not in label
    }
    return steps | {f"meta step, {k}": v["passes"] for k, v in content["meta_step"]["rows"].items()}


def run(name: str, tree: Path, quick: bool) -> dict[str, float]:
    if name == "memory":
        series = ("PES", "TBPTT") if quick else memory.SERIES
        ends = {x: memory.lengths(x, quick)[-1:] for x in series}
        return figures(name, {"bytes": {x: memory.curve(x, ends[x], tree) for x in ends}})
    with tempfile.TemporaryDirectory() as folder:
        words = [*ARGUMENTS[name][not quick].split(), "--out", folder]
        command = [sys.executable, "-m", f"benchmarks.{name}", *words]
        env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} in {tree}: {done.stderr[-500:]}")
        return figures(name, json.loads(next(Path(folder).glob("*.json")).read_text("utf-8")))


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and the narrowest pair of order statistics that holds it with at least 95%; both
    ends of the values where they are fewer than six.
    """
    x, n = sorted(values), len(values)
    tails = [sum(math.comb(n, j) for j in range(k + 1)) / 2**n for k in range(n // 2)]
    k = sum(tail <= 0.025 for tail in tails[1:]) if tails and tails[0] <= 0.025 else 0
    return (x[(n - 1) // 2] + x[n // 2]) / 2, x[k], x[n - 1 - k]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults = {"against": None, "only": ",".join(ARGUMENTS), "rounds": 15}
    args, content = harness.begin("compare_trees", __doc__, argv, **defaults)
    content["rounds"] = args.rounds
    trees = HERE, Path(args.against).resolve()
    for name in args.only.split(","):
        ratios: dict[str, list[float]] = defaultdict(list)
        for k in range(args.rounds):
            # In turn the first: what a neighbour starts meanwhile must not meet one tree alone.
            by_tree = {tree: run(name, tree, args.quick) for tree in trees[:: -1 if k % 2 else 1]}
            new, old = (by_tree[tree] for tree in trees)
            for label in new.keys() & old.keys():
                ratios[label].append(new[label] / old[label])
        content[name] = {
            label: dict(zip(("median", "low", "high"), median_interval(values)), ratios=values)
            for label, values in sorted(ratios.items())
        }
        rows = [[label, *list(row.values())[:3]] for label, row in content[name].items()]
        harness.print_table([f"{name}: new / old", "median", "low", "high"], rows)
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
