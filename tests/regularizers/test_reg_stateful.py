"""LookSAM and friendly SAM over several steps against plain autograd in the papers' notation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lo_framework.absorb.absorption import make_regularizer
from lo_framework.regularizers.looksam import LookSAM, LookSAMConfig
from tests.regularizers.reg_tools import (
    Params,
    Vectors,
    assert_close,
    at,
    grad,
    inner,
    landscape_of,
    length,
    mlp,
    normalized,
    plain_loss,
    plus,
)

START, _ = mlp(5)
BATCHES = [mlp(seed)[1] for seed in range(20, 28)]
LR, RHO = 0.1, 0.2


def descend(spec: str) -> Params:
    """SGD with the regularizer, a batch per step."""
    regularizer, params = make_regularizer(spec), START
    state = regularizer.init_state(params)
    for batch in BATCHES:
        here = at(landscape_of(batch), params)
        made = regularizer.correction(landscape_of(batch), here, state)
        params = {name: x - LR * (here.grad[name] + made.field[name]) for name, x in params.items()}
        state = made.state
    return params


def slow(direction: Callable[[int, Callable[[Vectors], Tensor], Vectors], Vectors]) -> Vectors:
    w = list(START.values())
    for step, batch in enumerate(BATCHES):
        w = plus(w, direction(step, plain_loss(START, batch), w), -LR)
    return w


@pytest.mark.parametrize("k", [1, 3])
def test_looksam(k: int) -> None:
    kept: Vectors = []

    def direction(step: int, loss: Callable[[Vectors], Tensor], w: Vectors) -> Vectors:
        g = grad(loss, w)
        if step % k:
            return plus(g, kept, 0.7 * length(g) / length(kept))
        g_s = grad(loss, plus(w, normalized(g), RHO))
        kept[:] = plus(g_s, normalized(g), -inner(g_s, normalized(g)))
        return g_s

    assert_close(descend(f"looksam:rho={RHO},k={k},alpha=0.7"), dict(zip(START, slow(direction))))


def test_looksam_in_two_parts_is_its_correction() -> None:
    looksam = LookSAM(LookSAMConfig(k=3))
    state = looksam.init_state(START)
    for step, batch in enumerate(BATCHES):
        landscape = landscape_of(batch)
        here = at(landscape, START)
        whole = looksam.correction(landscape, here, state)
        part = (
            looksam.refresh(landscape, here, state)
            if looksam.due(step)
            else looksam.reuse(here, state)
        )
        for a, b in ((whole.field, part.field), (whole.state, part.state)):
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        state = whole.state
    assert state["step"] == len(BATCHES) and [looksam.due(step) for step in range(4)] == [
        True,
        False,
        False,
        True,
    ]


def test_looksam_with_a_period_of_one_is_sam() -> None:
    looksam, sam = descend(f"looksam:rho={RHO},k=1"), descend(f"sam:rho={RHO}")
    assert all(torch.equal(looksam[name], sam[name]) for name in START)


@pytest.mark.parametrize("average", ["new", "old"])
@pytest.mark.parametrize("sigma, lam", [(1.0, 0.9), (0.6, 0.5)])
def test_fsam(average: str, sigma: float, lam: float) -> None:
    m: Vectors = []

    def direction(step: int, loss: Callable[[Vectors], Tensor], w: Vectors) -> Vectors:
        g = grad(loss, w)
        if step == 0:
            m[:] = d = g
        else:
            m_new = plus([lam * x for x in m], g, 1 - lam)
            d = plus(g, m_new if average == "new" else m, -sigma)
            m[:] = m_new
        return grad(loss, plus(w, normalized(d), RHO))

    spec = f"fsam:rho={RHO},sigma={sigma},lam={lam},average={average}"
    assert_close(descend(spec), dict(zip(START, slow(direction))), 1e-10)


def test_fsam_with_the_whole_average_taken_out_has_one_direction() -> None:
    assert_close(descend("fsam:average=new"), descend("fsam:average=old"), 1e-11)
    new, old = descend("fsam:average=new,sigma=0.5"), descend("fsam:average=old,sigma=0.5")
    assert not all(torch.allclose(new[name], old[name], rtol=1e-8) for name in START)


def test_s2sam() -> None:
    before: Vectors = []

    def direction(step: int, loss: Callable[[Vectors], Tensor], w: Vectors) -> Vectors:
        before[:] = grad(loss, plus(w, normalized(before), RHO) if step else w)
        return list(before)

    assert_close(descend(f"s2sam:rho={RHO}"), dict(zip(START, slow(direction))), 1e-10)


def test_the_first_step_of_fsam_is_sam() -> None:
    landscape = landscape_of(BATCHES[0])
    here = at(landscape, START)
    fsam, sam = (make_regularizer(spec) for spec in ("fsam", "sam"))
    made = fsam.correction(landscape, here, fsam.init_state(START))
    expected = sam.correction(landscape, here, {})
    assert all(torch.equal(made.field[name], expected.field[name]) for name in START)
