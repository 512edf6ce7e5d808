"""MetaAdamW's terms and their weighting against the paper's formulas, spelled out with loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.objectives import terms
from lo_framework.objectives.weighting import (
    HUW,
    FixedWeights,
    make_weighting,
    parse_priorities,
)
from lo_framework.spec import UserError

DOUBLE: Any = {"dtype": torch.float64}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


@pytest.mark.parametrize("published", [False, True])
def test_gradient_alignment(published: bool) -> None:
    """(1/G) sum_k [lambda1_k |g2_k|^2 - lambda2_k cos(g1_k, g2_k)], or with 1 - cos."""
    groups = [(drawn(n, seed=n), drawn(n, seed=10 + n)) for n in (3, 1, 5)]
    lambda1, lambda2 = drawn(3, seed=20).sigmoid(), drawn(3, seed=21).sigmoid()
    expected = 0.0
    for k, (g1, g2) in enumerate(groups):
        cos = sum(float(a * b) for a, b in zip(g1, g2)) / (float(g1.norm()) * float(g2.norm()))
        expected += float(lambda1[k]) * sum(float(b) ** 2 for b in g2) - float(lambda2[k]) * cos
        expected += 0.0 if published else float(lambda2[k])
    squares, ones, dots = (
        torch.stack([f(g1, g2) for g1, g2 in groups])
        for f in (lambda a, b: b @ b, lambda a, b: a @ a, lambda a, b: a @ b)
    )
    cosines = terms.cosine(dots, ones, squares)
    found = terms.gradient_alignment(squares, cosines, lambda1, lambda2, published=published)
    assert float(found) == pytest.approx(expected / 3, rel=1e-12)
    batched = terms.gradient_alignment(
        squares.expand(4, 3), cosines.expand(4, 3), 0.5, 0.25, published=published
    )
    same = (torch.full((3,), 0.5), torch.full((3,), 0.25))
    other = terms.gradient_alignment(squares, cosines, *same, published=published)
    torch.testing.assert_close(batched, other.expand(4), check_dtype=False)
    best = terms.gradient_alignment(torch.zeros(2), torch.ones(2), 1.0, 1.0, published=published)
    assert float(best) == (-1.0 if published else 0.0)


def test_a_vector_of_zeros_has_no_direction_and_no_derivative() -> None:
    for zero in (0, 1):
        vectors = [drawn(4, seed=s) for s in (1, 2)]
        vectors[zero] = torch.zeros(4, **DOUBLE)
        a, b = (x.requires_grad_() for x in vectors)
        found = terms.cosine(a @ b, a @ a, b @ b)
        slopes = torch.autograd.grad(found, (a, b))
        assert float(found.detach()) == 0 and not any(bool(g.any()) for g in slopes)
    tiny = torch.full((4,), 1e-9)
    assert float(terms.cosine(tiny @ tiny, tiny @ tiny, tiny @ tiny)) == pytest.approx(1.0)


def test_loss_decrease() -> None:
    after, before = (
        torch.tensor([0.5, 2.0], **DOUBLE).requires_grad_(),
        torch.tensor([1.0, 4.0], **DOUBLE),
    )
    ratio, difference = (
        terms.loss_decrease(after, before),
        terms.loss_decrease(after, before, published=True),
    )
    assert ratio.tolist() == [0.5, 0.5] and difference.tolist() == [-0.5, -2.0]
    assert torch.autograd.grad(ratio.sum(), after)[0].tolist() == [1.0, 0.25]
    moving = before.clone().requires_grad_()
    assert not terms.loss_decrease(moving, moving).detach().sub(1).any()
    assert torch.autograd.grad(terms.loss_decrease(moving, moving).sum(), moving)[0].tolist() == [
        1.0,
        0.25,
    ]
    zero = torch.zeros(1)
    assert (
        torch.isfinite(terms.loss_decrease(torch.ones(1), zero))
        and float(terms.loss_decrease(zero, zero)) == 0
    )
    negative = terms.loss_decrease(torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -2.0]))
    assert negative[0] < -1 < negative[1], "a lower loss is better whatever its sign"


def test_generalization_gap() -> None:
    train = torch.tensor([1.0, 2.0, 3.0], **DOUBLE).requires_grad_()
    valid = torch.tensor([2.0, 2.0, 2.0], **DOUBLE).requires_grad_()
    gap = terms.generalization_gap(train, valid)
    assert gap.tolist() == [1, 0, 1]
    assert torch.autograd.grad(gap.sum(), train, retain_graph=True)[0].tolist() == [-1, 0, 1]
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(gap.sum(), valid)


def test_huw_is_the_papers_formula_and_its_slope_is_autograds() -> None:
    """sum_i [1/2 exp(-s_i) L_i + 1/2 p_i s_i], s_i = log sigma_i^2."""
    values, priorities = (
        torch.tensor([0.3, -0.2, 4.0], **DOUBLE),
        torch.tensor([2.0, 5.0, 1.0], **DOUBLE),
    )
    s = drawn(3, seed=3).requires_grad_()
    expected = 0.0
    for i in range(3):
        sigma2 = math.exp(float(s[i].detach()))
        expected += 0.5 * float(values[i]) / sigma2 + 0.5 * float(priorities[i]) * math.log(sigma2)
    total = 0.5 * (torch.exp(-s) * values + priorities * s).sum()
    assert float(total.detach()) == pytest.approx(expected, rel=1e-12)
    (slope,) = torch.autograd.grad(total, s)
    huw = HUW(priorities.tolist(), bound=None)
    huw.s = s.detach().clone()
    torch.testing.assert_close(huw.slope(values), slope)
    leaf = values.clone().requires_grad_()
    assert float(huw.total(leaf).detach()) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.grad(huw.total(leaf), leaf)[0].tolist() == pytest.approx(huw.weights())
    assert huw.weights() == pytest.approx([0.5 * math.exp(-float(x)) for x in s.detach()])
    huw.learn(values, 0.1)
    torch.testing.assert_close(huw.s, s.detach() - 0.1 * slope)


def test_at_rest_each_term_counts_by_its_priority() -> None:
    """exp(-s_i) = p_i / L_i: whatever the size of a term, it contributes p_i / 2."""
    values, huw = torch.tensor([0.4, 1.0, 7.0]), HUW((2.0, 5.0, 1.0), lr=0.5)
    assert huw.weights() == (0.5, 0.5, 0.5), "the start"
    for _ in range(300):
        huw.learn(values)
    assert [2 * w for w in huw.weights()] == pytest.approx([2 / 0.4, 5 / 1.0, 1 / 7.0], rel=1e-6)
    assert not huw.slope(values).abs().gt(1e-6).any()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_bounds(value: float) -> None:
    """A term at or below zero: as published its s falls without end; within bounds it stops."""
    published, bounded = HUW(bound=None, lr=0.2), HUW(bound=2.0, lr=0.2)
    values, halves = torch.tensor([value, 1.0, 1.0]), []
    for n in range(400):
        bounded.learn(values)
        if n < 25:  # soon it overflows
            published.learn(values)
            halves.append(float(published.s[0]))
    assert halves == sorted(halves, reverse=True) and halves[-1] < -2.0
    assert bounded.s.tolist() == pytest.approx([-2.0, 0.0, 0.0], abs=1e-9)
    for _ in range(400):
        bounded.learn(torch.tensor([1e6, 1.0, 1.0]))
    assert bounded.s[0] == 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_moves_nothing(value: float) -> None:
    for bound in (None, 3.0):
        huw = HUW(bound=bound)
        huw.learn(torch.tensor([value, 0.5, 0.5]))
        moved = [bool(x) for x in huw.s]
        assert moved == [
            bound is not None and value == -math.inf,
            True,
            True,
        ]  # which counts as 0 there


def test_dump_and_load() -> None:
    huw, other = HUW((2, 5, 1)), HUW((2, 5, 1))
    huw.learn(torch.tensor([0.1, 0.2, 0.3]))
    saved = huw.dump()
    other.load(saved)
    huw.learn(torch.tensor([1.0, 1.0, 1.0]))
    assert not torch.equal(saved["s"], huw.s), "a dump is a copy"
    other.learn(torch.tensor([1.0, 1.0, 1.0]))
    assert torch.equal(huw.s, other.s) and other.weights() == huw.weights()
    with pytest.raises(ValueError, match="shape"):
        other.load({"s": torch.zeros(2)})
    fixed = FixedWeights((1.0, 0.3, 0.3))
    fixed.learn(torch.ones(3))
    fixed.load(fixed.dump())
    assert fixed.dump() == {} and fixed.weights() == (1.0, 0.3, 0.3)
    assert float(fixed.total(torch.tensor([1.0, 2.0, 3.0]))) == pytest.approx(2.5)


def test_specs() -> None:
    assert make_weighting("sum").weights() == (1.0, 1.0, 1.0)
    assert make_weighting("fixed:weights=1x0.3x0.3").weights() == (1.0, 0.3, 0.3)
    huw = make_weighting("huw:lr=0.5,bound=none", parse_priorities("2,5, 1"))
    assert (
        isinstance(huw, HUW)
        and huw.bound is None
        and huw.lr == 0.5
        and huw.priorities.tolist() == [2, 5, 1]
    )


@pytest.mark.parametrize(
    ("spec", "priorities", "expected"),
    [
        ("hwu", None, '"huw"'),
        ("fixed:weights=1x2", None, "3 numbers"),
        ("fixed:weights=1x2x-3", None, "negative"),
        ("fixed:weights=0x0x0", None, "all 0"),
        ("fixed:weihgts=1x1x1", None, '"weights"'),
        ("sum:lr=1", None, "lr"),
        ("huw:lr=0", None, "lr"),
        ("huw:bound=0", None, "bound"),
        ("huw:bound=nan", None, "nan"),
        ("sum", (1.0, 1.0, 1.0), "huw"),
        ("huw", (1.0, 2.0), "3 priorities"),
        ("huw", (1.0, 2.0, 0.0), "positive"),
        ("huw", (1.0, -2.0, 1.0), "positive"),
        ("huw", (1.0, math.inf, 1.0), "finite"),
    ],
)
def test_bad_specs(spec: str, priorities: tuple[float, ...] | None, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make_weighting(spec, priorities)


@pytest.mark.parametrize(
    "text", ["2,5", "2,5,x", "", "2,5,1,1", "2,5,0", "2;5;1", "2,,1", "nan,1,1"]
)
def test_bad_priorities(text: str) -> None:
    with pytest.raises(UserError, match="priorities"):
        parse_priorities(text)
