"""MetaOptimize against published numbers, against the slow reference, and in the special cases that
have a name.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lo_framework.optim.metaoptimize.hessian_free import move, negative_direction, update
from lo_framework.optim.metaoptimize.rules import BASES, Numbers, hessian_free
from tests.lo_framework.optim.metaoptimize import tools
from tests.lo_framework.optim.metaoptimize.reference import (
    BASES as BASE_NAMES,
    METAS,
    D,
    Slow,
    base_rule,
    vec,
)

GOLDEN = {
    ("sgd", "sgd", "2x2"): ((0.76768136, -0.15775885), (-0.17001237, 0.16712572), -2.89279761),
    ("sgd", "sgd", "l"): ((0.76767977, -0.15775727), (-0.17148566, 0.168582), -2.89264789),
    ("adamw", "lion", "hessian-free"): (
        (0.69337858, -0.21082292),
        (-0.25237705, 0.23761715),
        -2.59573227,
    ),
    ("lion", "lion", "hessian-free"): (
        (0.69130826, -0.2053397),
        (-0.25430726, 0.24274784),
        -2.59573227,
    ),
    ("adamw", "adam", "hessian-free"): (
        (0.70111369, -0.21798615),
        (-0.24532736, 0.23110013),
        -2.65494717,
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case: tuple[str, str, str]) -> None:
    """On (w1^2 + 4 w2^2) / 2. The published row is that of the sixth iterate, the start being the
    first.
    """
    base, meta, trace = case
    w, curvature = nn.Parameter(vec(1.0, -0.5)), vec(1.0, 4.0)
    optimizer = tools.make(
        [w],
        base,
        meta,
        alpha0=0.05,
        meta_lr=0.1,
        gamma=0.9,
        weight_decay=0.0 if base == "sgd" else 0.1,
        trace=trace,
        betas=(0.9, 0.99) if base == "adamw" else None,
        eps=1e-8,
    )
    for t in range(5):
        tools.on_losses(optimizer, [w], lambda t, x: 0.5 * (curvature * x * x).sum(), t)
    expected_w, expected_h, expected_beta = GOLDEN[case]
    torch.testing.assert_close(w.detach(), vec(*expected_w), rtol=0, atol=1e-7)
    torch.testing.assert_close(
        tools.held(optimizer, [w]).reshape(-1), vec(*expected_h), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(tools.beta_of(optimizer), vec(expected_beta), rtol=0, atol=1e-7)
    if trace == "2x2":
        torch.testing.assert_close(
            optimizer._exact.tangents["beta"], vec(0.96561742)[None], rtol=0, atol=1e-7
        )


def blocks_of(kind: str) -> Tensor:
    """The block of each element of `tools.SHAPES`."""
    sizes, rows = [6, 3, 1, 8], [3, 3, 1, 2]
    if kind == "weight":
        return torch.arange(18)
    count = {"scalar": [0, 0, 0, 0], "tensor": [1, 1, 1, 1], "node": rows}[kind]
    ids, first = [], 0
    for size, num in zip(sizes, count):
        ids.append(first + torch.arange(max(num, 1)).repeat_interleave(size // max(num, 1)))
        first += num
    return torch.cat(ids)


@pytest.mark.parametrize("blocks", ["scalar", "tensor", "node", "weight"])
@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("base", BASE_NAMES)
def test_equals_the_slow_reference(base: str, meta: str, blocks: str) -> None:
    params = tools.parameters()
    optimizer = tools.make(params, base, meta, gamma=0.95, blocks=blocks, max_change=math.inf)
    slow = Slow(base, meta, tools.flat(params), blocks_of(blocks), 0.02, 0.05, 0.95, 0.1)
    for t in range(8):
        tools.give_grads(params, t)
        slow.step(tools.flat([p.grad for p in params]))
        optimizer.step()
    torch.testing.assert_close(tools.flat(params), slow.w, rtol=0, atol=1e-12)
    torch.testing.assert_close(tools.beta_of(optimizer), slow.beta, rtol=0, atol=1e-12)
    if meta != "fixed":
        torch.testing.assert_close(tools.held(optimizer, params), slow.h, rtol=0, atol=1e-12)
        assert (slow.beta - slow.beta.new_tensor(0.02).log()).abs().max() > 1e-6


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_fixed_equals_torch(base: str) -> None:
    """Also where parameters lack gradients now and then, so that their bias corrections differ."""
    ours, theirs = tools.parameters(), tools.parameters()
    optimizer = tools.make(ours, base, "fixed", alpha0=0.03, weight_decay=0.2)
    peers = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    peer = peers[base](theirs, lr=0.03, weight_decay=0.2)
    for t in range(12):
        for params in (ours, theirs):
            tools.give_grads(params, t, skip=[[], [1], [0, 1, 3], [2]][t % 4])
        optimizer.step()
        peer.step()
    torch.testing.assert_close(tools.flat(ours), tools.flat(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("base", BASE_NAMES)
def test_gamma_0_is_multiplicative_hypergradient_descent(base: str) -> None:
    """log alpha += eta <g_t, -(w_t - w_{t-1})>: only the last step has a say."""
    params = tools.parameters()
    optimizer = tools.make(params, base, "sgd", gamma=0.0, max_change=math.inf)
    beta, before = vec(0.02).log(), tools.flat(params)
    w, m, v = before, torch.zeros_like(before), torch.zeros_like(before)
    for t in range(7):
        tools.give_grads(params, t)
        g = tools.flat([p.grad for p in params])
        optimizer.step()
        change = 0.05 * g @ (before - w)
        u, m, v = base_rule(base, g, m, v, t + 1)
        before, w = w, w - beta.exp() * (u + 0.1 * w)
        beta = beta + change
    torch.testing.assert_close(tools.beta_of(optimizer), beta, rtol=0, atol=1e-12)
    torch.testing.assert_close(tools.flat(params), w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trace", ["hessian-free", "l", "2x2"])
@pytest.mark.parametrize("products", ["joint", "per-block"])
def test_one_block_equals_scalar(trace: str, products: str) -> None:
    """ "group" and "named" with one block, and "per-block" with one column."""
    results = []
    for blocks in ("scalar", "group", {"all": "."}):
        params = tools.parameters()
        optimizer = tools.make(
            tools.named(params), "adamw", "adam", blocks=blocks, trace=trace, products=products
        )
        tools.run(optimizer, params, range(5))
        results.append((tools.flat(params), tools.beta_of(optimizer)))
    for w, beta in results[1:]:
        torch.testing.assert_close(w, results[0][0], rtol=0, atol=0)
        torch.testing.assert_close(beta, results[0][1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "alpha", [0.01, torch.tensor(0.01, dtype=D), torch.linspace(0.001, 0.02, 50, dtype=D)]
)
@pytest.mark.parametrize("base", [*BASE_NAMES, "adamw by operations"])
def test_kernels_equal_the_pure_rules(base: str, alpha: float | Tensor) -> None:
    """Also AdamW by single operations, which accelerators run, and at elements that never had a
    gradient.
    """
    name = base.split()[0]
    rule, g = BASES[name], torch.Generator().manual_seed(0)
    w, h = (torch.randn(50, generator=g, dtype=D) for _ in range(2))
    pure_w, pure_h, pure_state = (
        w.clone(),
        h.clone(),
        {k: torch.zeros(50, dtype=D) for k in rule.state},
    )
    state = {k: x.clone() for k, x in pure_state.items()}
    for step in range(1, 5):
        grad = torch.randn(50, generator=g, dtype=D)
        grad[:3] = 0.0
        n = Numbers(rule.betas, rule.eps, step, 0.1, 0.9)
        u, pure_state = rule.direction(grad, pure_state, n)
        pure_w, pure_h = hessian_free(pure_w, u, pure_h, alpha, 0.1, 0.9)
        out = torch.full((50,), torch.nan, dtype=D)
        if " " in base:
            minus_u = _adamw_by_operations(grad, state, n, out)
        else:
            minus_u = negative_direction(name, grad, state, n, out)
        move(w, h, minus_u, alpha, n)
    torch.testing.assert_close(w, pure_w, rtol=0, atol=1e-12)
    torch.testing.assert_close(h, pure_h, rtol=0, atol=1e-12)
    for key, x in pure_state.items():
        torch.testing.assert_close(state[key], x, rtol=0, atol=1e-12)


def _adamw_by_operations(*args: object) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lo_framework.optim.metaoptimize.hessian_free.HAS_FUSED", False)
        return negative_direction("adamw", *args)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("traced", [True, False], ids=["trace", "no trace"])
@pytest.mark.parametrize("kappa", [0.1, 0.0])
@pytest.mark.parametrize(
    "alpha", [0.01, torch.linspace(0.001, 0.02, 50, dtype=D)], ids=["number", "tensor"]
)
@pytest.mark.parametrize("base", BASE_NAMES)
def test_the_whole_update_equals_the_pure_rule(
    base: str,
    alpha: float | Tensor,
    kappa: float,
    traced: bool,
    fused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`update`, which chooses the path: AdamW's one-pass change of the weights is its own
    arithmetic.
    """
    if not fused:
        monkeypatch.setattr("lo_framework.optim.metaoptimize.hessian_free.HAS_FUSED", False)
    rule, g = BASES[base], torch.Generator().manual_seed(1)
    w, h = (torch.randn(50, generator=g, dtype=D) for _ in range(2))
    pure_w, pure_h, pure_state = (
        w.clone(),
        h.clone(),
        {k: torch.zeros(50, dtype=D) for k in rule.state},
    )
    state = {k: x.clone() for k, x in pure_state.items()} | ({"h": h} if traced else {})
    out, given_alpha = (
        torch.full((50,), torch.nan, dtype=D),
        alpha.clone() if isinstance(alpha, Tensor) else alpha,
    )
    for step in range(1, 5):
        grad = torch.randn(50, generator=g, dtype=D)
        grad[:3] = 0.0
        given = grad.clone()
        n = Numbers(rule.betas, rule.eps, step, kappa, 0.9)
        u, pure_state = rule.direction(grad, pure_state, n)
        pure_w, pure_h = hessian_free(pure_w, u, pure_h, alpha, kappa, 0.9)
        count = torch.tensor(float(step))
        update(base, w, given, state, given_alpha, n, count, out)
        assert torch.equal(given, grad) and float(count) == step
    torch.testing.assert_close(w, pure_w, rtol=0, atol=1e-12)
    for key, x in (pure_state | ({"h": pure_h} if traced else {})).items():
        torch.testing.assert_close(state[key], x, rtol=0, atol=1e-12)
    if isinstance(alpha, Tensor):
        assert torch.equal(given_alpha, alpha)
