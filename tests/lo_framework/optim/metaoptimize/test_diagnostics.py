"""Meta-gradients that are not finite, and step sizes that explode, collapse or oscillate: counted,
named, said once.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.optim import MetaOptimize
from lo_framework.optim.metaoptimize.diagnostics import WINDOW, Watch
from lo_framework.optim.metaoptimize.rules import Limits
from tests.lo_framework.optim.metaoptimize import tools
from tests.lo_framework.optim.metaoptimize.reference import D

FREE = Limits(-math.inf, math.inf, math.inf)


def test_a_meta_gradient_that_is_not_finite() -> None:
    """Only its block stands still, and starts its trace anew; it is counted, and said once."""
    params = tools.parameters()
    optimizer = tools.make(tools.named(params), "adamw", "adam", blocks="tensor")
    tools.run(optimizer, params, range(3))
    before = optimizer._meta_state
    tools.give_grads(params, 3)
    assert params[1].grad is not None
    params[1].grad[0] = torch.inf
    weights = params[1].detach().clone()
    with pytest.warns(RuntimeWarning, match='meta-gradient of block "body.bias" is not finite'):
        optimizer.step()
    after = optimizer._meta_state
    for name, x in after.items():
        assert x[1] == before[name][1] and (x != before[name]).sum() == 3
    assert not optimizer.state[params[1]]["h"].any() and optimizer.state[params[0]]["h"].all()
    with torch.no_grad():  # the weights are the user's to mend
        params[1].copy_(weights)
        for x in (optimizer.state[params[1]][name] for name in "mv"):
            x.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tools.run(optimizer, params, range(4, 6))
        params[1].grad.fill_(torch.nan)  # type: ignore[union-attr]
        optimizer.step()
    assert optimizer.diagnostics()["skipped"] == 2 and optimizer.diagnostics()["meta_steps"] == 7
    assert (optimizer._meta_state["beta"][1] != before["beta"][1]).all()


@pytest.mark.parametrize("trace", ["l", "2x2"])
def test_an_exact_trace_starts_anew(trace: str) -> None:
    params = tools.parameters()
    optimizer = tools.make(params, "sgd", "adam", trace=trace)
    tools.run(optimizer, params, range(2))
    optimizer.state[params[0]]["h"].fill_(1e308)
    sizes = tools.beta_of(optimizer)
    with pytest.warns(RuntimeWarning, match="not finite"):
        tools.run(optimizer, params, [2])
    assert not tools.held(optimizer, params).any() and torch.equal(tools.beta_of(optimizer), sizes)
    tools.run(optimizer, params, range(3, 6))
    assert (
        tools.held(optimizer, params).isfinite().all() and tools.beta_of(optimizer).isfinite().all()
    )
    assert optimizer.diagnostics()["skipped"] == 1


def watch_of(moves: Tensor, limits: Limits = FREE) -> Watch:
    """A watch after the moves ``[T, m]`` of log step sizes, from -5."""
    beta = torch.full((moves.shape[1],), -5.0, dtype=D)
    watch = Watch(beta, lambda b: f"b{b}")
    for move in moves:
        watch.note(beta, beta + move, torch.zeros_like(beta, dtype=torch.bool), limits)
        beta = beta + move
    return watch


ALTERNATING = torch.tensor([1.0, -1.0], dtype=D).repeat(WINDOW // 2)


@pytest.mark.parametrize(
    ("moves", "kind"),
    [
        (torch.full((WINDOW,), 0.1), "exploding"),
        (torch.full((WINDOW,), -0.1), "collapsing"),
        (0.1 * ALTERNATING, "oscillating"),
        (0.01 * ALTERNATING, None),
        (torch.full((WINDOW,), 0.05), None),
        (torch.zeros(WINDOW), None),
    ],
)
def test_kinds(moves: Tensor, kind: str | None) -> None:
    both = torch.stack([torch.zeros(WINDOW, dtype=D), moves.to(D)], 1)
    if kind is None:
        report = watch_of(both).report()
        assert (
            report["blocks"] == {}
            and sum(report[k] for k in ("oscillating", "collapsing", "exploding")) == 0
        )
        return
    with pytest.warns(RuntimeWarning, match=f'the step size of block "b1" is {kind}'):
        report = watch_of(both).report()
    assert report[kind] == 1 and report["blocks"] == {kind: ["b1"]}


def test_bounds_count_and_warnings_come_once() -> None:
    moves = torch.zeros(3 * WINDOW, 20, dtype=D)
    with pytest.warns(RuntimeWarning, match='blocks "b0", .* and 12 more is collapsing') as seen:
        report = watch_of(moves, Limits(-5.0, 0.0, None)).report()
    assert (
        len(seen) == 1 and report["collapsing"] == 60 and len(report["blocks"]["collapsing"]) == 8
    )
    with pytest.warns(RuntimeWarning, match="exploding"):
        assert watch_of(moves, Limits(-10.0, -5.0, None)).report()["exploding"] == 60


@pytest.mark.parametrize(("sign", "kind"), [(-1.0, "exploding"), (1.0, "collapsing")])
def test_named_as_they_happen_in_a_training(sign: float, kind: str) -> None:
    """Gradients that ask for ever larger (smaller) steps, and a meta step far too large."""
    params = tools.parameters()
    optimizer = MetaOptimize(
        params, 1e-4, 0.2, base="sgd", meta="lion", gamma=0.0, weight_decay=0.0
    )
    with pytest.warns(RuntimeWarning, match=f'block "all" is {kind}'):
        for t in range(60):
            for p in params:
                p.grad = torch.ones_like(p) * (1.0 if sign < 0 else (-1.0) ** t)
            optimizer.step()
    assert optimizer.diagnostics()[kind] == 1


class Writer:
    """What a SummaryWriter is to the hook."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag: str, value: Any, step: int) -> None:
        assert isinstance(value, (float, int))
        self.seen[tag] = (value, step)


def test_tensorboard() -> None:
    pairs = tools.named(tools.parameters())
    writer = Writer()
    MetaOptimize(pairs, alpha0=0.01, blocks={"head": "head", "rest": None}).log(writer, 3)
    assert writer.seen == {
        "step_size/head": (pytest.approx(0.01), 3),
        "step_size/rest": (pytest.approx(0.01), 3),
        "step_size/skipped": (0, 3),
    }
    writer = Writer()
    MetaOptimize(pairs, alpha0=0.01, blocks="weight").log(writer, 1, prefix="a")
    assert len(writer.seen) == 13 and "a/body.weight/median" in writer.seen
