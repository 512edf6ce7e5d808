"""Peak memory of meta-gradient estimation as the unroll grows: PES, TBPTT in segments, and plain
TBPTT.

    python -m benchmarks.memory [--quick] [--out results]

Every point is a process of its own. What it holds after imports, data and a first small estimate is
subtracted from the peak of the estimate that is measured (``--child`` measures one). The allocator
is told to give everything back at once: otherwise the same program varies by a tenth. Required: PES
at 1,000 steps within a tenth of PES at 10, and TBPTT with ``segments=0`` growing no faster than the
root.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Estimation
from lo_framework.memory import memory_of

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_MMAP_THRESHOLD_": "65536",
}
SEGMENTS = "TBPTT, root-T segments"
SERIES = {"PES": "pes", SEGMENTS: "tbptt:segments=0", "TBPTT": "tbptt"}
FIXED: dict[str, Any] = {"tasks": 4, "optimizee": "mlp", "learned": "mlp", "engine": "eager"}
# Required: ratio of PES's ends; exponent of the segmented curve (0.5 and the fit's slack).
FLAT, ROOT = 1.1, 0.55


def measure(steps: int, **point: Any) -> dict[str, float]:
    """Bytes held by this process before one estimate over ``steps`` inner steps, and its peak."""
    torch.set_num_threads(1)
    Estimation(steps=4, **point)()
    estimate = Estimation(steps=steps, **point)
    return memory_of(estimate, torch.device("cpu"))._asdict()


def child(tree: Path | None = None, **point: Any) -> float:
    """Bytes of one estimate in a fresh process above what it held before, by the code of ``tree``
    (None: of this one).
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(point)]
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr.strip().splitlines()[-1]}")
    held = json.loads(done.stdout.splitlines()[-1])
    return held["peak"] - held["before"]


def curve(
    name: str, lengths: Sequence[int], tree: Path | None = None, **options: Any
) -> list[tuple[int, float]]:
    """Peak memory of a series at every length of the unroll."""
    point = FIXED | options | {"spec": SERIES[name]}
    if name == "PES":  # of few tasks it needs so little that single pages would show
        point["tasks"] *= 4
    return [(t, child(tree, steps=t, **point)) for t in lengths]


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Least-squares slope of log memory over log steps."""
    return statistics.linear_regression(*zip(*(map(math.log, point) for point in points))).slope


def lengths(name: str, quick: bool) -> list[int]:
    if name == "PES":
        return [10, 100] if quick else [10, 30, 100, 300, 1000]
    # Plain TBPTT ends for want of memory, not of time.
    return [16, 64] if quick else [2**k for k in range(4, 9 if name == "TBPTT" else 11)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args, content = harness.begin("memory", __doc__, argv, child="", **FIXED)
    if args.child:
        print(json.dumps(measure(**json.loads(args.child))))
        return {}
    fixed = {name: getattr(args, name) for name in FIXED}
    content |= fixed | {"allocator": ALLOCATOR, "page": resource.getpagesize()}
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in SERIES:
        curves[name] = curve(name, lengths(name, args.quick), **fixed)
        rows = [[f"{t} steps", b / 2**20] for t, b in curves[name]]
        harness.print_table([name, "peak MiB"], rows)
    flat = curves["PES"][-1][1] / curves["PES"][0][1]
    exponents = {name: exponent(points) for name, points in curves.items()}
    content |= {"bytes": curves, "pes_ratio": flat, "exponents": exponents}
    content["fulfilled"] = {
        "PES": harness.within("PES, longest over shortest", flat, FLAT),
        "segments": harness.within("exponent of segments", exponents[SEGMENTS], ROOT),
    }
    harness.print_table(["memory grows as T to the", "power"], exponents.items())
    mebibytes = {name: [(t, b / 2**20) for t, b in points] for name, points in curves.items()}
    axes = {"xlabel": "steps of the unroll, T", "ylabel": "peak memory, MiB"}
    harness.save(args, content, memory={"lines": mebibytes, **axes})
    return content


if __name__ == "__main__":
    main()
