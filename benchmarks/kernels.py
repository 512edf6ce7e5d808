"""Compiled kernels beside the plain code that they are made from, on this processor.

    python -m benchmarks.kernels [--quick] [--out results]

Convolutions under a 2x2 maximum, of ``--tasks`` tasks at once, and updates of learned optimizers,
of an MLP of 64-32-10 for as many tasks: by themselves and with their derivatives. Both run in turn,
on one thread; a ratio is taken within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from benchmarks import harness
from benchmarks.harness import Contender
from lo_framework.episode import tile_theta
from lo_framework.layout import Layout
from lo_framework.learned import make_learned
from lo_framework.learned.base import Clock, LearnedOptimizer
from lo_framework.learned.kernels import with_kernels
from lo_framework.native.active import kernels
from lo_framework.optimizees.models.conv import gather_matrix, largest3x3

# Maps in and out, side, rows of the batch.
CONVOLUTIONS = [(1, 8, 8, 64), (8, 16, 4, 64), (3, 16, 16, 32), (16, 16, 8, 64), (32, 64, 8, 64)]
LEARNED = ("hyper-adamw", "attention-mlp", "mlp", "scaled")
LAYOUT = {"0.weight": (32, 64), "0.bias": (32,), "1.weight": (10, 32), "1.bias": (10,)}

Ways = dict[str, Callable[[], Any]]  # plain and kernel


def convolution(shape: tuple[int, ...], tasks: int, derivative: bool) -> Ways:
    maps, out, side, rows = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, maps, side, side, rows, generator=generator)
    w = torch.randn(tasks, out, maps, 3, 3, generator=generator) / (9 * maps) ** 0.5
    gather = gather_matrix(side, side, 1)
    given = [t.requires_grad_(derivative) for t in (x, w)]

    def run(native: bool) -> None:
        with kernels(native):
            y = vmap(lambda a, b: largest3x3(a, b, 1, gather))(*given)
            if derivative:
                torch.autograd.grad(y, given, torch.ones_like(y))

    return {"plain": lambda: run(False), "kernel": lambda: run(True)}


def update(spec: str, tasks: int, derivative: bool) -> Ways:
    layout, generator = Layout.of(LAYOUT), torch.Generator().manual_seed(0)
    params, grads = (torch.randn(tasks, layout.size, generator=generator) for _ in range(2))
    clock = Clock(torch.tensor(0.3), torch.tensor(200.0))
    plain = make_learned(spec)
    theta = {n: x.requires_grad_(derivative) for n, x in tile_theta(plain.theta(), tasks).items()}
    state = vmap(lambda p: plain.init_state(layout, p))(params)

    def run(rule: LearnedOptimizer) -> None:
        def one(theta: Any, params: Tensor, grads: Tensor, state: Any) -> Any:
            return functional_call(
                rule, theta, (layout, params, grads, state, grads.square().mean(), clock)
            )

        new, _ = vmap(one)(theta, params, grads, state)
        if derivative:
            torch.autograd.grad(new.square().sum(), [*theta.values()], materialize_grads=True)

    compiled = with_kernels(plain)
    return {"plain": lambda: run(plain), "kernel": lambda: run(compiled)}


def compared(ways: Ways, rounds: int) -> dict[str, float]:
    """Milliseconds of both, and how many times as fast the kernel is."""
    plain, kernel = contenders = [Contender(name, run, 1) for name, run in ways.items()]
    harness.interleave(contenders, rounds)
    times = {f"{c.name}, ms": 1e3 / c.median for c in contenders}
    return times | {"times as fast": kernel.ratio(plain)[1]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults = {"tasks": (2, 8), "rounds": (2, 25)}
    args, content = harness.begin("kernels", __doc__, argv, **defaults)
    cases: dict[str, Callable[[int, bool], Ways]] = {}
    for shape in CONVOLUTIONS:
        maps, out, side, rows = shape
        label = f"convolution, {maps} to {out} maps of {side}x{side}, {rows} rows"
        cases[label] = partial(convolution, shape)
    for spec in LEARNED:
        cases[f"update of {spec}"] = partial(update, spec)
    content |= {"tasks": args.tasks, "cases": {}}
    for label, make in cases.items():
        parts = {"alone": False, "with its derivative": True}
        row = {name: compared(make(args.tasks, x), args.rounds) for name, x in parts.items()}
        content["cases"][label] = row
        told = (f"{name} {x['times as fast']:.1f}x" for name, x in row.items())
        print(f"{label}: {', '.join(told)}", flush=True)
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
