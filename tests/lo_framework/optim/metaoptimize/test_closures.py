"""Exact traces that need no product: every form of a closure makes the steps of hessian-free."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lo_framework.optim.metaoptimize import tools


def nothing_to_trace() -> list[dict[str, Any]]:
    """Exact traces that need no product."""
    fixed = [
        {"base": base, "meta": "fixed", "trace": trace}
        for base in ("sgd", "sgdm", "adamw", "lion")
        for trace in ("l", "2x2")
    ]
    metas = ("sgd", "rmsprop", "adam", "lion")
    return fixed + [{"base": "lion", "meta": meta, "trace": "l"} for meta in metas]


@pytest.mark.parametrize("options", nothing_to_trace())
@pytest.mark.parametrize("form", ["loss", "graph", "plain", "outside"])
def test_traces_that_trace_nothing_make_their_steps(options: dict[str, Any], form: str) -> None:
    """The same bits as hessian-free, by each form of a closure, whatever gradients are left."""
    params, others = tools.parameters(), tools.parameters()
    optimizer = tools.make(params, **options)
    plain = tools.make(others, **{**options, "trace": "hessian-free"})
    for t in range(5):

        def closure(
            t: int = t, optimizer: Any = optimizer, params: Any = params, form: str = form
        ) -> Tensor:
            if form != "loss":
                optimizer.zero_grad()
            loss = tools.loss_of(params, t)
            if form != "loss":
                loss.backward(create_graph=form == "graph")
            return loss

        if form == "outside":
            closure()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
            optimizer.step(None if form == "outside" else closure)
        plain.step(lambda: closure(optimizer=plain, params=others, form="plain"))
    assert torch.equal(tools.flat(params), tools.flat(others))
    assert not torch.equal(tools.flat(params), tools.flat(tools.parameters()))
    assert all(p.grad is None or not p.grad.requires_grad for p in params)


def test_gradients_accumulate_where_nothing_is_traced() -> None:
    """A closure that calls backward adds to what was there, as with hessian-free."""
    params, others = tools.parameters(), tools.parameters()
    one, two = tools.make(params, "lion", trace="l"), tools.make(others, "lion")
    for t in range(3):
        for optimizer, ps in ((one, params), (two, others)):
            optimizer.zero_grad()
            tools.loss_of(ps, 10 + t).backward()
            optimizer.step(lambda ps=ps, t=t: tools.loss_of(ps, t).backward())
    assert torch.equal(tools.flat(params), tools.flat(others))
