"""Traces against brute force: autograd through whole trainings in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.lo_framework.optim.metaoptimize import tools
from tests.lo_framework.optim.metaoptimize.reference import (
    BASES,
    D,
    losses,
    trace_of_given_betas,
    trace_with_feedback,
)

SHAPES = [(2,), (1, 2)]
BLOCK = torch.tensor([0, 0, 1, 1])
LOSS = losses(4)
STEPS, GAMMA, KAPPA, ETA = 5, 0.9, 0.1, 0.05


def histories(**options: object) -> tuple[Tensor, list[Tensor], list[Tensor], object]:
    """The start, beta of every step, the trace ``[n, C]`` before every step and after the last, the
    optimizer.
    """
    params = tools.parameters(3, SHAPES)
    start = tools.flat(params)
    options = {
        "gamma": GAMMA,
        "weight_decay": KAPPA,
        "meta_lr": ETA,
        "max_change": math.inf,
        **options,
    }
    optimizer = tools.make(params, **options)
    betas, traces = [], [torch.zeros(4, 1, dtype=D)]
    for t in range(STEPS):
        betas.append(tools.beta_of(optimizer).clone())
        tools.on_losses(optimizer, params, LOSS, t)
        traces.append(tools.held(optimizer, params).reshape(-1, 4).T)
    traces[0] = torch.zeros_like(traces[1])
    return start, betas, traces, optimizer


def spread_of(blocks: str) -> tuple[Tensor, int]:
    return (BLOCK, 2) if blocks == "tensor" else (torch.zeros(4, dtype=torch.int64), 1)


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("base", BASES)
def test_hessian_free_trace_is_the_derivative_at_given_gradients(base: str, gamma: float) -> None:
    start, betas, traces, _ = histories(base=base, meta="sgd", gamma=gamma)
    block, _ = spread_of("scalar")
    shifts = torch.ones(1, 1, dtype=D)
    for num in range(1, STEPS + 1):
        expected = trace_of_given_betas(
            base, LOSS, start, betas[:num], block, shifts, gamma, KAPPA, detach=True
        )
        torch.testing.assert_close(traces[num], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", ["scalar", "tensor"])
@pytest.mark.parametrize("products", ["joint", "per-block"])
@pytest.mark.parametrize("base", ["sgd", "sgdm", "adamw", "lion"])
def test_l_is_the_full_derivative(base: str, products: str, blocks: str) -> None:
    start, betas, traces, _ = histories(
        base=base, meta="adam", trace="l", products=products, blocks=blocks
    )
    block, num_blocks = spread_of(blocks)
    shifts = (
        torch.eye(num_blocks, dtype=D)
        if traces[1].shape[1] > 1
        else torch.ones(num_blocks, 1, dtype=D)
    )
    assert traces[1].shape[1] == (num_blocks if products == "per-block" and base != "lion" else 1)
    for num in range(1, STEPS + 1):
        expected = trace_of_given_betas(
            base, LOSS, start, betas[:num], block, shifts, GAMMA, KAPPA, detach=False
        )
        torch.testing.assert_close(traces[num], expected, rtol=0, atol=1e-12)
    without = trace_of_given_betas(
        base, LOSS, start, betas, block, shifts, GAMMA, KAPPA, detach=True
    )
    assert (base == "lion") == torch.allclose(without, traces[-1], rtol=0, atol=1e-9)


CASES = [
    *(("sgd", meta, "joint", "scalar") for meta in ("sgd", "rmsprop", "adam", "lion")),
    *itertools.product(["sgdm", "adamw"], ["sgd", "adam"], ["joint", "per-block"], ["tensor"]),
    ("lion", "sgd", "joint", "scalar"),
]


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_2x2_is_the_derivative_through_weights_and_meta_state(
    case: tuple[str, str, str, str], gamma: float
) -> None:
    base, meta, products, blocks = case
    options = {"base": base, "meta": meta, "products": products, "blocks": blocks, "gamma": gamma}
    start, betas, traces, optimizer = histories(trace="2x2", **options)
    block, num_blocks = spread_of(blocks)
    shifts = (
        torch.eye(num_blocks, dtype=D)
        if products == "per-block"
        else torch.ones(num_blocks, 1, dtype=D)
    )
    found = trace_with_feedback(
        base, meta, LOSS, start, betas[0], traces[:-1], block, shifts, ETA, gamma, KAPPA
    )
    torch.testing.assert_close(traces[-1], found[0], rtol=0, atol=1e-12)
    y = optimizer._exact.tangents["beta"].T  # type: ignore[attr-defined]
    torch.testing.assert_close(y, found[1], rtol=0, atol=1e-12)
    feels = (y - shifts).abs().max() > 1e-6
    assert feels == (meta != "lion"), "a sign does not feel small changes of its input"


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_full_is_the_derivative_through_the_trace_too(gamma: float) -> None:
    params = tools.parameters(3, SHAPES)
    start = tools.flat(params)
    optimizer = tools.make(
        params, "sgd", "sgd", trace="full", gamma=gamma, weight_decay=KAPPA, max_change=math.inf
    )
    injections, traces, beta0 = [], [], tools.beta_of(optimizer).clone()
    for t in range(STEPS):
        injections.append(gamma * float(optimizer._exact.tangents["beta"]) + 1 - gamma)
        traces.append(torch.zeros(4, 1, dtype=D))
        tools.on_losses(optimizer, params, LOSS, t)
    block, _ = spread_of("scalar")
    shifts = torch.ones(1, 1, dtype=D)
    x, y, q = trace_with_feedback(
        "sgd",
        "sgd",
        LOSS,
        start,
        beta0,
        traces,
        block,
        shifts,
        ETA,
        gamma,
        KAPPA,
        injections=injections,
    )
    assert q is not None
    torch.testing.assert_close(tools.held(optimizer, params).T, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(optimizer._exact.tangents["beta"], y, rtol=0, atol=1e-12)
    torch.testing.assert_close(tools.held(optimizer, params, "q").T, q, rtol=0, atol=1e-12)
    assert q.abs().max() > 1e-3


@pytest.mark.parametrize("base", ["sgd", "sgdm", "adamw", "lion"])
def test_without_hessian_2x2_equals_l_equals_hessian_free(base: str) -> None:
    """On losses that are linear in the weights, every product with the Hessian is zero."""
    g = torch.Generator().manual_seed(0)
    slopes = torch.randn(STEPS, 4, generator=g, dtype=D) + 1.0
    results = []
    for trace in ("hessian-free", "l", "2x2"):
        params = tools.parameters(3, SHAPES)
        optimizer = tools.make(params, base, "adam", trace=trace, gamma=GAMMA)
        for t in range(STEPS):
            tools.on_losses(optimizer, params, lambda t, w: slopes[t] @ w, t)
        results.append(torch.cat([tools.flat(params), tools.held(optimizer, params).reshape(-1)]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backward", [True, False])
def test_closures_with_and_without_backward_agree(backward: bool) -> None:
    params, others = tools.parameters(), tools.parameters()
    optimizer = tools.make(params, "adamw", "adam", trace="2x2")
    for t in range(3):

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            loss = tools.loss_of(params, t)
            if backward:
                for p, g in zip(params, torch.autograd.grad(loss, params, create_graph=True)):
                    p.grad = g
            return loss

        loss = optimizer.step(closure)
        assert not loss.requires_grad and not any(
            p.grad.requires_grad for p in params if p.grad is not None
        )
    tools.run(tools.make(others, "adamw", "adam", trace="2x2"), others, range(3))
    assert torch.equal(tools.flat(params), tools.flat(others))


def test_blocks_added_later_leave_the_shifts_of_beta_as_they_are() -> None:
    """With gamma 0 the next step sees a fresh shift of each block, whatever the tangents are."""
    params = tools.parameters()
    options = {"trace": "2x2", "products": "per-block", "blocks": "tensor", "gamma": 0.9}
    optimizer = tools.make(params[:2], "sgd", "sgd", **options)
    tools.run(optimizer, params[:2], range(3))
    optimizer.add_param_group({"params": params[2:]})
    assert optimizer._exact is not None
    assert not torch.equal(optimizer._exact.tangents["beta"], torch.eye(len(params), dtype=D))
    assert torch.equal(optimizer._exact._injected(0.0), torch.eye(len(params), dtype=D))
