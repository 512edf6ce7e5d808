"""Inner steps per second of meta-gradient estimation, beside plain code and beside two libraries.

    python -m benchmarks.meta_throughput [--quick] [--device cuda] [--peer PATH] [--out results]

The learned optimizer is ``mlp`` (19-32-32-2), the optimizee an MLP on 8x8 digits with batches of
64, an unroll is 20 steps, the objective the training loss, on one thread. A step is one inner step
of one task: loss, gradient and update, and its part of the estimate (a PES pair is two steps).
Contenders run in turn, round after round (``harness``); the plain code's meta-gradient is first
checked against the engine's. Then curves over tasks in one ``vmap`` and over parameters, and on a
GPU the memory. ``--tasks`` are those of the engine in the comparison (16; on a GPU 256);
``--engines`` are of those in ``lo_framework.inner.engine``. Then learned optimizers on kinds of
problems (`families`), beside another checkout of this project (``--peer``) and JAX.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import families, harness, plain
from benchmarks.harness import Contender, Estimation
from benchmarks.peers import LOSSES, Peer, build_model, load_peer
from lo_framework.learned.base import Theta

UNROLL, SIGMA = 20, 0.01
ESTIMATORS = {"pes": f"pes:sigma={SIGMA}", "tbptt": "tbptt"}
COPIES = {"pes": 2, "tbptt": 1}  # of a task
# PES divides a difference of two float32 scores by 2 sigma^2.
TOLERANCE = {"pes": 1e-2, "tbptt": 1e-3}
INPUTS, CLASSES = 64, 10


def engine_estimate(kind: str, engine: str, num: int, hidden: int, device: str) -> Estimation:
    optimizee = f"mlp:hidden={hidden}"
    return Estimation(ESTIMATORS[kind], UNROLL, num, optimizee, "mlp", engine, device=device)


def contender(kind: str, name: str, run: Callable[[], Any], num: int) -> Contender:
    return Contender(name, run, num * UNROLL * COPIES[kind])


def plain_gradient(
    kind: str,
    ours: Estimation,
    num: int,
    generator: torch.Generator,
    draw: Callable[[], Sequence[Sequence[plain.Batch]]],
) -> Theta:
    """Plain code's meta-gradient for the first ``num`` of the engine's tasks; perturbations are
    drawn before the data.
    """
    starts = ours.state.carry.params[:num]
    common = ours.task, ours.theta, ours.shapes, starts
    if kind == "tbptt":
        return plain.tbptt(*common, draw())
    size = sum(x.numel() for x in ours.theta.values())
    eps = SIGMA * torch.randn(num, size, generator=generator)
    return plain.pes(*common, draw(), eps.to(starts.device), SIGMA)


def plain_code(kind: str, ours: Estimation, num: int) -> Contender:
    """Plain code for the first ``num`` of the engine's tasks, drawing its own data."""
    num = min(num, len(ours.state.t))
    generator = torch.Generator().manual_seed(1)

    def draw() -> list[list[plain.Batch]]:
        return [[ours.task.batch("train", generator) for _ in range(UNROLL)] for _ in range(num)]

    run = partial(plain_gradient, kind, ours, num, generator, draw)
    return contender(kind, "plain code", run, num)


def difference(kind: str, num: int, hidden: int, device: str) -> float:
    """Relative distance of the plain code's meta-gradient from the engine's: same starts, data and
    perturbations.
    """
    ours = engine_estimate(kind, "eager", num, hidden, device)
    generator = ours.state.generator.clone_state()

    def draw() -> list[list[plain.Batch]]:
        drawn = []
        for _ in range(UNROLL):
            drawn.append(ours.task.batch("train", generator, (num,)))
            torch.randint(2**62, (num,), generator=generator)  # the engine's seeds for dropout
        return [[tuple(x[k] for x in batch) for batch in drawn] for k in range(num)]

    gradients = ours(), plain_gradient(kind, ours, num, generator, draw)
    a, b = (torch.cat([g[name].reshape(-1) for name in ours.theta]) for g in gradients)
    return float((a - b).norm() / b.norm())


def peers(ours: Estimation) -> tuple[list[Contender], dict[str, str]]:
    """The libraries that are installed, and why the others are not among them."""
    contenders, missing = [], {}
    generator = torch.Generator().manual_seed(2)
    model = build_model(ours.shapes).to(ours.task.device)

    def run(peer: Peer) -> Tensor:
        fresh = copy.deepcopy(model)
        return peer(fresh, [ours.task.batch("train", generator) for _ in range(UNROLL)])

    for name in LOSSES:
        try:
            peer = load_peer(name)
        except ImportError as error:
            missing[name] = f"{error}; pip install '.[bench]'"
            print(f"{name} is left out: {missing[name]}")
            continue
        contenders.append(Contender(f"{name}, Adam's step size", partial(run, peer), UNROLL))
    return contenders, missing


def headline(args: argparse.Namespace, engines: Sequence[str]) -> dict[str, Any]:
    """Everything against the plain code, in one interleaved run."""
    out: dict[str, Any] = {"tasks": args.tasks, "hidden": args.hidden}
    out |= {"unroll": UNROLL, "batch": 64}
    groups = {}
    for kind, plain_tasks in args.plain_tasks.items():
        off = difference(kind, 3, args.hidden, args.device)
        assert off < TOLERANCE[kind], (
            f"the plain code's {kind} gradient differs from the engine's by {off:.1e}"
        )
        print(f"{kind}: plain code and engine agree to {off:.1e} (relative)")
        ours = {e: engine_estimate(kind, e, args.tasks, args.hidden, args.device) for e in engines}
        groups[kind] = [
            plain_code(kind, ours["eager"], plain_tasks),
            *(contender(kind, f"ours, {e}", x, args.tasks) for e, x in ours.items()),
        ]
        out[kind] = {"difference": off}
    libraries, out["missing"] = peers(ours["eager"])
    groups["tbptt"] += libraries
    harness.interleave([c for group in groups.values() for c in group], args.rounds, args.device)
    for kind, group in groups.items():
        for c in group:
            ratios = zip(("ratio_best", "ratio_median"), c.ratio(group[0]))
            out[kind][c.name] = c.speeds() | dict(ratios, seconds=c.seconds, steps=c.steps)
        harness.print_table(
            ["inner steps/s", "best", "median", "x plain (best)", "x plain (median)"],
            [[f"{kind}: {c.name}", *[*out[kind][c.name].values()][:4]] for c in group],
        )
    return out


def curve(
    args: argparse.Namespace, engines: Sequence[str], points: Sequence[tuple[int, int]], what: str
) -> list[dict]:
    """Best and median over a few rounds at each (tasks, hidden width)."""
    out = []
    gpu = harness.on_gpu(args)
    for num, hidden in points:
        size = hidden * (INPUTS + 1) + CLASSES * (hidden + 1)
        for kind in ESTIMATORS:
            ours = {e: engine_estimate(kind, e, num, hidden, args.device) for e in engines}
            group = [contender(kind, engine, x, num) for engine, x in ours.items()]
            if what == "parameters":
                group.append(plain_code(kind, ours[engines[-1]], 1))
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            try:
                harness.interleave(group, args.curve_rounds, args.device)
            except torch.OutOfMemoryError:
                print(f"{kind}, {num} tasks, {size:,} parameters: the GPU's memory is too small")
                continue
            point: dict[str, Any] = {"estimator": kind, "tasks": num, "parameters": size}
            point |= {c.name: c.speeds() for c in group}
            if gpu:
                point["peak_bytes"] = torch.cuda.max_memory_allocated()
            out.append(point)
    print(f"best inner steps/s over {what}:")
    rows = [[x["best"] if isinstance(x, dict) else x for x in each.values()] for each in out]
    harness.print_table([*out[0]] if out else [], rows)
    return out


def panels(content: dict[str, Any]) -> dict[str, Any]:
    """Bars of the comparison, and lines over tasks and over parameters."""
    bars = {
        f"{kind}: {name}": row["median"]
        for kind in ESTIMATORS
        for name, row in content["headline"][kind].items()
        if isinstance(row, dict)
    }
    out: dict[str, Any] = {"comparison": {"bars": bars, "xlabel": "inner steps/s (median)"}}
    if "families" in content:
        ratios = {
            name: row["ratios"].get("x best engine of the peer")
            for name, row in content["families"].items()
            if isinstance(row, dict)
        }
        bars = {name: x for name, x in ratios.items() if x}
        label = "times its best engine"
        out |= {"over_the_peer": {"bars": bars, "xlabel": label}} if bars else {}
    for what in ("tasks", "parameters") if "curve_tasks" in content else ():
        lines: dict[str, list[Any]] = defaultdict(list)
        for point in content[f"curve_{what}"]:
            for name, row in point.items():
                if isinstance(row, dict):
                    lines[f"{point['estimator']}, {name}"].append((point[what], row["best"]))
        out[f"over_{what}"] = {"lines": lines, "xlabel": what, "ylabel": "inner steps/s"}
    return out


def widths(most: int) -> list[int]:
    """Hidden widths for about 1e2, 3e2, ... parameters, up to ``most``."""
    sizes = [10 ** (k / 2) for k in range(4, 2 * round(math.log10(most)) + 1)]
    return [max(1, round((size - CLASSES) / (INPUTS + 1 + CLASSES))) for size in sizes]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults = {"device": "cpu", "tasks": 0, "hidden": 32, "curves": True}
    defaults |= {"rounds": (4, 15), "curve_rounds": (2, 3), "family_rounds": (2, 12)}
    defaults |= {"families": True, "peer": ""}
    native = "native,native-graph,native-inductor"
    defaults["engines"] = "eager,native-graph", f"eager,graph,inductor,{native}"
    args, content = harness.begin("meta_throughput", __doc__, argv, **defaults)
    gpu = harness.on_gpu(args)
    args.tasks = args.tasks or (256 if gpu else 16)
    args.plain_tasks = {"pes": 1, "tbptt": 1} if gpu else {"pes": 4, "tbptt": 3}
    engines = args.engines.split(",")
    content["headline"] = headline(args, engines)
    if args.curves:
        tasks = (
            [8, 64, 512, 4096] if gpu else [1, 8, 64] if args.quick else [2**k for k in range(7)]
        )
        wide = widths(10**4)[::2] if args.quick else widths(10**5)
        # Compiling at every point would take most of the time.
        kept = [engine for engine in engines if "inductor" not in engine]
        content["curve_tasks"] = curve(args, kept, [(k, args.hidden) for k in tasks], "tasks")
        content["curve_parameters"] = curve(args, kept, [(4, h) for h in wide], "parameters")
    if args.families:
        content["families"] = families.measure(args)
    harness.save(args, content, **panels(content))
    return content


if __name__ == "__main__":
    main()
