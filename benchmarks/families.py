"""The part of `meta_throughput` about problems and learned optimizers: the flagship beside the
19-feature optimizer on three kinds of net, by every engine; the best engine of another checkout;
plain JAX; and a floor, the bare products of matrices that no engine can do without.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Contender, Estimation
from benchmarks.remote import TREE, Remote

TASKS, UNROLL = 8, 20
ESTIMATORS = {"tbptt": "tbptt", "pes": "pes:sigma=0.01"}
COPIES = {"tbptt": 1, "pes": 2}
# The flagship at the width that it had at the peer, so that both do the same work.
FLAGSHIP = "attention-mlp:hidden=16"
LEARNED = {"mlp": ("mlp",), FLAGSHIP: ("mlp", "cnn", "transformer")}
# The objective in which the LO is compared with JAX, and that of meta-training.
OBJECTIVES = {"mlp": "train", FLAGSHIP: "valid"}
PEER_ENGINES = ("eager", "graph", "inductor")
HIDDEN = {"mlp": (8, 32, 32, 2), FLAGSHIP: (6, 16, 16, 2)}  # widths of the LO's network


def floor(learned: str, kind: str, tasks: int) -> Callable[[], None]:
    """The products of one truncation on ``mlp``: of the network (TBPTT: again, and two for the
    derivatives) and of the task (its gradient, and under TBPTT that of its gradient).
    """
    rows, shapes = tasks * COPIES[kind], [(32, 64), (32, 1), (10, 32), (10, 1)]
    columns = sum(a * b for a, b in shapes)
    widths = HIDDEN[learned]
    times = 4 if kind == "tbptt" else 1
    products: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(a: int, b: int, n: int) -> None:
        w, x = torch.randn(rows, a, b), torch.randn(rows, b, n)
        products.append((w, x, torch.empty(rows, a, n)))

    for _ in range(times):
        for b, a in itertools.pairwise(widths):
            add(a, b, columns)
    for _ in range(3 if kind == "tbptt" else 1):
        for a, b, n in ((32, 64, 64), (10, 32, 64), (10, 64, 32), (32, 10, 64), (32, 64, 64)):
            add(a, b, n)

    def run() -> None:
        for _ in range(UNROLL):
            for w, x, out in products:
                torch.bmm(w, x, out=out)

    return run


def group(
    args: argparse.Namespace, learned: str, optimizee: str, kind: str, others: Sequence[Remote]
) -> list[Contender]:
    """Contenders for one case; those that cannot run here are left out with a line."""
    steps = TASKS * UNROLL * COPIES[kind]
    case = {"objective": OBJECTIVES[learned]}
    found = []
    for engine in args.engines.split(","):
        try:
            run = Estimation(
                *(ESTIMATORS[kind], UNROLL, TASKS, optimizee, learned, engine),
                objective=OBJECTIVES[learned],
                device=args.device,
            )
            found.append(Contender(f"ours, {engine}", run, steps))
        except Exception as error:
            print(f"{engine} is left out: {error}")
    if optimizee == "mlp" and not harness.on_gpu(args):
        found.append(Contender("floor", floor(learned, kind, TASKS), steps))
    for other in others:
        if other.name == "jax":
            if (learned, optimizee) == ("mlp", "mlp"):
                found.append(other.contender("jax", steps, spec=kind, unroll=UNROLL, tasks=TASKS))
            continue
        for engine in PEER_ENGINES:
            options = dict(spec=ESTIMATORS[kind], unroll=UNROLL, tasks=TASKS, engine=engine)
            options |= {"optimizee": optimizee, "learned": learned}
            found.append(other.contender(f"peer, {engine}", steps, **options, **case))
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every case, its contenders in turn; ratios of our best engine to the peer's best and to JAX,
    within rounds.
    """
    others = []
    if args.peer:
        others.append(Remote("peer", TREE, Path(args.peer).resolve()))
    try:
        importlib.import_module("jax")
        others.append(Remote("jax", "from benchmarks.peer_jax import build\n"))
    except ImportError:
        print("jax is left out: pip install '.[bench]'")
    out: dict[str, Any] = {"tasks": TASKS, "unroll": UNROLL, "peer": args.peer}
    try:
        for learned, optimizees in LEARNED.items():
            for optimizee in optimizees:
                for kind in ESTIMATORS:
                    contenders = group(args, learned, optimizee, kind, others)
                    harness.interleave(contenders, args.family_rounds, args.device)
                    name = f"{kind}: {learned} on {optimizee}"
                    out[name] = told(name, contenders)
    finally:
        for other in others:
            other.close()
    return out


def told(name: str, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Speeds of a case and its ratios; printed too."""
    rows = {c.name: c.speeds() for c in contenders}
    best = partial(_best, contenders)
    ours, peer = best("ours"), best("peer")
    ratios = {}
    for label, other in (("best engine of the peer", peer), ("jax", best("jax"))):
        if other is not None and ours is not None:
            ratios[f"x {label}"] = ours.ratio(other)[1]
    plain = [c for c in contenders if c.name in ("peer, eager", "peer, graph")]
    if plain and ours is not None:
        other = max(plain, key=lambda c: c.median)
        ratios["x best uncompiled engine of the peer"] = ours.ratio(other)[1]
    harness.print_table(
        [name, "best", "median"], [[label, *row.values()] for label, row in rows.items()]
    )
    for label, value in ratios.items():
        print(f"{ours.name if ours else ''} {label}: {value:.2f}")
    return {"inner steps/s": rows, "ratios": ratios, "ours": ours.name if ours else ""}


def _best(contenders: Sequence[Contender], prefix: str) -> Contender | None:
    mine = [c for c in contenders if c.name.startswith(prefix)]
    return max(mine, key=lambda c: statistics.median(c.steps / s for s in c.seconds), default=None)
