"""Inner steps per second of meta-gradient estimation, beside plain code and beside two libraries.

    python -m benchmarks.meta_throughput [--quick] [--device cuda] [--out results]

The learned optimizer is ``mlp`` (19-32-32-2), the optimizee an MLP on 8x8 digits with batches of
64, an unroll is 20 steps, the objective the training loss, on one thread. A step is one inner step
of one task: loss, gradient and update, and its part of the estimate (a PES pair is two steps).
Contenders run in turn, round after round (``harness``); the plain code's meta-gradient is first
checked against the engine's. Then curves over tasks in one ``vmap`` and over parameters, and on a
GPU the memory.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness, plain
from benchmarks.harness import Contender
from benchmarks.peers import PEERS, build_model
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.estimators.truncation import UnrollState
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.learned.base import Theta
from lo_framework.objectives import make_objective
from lo_framework.optimizees.pool import make_tasks

UNROLL, SIGMA, FOREVER = 20, 0.01, 10**6
ESTIMATORS = {"pes": f"pes:sigma={SIGMA}", "tbptt": "tbptt"}
TOLERANCE = {
    "pes": 1e-2,
    "tbptt": 1e-3,
}  # PES divides a difference of two float32 scores by 2 sigma^2
INPUTS, CLASSES = 64, 10


class Ours:
    """The engine on ``num`` tasks, from the same start at every call."""

    def __init__(self, kind: str, engine: str, num: int, hidden: int, device: str) -> None:
        self.task: Any = make_tasks(f"mlp:hidden={hidden}", "digits", device=device)[0]
        learned = make_learned("mlp").to(device)
        family = Family(self.task, learned, engine)
        truncation = Truncation(unroll_length=UNROLL, episode=(FOREVER, FOREVER))
        self.estimator = make_estimator(
            ESTIMATORS[kind], family, make_objective("train"), truncation, num
        )
        self.theta: Theta = {name: x.to(device) for name, x in learned.theta().items()}
        state = self.estimator.init_state(self.theta, torch.Generator().manual_seed(0))
        self.state: UnrollState = replace(state, stop=state.horizon.clone())
        self.steps = num * UNROLL * (2 if kind == "pes" else 1)
        self.shapes = [slot.shape for slot in family.layout.slots]

    def __call__(self) -> Theta:
        return self.estimator.estimate(self.theta, self.state)[0].grad


def plain_code(kind: str, ours: Ours, num: int) -> Contender:
    """Plain code for the first ``num`` of the engine's tasks, drawing its own data."""
    num = min(num, len(ours.state.t))
    generator = torch.Generator().manual_seed(1)
    starts = ours.state.carry.params[:num]

    def run() -> Theta:
        batches = [[ours.task.batch("train", generator) for _ in range(UNROLL)] for _ in range(num)]
        if kind == "tbptt":
            return plain.tbptt(ours.task, ours.theta, starts, batches, ours.shapes)
        eps = SIGMA * torch.randn(
            num, sum(x.numel() for x in ours.theta.values()), generator=generator
        )
        eps = eps.to(starts.device)
        return plain.pes(ours.task, ours.theta, eps, eps, SIGMA, starts, batches, ours.shapes)

    return Contender("plain code", run, num * UNROLL * (2 if kind == "pes" else 1))


def difference(kind: str, num: int, hidden: int, device: str, engine: str = "eager") -> float:
    """Relative distance of the plain code's meta-gradient from the engine's: same starts, data and
    perturbations.
    """
    ours = Ours(kind, engine, num, hidden, device)
    random = ours.state.generator.get_state()
    grad = ours()
    generator = torch.Generator()
    generator.set_state(random)
    eps = torch.empty(0)
    if kind == "pes":
        eps = (
            SIGMA
            * torch.randn(num, sum(x.numel() for x in ours.theta.values()), generator=generator)
        ).to(device)
    drawn = []
    for _ in range(UNROLL):
        drawn.append(ours.task.batch("train", generator, (num,)))
        torch.randint(2**62, (num,), generator=generator)  # the engine's seeds for dropout
    batches = [[tuple(x[k] for x in batch) for batch in drawn] for k in range(num)]
    starts = ours.state.carry.params[:num]
    if kind == "pes":
        other = plain.pes(ours.task, ours.theta, eps, eps, SIGMA, starts, batches, ours.shapes)
    else:
        other = plain.tbptt(ours.task, ours.theta, starts, batches, ours.shapes)
    a, b = (torch.cat([g[name].reshape(-1) for name in ours.theta]) for g in (grad, other))
    return float((a - b).norm() / b.norm())


def peers(ours: Ours) -> tuple[list[Contender], dict[str, str]]:
    """The libraries that are installed, and why the others are not among them."""
    contenders, missing = [], {}
    generator = torch.Generator().manual_seed(2)
    model = build_model(ours.shapes).to(ours.task.device)
    for name, load in PEERS.items():
        try:
            peer = load()
        except ImportError as error:
            missing[name] = f"{error}; pip install '.[bench]'"
            continue

        def run(peer: Callable[..., Tensor] = peer) -> Tensor:
            fresh = copy.deepcopy(model)
            return peer(fresh, [ours.task.batch("train", generator) for _ in range(UNROLL)])

        contenders.append(Contender(f"{name}, Adam's step size", run, UNROLL))
    return contenders, missing


def headline(args: argparse.Namespace, engines: Sequence[str]) -> dict[str, Any]:
    """Everything against the plain code, in one interleaved run."""
    out: dict[str, Any] = {
        "tasks": args.tasks,
        "hidden": args.hidden,
        "unroll": UNROLL,
        "batch": 64,
    }
    ours = {
        kind: {e: Ours(kind, e, args.tasks, args.hidden, args.device) for e in engines}
        for kind in ESTIMATORS
    }
    groups = {}
    for kind, by_engine in ours.items():
        off = difference(kind, 3, args.hidden, args.device)
        assert off < TOLERANCE[kind], (
            f"the plain code's {kind} gradient differs from the engine's by {off:.1e}"
        )
        print(f"{kind}: plain code and engine agree to {off:.1e} (relative)")
        mine = [Contender(f"ours, {engine}", x, x.steps) for engine, x in by_engine.items()]
        groups[kind] = [plain_code(kind, by_engine["eager"], args.plain_tasks[kind]), *mine]
        out[kind] = {"difference": off}
    libraries, out["missing"] = peers(ours["tbptt"]["eager"])
    groups["libraries"] = libraries
    for name, reason in out["missing"].items():
        print(f"{name} is left out: {reason}")
    harness.interleave([c for group in groups.values() for c in group], args.rounds, args.device)
    for kind in ESTIMATORS:
        yard = groups[kind][0]
        rows = []
        for c in groups[kind] + (libraries if kind == "tbptt" else []):
            best, median = c.ratio(yard)
            rows.append([f"{kind}: {c.name}", c.best, c.median, best, median])
            out[kind][c.name] = dict(
                zip(("best", "median", "ratio_best", "ratio_median"), rows[-1][1:]),
                seconds=c.seconds,
                steps=c.steps,
            )
        harness.print_table(
            ["inner steps/s", "best", "median", "x plain (best)", "x plain (median)"], rows
        )
    return out


def curve(
    args: argparse.Namespace, engines: Sequence[str], points: Sequence[tuple[int, int]], what: str
) -> list[dict]:
    """Best and median over a few rounds at each (tasks, hidden width)."""
    out, rows = [], []
    gpu = args.device.startswith("cuda")
    for num, hidden in points:
        size = hidden * (INPUTS + 1) + CLASSES * (hidden + 1)
        for kind in ESTIMATORS:
            name = f"{kind}, {num} tasks, {size:,} parameters"
            group = []
            for engine in engines:
                x = Ours(kind, engine, num, hidden, args.device)
                group.append(Contender(engine, x, x.steps))
            if what == "parameters":
                group.append(plain_code(kind, x, 1))
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            try:
                harness.interleave(group, args.curve_rounds, args.device)
            except torch.OutOfMemoryError:
                print(f"{name}: the GPU's memory is too small")
                continue
            point: dict[str, Any] = {"estimator": kind, "tasks": num, "parameters": size}
            point |= {c.name: {"best": c.best, "median": c.median} for c in group}
            rows.append([name, *(c.best for c in group)])
            if gpu:
                point["peak_bytes"] = torch.cuda.max_memory_allocated()
                rows[-1].append(point["peak_bytes"] / 2**20)
            out.append(point)
    names = [
        *engines,
        *(["plain code"] if what == "parameters" else []),
        *(["peak MiB"] if gpu else []),
    ]
    harness.print_table([f"best inner steps/s over {what}", *names], rows)
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
    for what in ("tasks", "parameters"):
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
    parser = harness.parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--tasks",
        type=int,
        default=0,
        help="tasks of the engine in the comparison (16; on a GPU 256)",
    )
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--curve-rounds", type=int, default=0)
    parser.add_argument(
        "--engines",
        default="",
        help="of eager, graph, inductor; default all (--quick: the first two)",
    )
    parser.add_argument("--no-curves", action="store_true")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    gpu = args.device.startswith("cuda")
    args.tasks = args.tasks or (256 if gpu else 16)
    args.rounds = args.rounds or (4 if args.quick else 15)
    args.curve_rounds = args.curve_rounds or (2 if args.quick else 3)
    args.plain_tasks = {"pes": 1, "tbptt": 1} if gpu else {"pes": 4, "tbptt": 3}
    engines = (args.engines or ("eager,graph" if args.quick else "eager,graph,inductor")).split(",")
    content = harness.environment("benchmarks.meta_throughput", args.device)
    content["headline"] = headline(args, engines)
    if not args.no_curves:
        tasks = (
            [8, 64, 512, 4096] if gpu else [1, 8, 64] if args.quick else [1, 2, 4, 8, 16, 32, 64]
        )
        wide = widths(10**4 if args.quick else 10**5)
        kept = [
            e for e in engines if e != "inductor"
        ]  # compiling at every point would take most of the time
        content["curve_tasks"] = curve(args, kept, [(k, args.hidden) for k in tasks], "tasks")
        content["curve_parameters"] = curve(
            args, kept, [(4, h) for h in wide[:: 2 if args.quick else 1]], "parameters"
        )
    pictures = {} if args.no_curves else panels(content)
    harness.save("meta_throughput", args, content, **pictures)
    return content


if __name__ == "__main__":
    main()
