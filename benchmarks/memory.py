"""Peak memory of meta-gradient estimation as the unroll grows: PES, TBPTT in segments, and plain
TBPTT.

    python -m benchmarks.memory [--quick] [--out results]

Every point is a process of its own. What it holds after imports, data and a first small estimate is
subtracted from the peak of the estimate that is measured. The allocator is told to give everything
back at once: otherwise the same program varies by a tenth. Required: PES at 1,000 steps within a
tenth of PES at 10, and TBPTT with ``segments=0`` growing no faster than the root.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from lo_framework.absorb.absorption import make_absorption
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from lo_framework.optimizees.pool import make_tasks

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
FOREVER = 10**6
SERIES = {"PES": "pes", "TBPTT, root-T segments": "tbptt:segments=0", "TBPTT": "tbptt"}
FLAT, ROOT = (
    1.1,
    0.55,
)  # required: ratio of PES's ends; exponent of the segmented curve (0.5 and the fit's slack)


def truncation(
    spec: str,
    steps: int,
    tasks: int,
    optimizee: str,
    learned: str,
    engine: str,
    objective: str = "train",
    regularizer: str = "none",
    absorb: str = "",
) -> Callable[[], Any]:
    """One estimate over ``steps`` inner steps, from the same start at every call."""
    rule = make_learned(learned)
    absorption = None if regularizer == "none" else make_absorption(regularizer, absorb)
    family = Family(make_tasks(optimizee, "digits")[0], rule, engine, absorption)
    clock = Truncation(unroll_length=steps, episode=(FOREVER, FOREVER))
    estimator = make_estimator(spec, family, make_objective(objective), clock, tasks)
    theta = rule.theta()
    state = estimator.init_state(theta, torch.Generator().manual_seed(0))
    state = replace(state, stop=state.horizon.clone())
    return lambda: estimator.estimate(theta, state)


def measure(steps: int, **point: Any) -> dict[str, float]:
    """Bytes of one estimate over ``steps`` inner steps, in this process."""
    torch.set_num_threads(1)
    truncation(steps=4, **point)()
    estimate = truncation(steps=steps, **point)
    gc.collect()
    before = status("VmRSS")
    reset_peak()
    estimate()
    return {"before": before, "peak": peak(), "after": status("VmRSS")}


def status(field: str) -> float:
    """A size of this process in bytes, from ``/proc``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024.0 * int(line.split()[1])
    raise KeyError(field)


def reset_peak() -> None:
    """Let VmHWM begin again at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    return max(status("VmHWM"), status("VmRSS"))


def child(**point: Any) -> float:
    """``measure`` in a fresh process: bytes above what was held before."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(point)]
    done = subprocess.run(
        command, env={**os.environ, **ALLOCATOR, **THREADS}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr.strip().splitlines()[-1]}")
    sizes = json.loads(done.stdout.splitlines()[-1])
    return sizes["peak"] - sizes["before"]


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Least-squares slope of log memory over log steps."""
    xs, ys = [math.log(t) for t, _ in points], [math.log(b) for _, b in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)


def lengths(name: str, quick: bool) -> list[int]:
    if name == "PES":
        return [10, 300] if quick else [10, 30, 100, 300, 1000]
    most = (
        64 if quick else 256 if name == "TBPTT" else 1024
    )  # plain TBPTT ends for want of memory, not of time
    return [2**k for k in range(4, round(math.log2(most)) + 1, 2 if quick else 1)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = harness.parser(__doc__, rounds=False)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--optimizee", default="mlp")
    parser.add_argument("--learned", default="mlp")
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(measure(**json.loads(args.child))))
        return {}
    fixed = {k: getattr(args, k) for k in ("tasks", "optimizee", "learned", "engine")}
    content = harness.environment("benchmarks.memory") | fixed
    content |= {"allocator": ALLOCATOR, "page": resource.getpagesize()}
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, spec in SERIES.items():
        # Of few tasks PES needs so little that single pages of the allocator would show.
        point = fixed | {"spec": spec, "tasks": args.tasks * (4 if name == "PES" else 1)}
        curves[name] = [(t, child(steps=t, **point)) for t in lengths(name, args.quick)]
        rows = [[f"{t} steps", b / 2**20] for t, b in curves[name]]
        harness.print_table([name, "peak MiB"], rows)
    flat = curves["PES"][-1][1] / curves["PES"][0][1]
    exponents = {name: exponent(points) for name, points in curves.items()}
    content |= {"bytes": curves, "pes_ratio": flat, "exponents": exponents}
    content["fulfilled"] = {
        "PES": flat <= FLAT,
        "segments": exponents["TBPTT, root-T segments"] <= ROOT,
    }
    print(f"PES, longest over shortest: {flat:.3f} (at most {FLAT})")
    for name, slope in exponents.items():
        print(f"{name}: memory grows as T^{slope:.2f}")
    print(f"as required: {content['fulfilled']}")
    mebibytes = {name: [(t, b / 2**20) for t, b in points] for name, points in curves.items()}
    axes = {"xlabel": "steps of the unroll, T", "ylabel": "peak memory, MiB"}
    harness.save("memory", args, content, memory={"lines": mebibytes, **axes})
    return content


if __name__ == "__main__":
    main()
