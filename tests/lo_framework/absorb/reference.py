"""Reference of test_absorption: an unroll with an absorbed regularizer, task by task in autograd.

The plain unroll gives ``params_t`` as functions of theta. The reference takes R from the formulas
(SAM, GAM) at every ``params_t``, and of `lo_framework.absorb.absorption` only its configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.absorb.absorption import make_absorption
from lo_framework.episode import Carry, Draw, tile_theta
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.estimators.state import UnrollState
from lo_framework.inner.step import Family
from lo_framework.learned.base import Theta
from lo_framework.objectives import make_objective
from tests.lo_framework.small_tasks import (
    TinyNet,
    copied,
    doubled,
    in_step,
    once,
)

TASK, LENGTH, NUM = TinyNet(), 4, 2

LEARNED = doubled("hyper-adamw:lr=0.05")


class Moment(NamedTuple):
    """One inner step of the reference: everything has the K tasks in front and is a function of
    theta.
    """

    before: Carry
    after: Carry
    draw: Draw
    live: Tensor
    score: Tensor
    t: Tensor
    horizon: Tensor


def estimator_of(
    regularizer: str,
    options: str = "",
    spec: str = "tbptt",
    objective: str = "valid",
    num: int = NUM,
    engine: str = "eager",
    task: Any = TASK,
    learned: Any = LEARNED,
    truncation: Truncation | None = None,
) -> Any:
    absorption = make_absorption(regularizer, options)
    family = Family(task, learned, engine, absorption)
    return make_estimator(
        spec, family, make_objective(objective), truncation or once(2 * LENGTH, LENGTH), num
    )


def begun(estimator: Any) -> UnrollState:
    """One truncation into the episodes, so that there is something to carry."""
    state = in_step(estimator.init_state(LEARNED.theta(), torch.Generator().manual_seed(1)))
    return estimator.estimate(LEARNED.theta(), state)[1]


def trajectory(estimator: Any, theta: Theta, state: UnrollState) -> list[Moment]:
    """The plain unroll from ``state`` with its graph."""
    state, unroller = copied(state), estimator.unroller
    state, _ = unroller.restart_finished(state)
    plain = Family(unroller.task, LEARNED).step(
        unroller.objective.needs, second_order=True, differentiable=True
    )
    carry, moments = state.carry, []
    for i in range(unroller.truncation.unroll_length):
        draw, live = unroller.draw(state, i)
        after, losses = plain(
            tile_theta(theta, unroller.num), carry._replace(memory={}), draw._replace(weight=())
        )
        score = unroller.objective.score(unroller.task, losses)
        moments.append(Moment(carry, after, draw, live, score, state.t + i, state.horizon))
        carry = after
    return moments


def loss_at(moment: Moment, k: int, independent: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Task k's point and its loss there as a function of the flat parameters."""
    layout = Family(TASK, LEARNED).layout
    carry = moment.after if independent else moment.before
    batch = tuple(x[k] for x in (moment.draw.held if independent else moment.draw.train))
    buffers = {name: x[k] for name, x in carry.buffers.items()}
    point = carry.params[k]
    return point, lambda p: TASK.loss(layout.unflatten(p), buffers, batch, moment.draw.noise[k])[0]


def sam(f: Callable[[Tensor], Tensor], p: Tensor, rho: float, attached: bool = False) -> Tensor:
    q = p if p.requires_grad else p.detach().requires_grad_()
    (g,) = torch.autograd.grad(f(q), q, create_graph=attached)
    return f(p + rho * (g if attached else g.detach()) / g.norm())


def gam(f: Callable[[Tensor], Tensor], p: Tensor, rho: float, alpha: float) -> Tensor:
    q = p.detach().requires_grad_()
    (g,) = torch.autograd.grad(f(q), q, create_graph=True)
    (curve,) = torch.autograd.grad(g.norm(), q)
    there = p + rho * curve.detach() / curve.norm()
    if not there.requires_grad:
        there = there.detach().requires_grad_()
    (g_there,) = torch.autograd.grad(f(there), there, create_graph=True)
    return f(p) + alpha * rho * g_there.norm()


def weight(moment: Moment, when: str) -> Tensor:
    t, horizon = moment.t, moment.horizon
    return {
        "every": torch.ones(len(t)),
        "late": (t + 1) / horizon,
        "last:2": t >= horizon - 2,
        "end": t == horizon - 1,
    }[when].to(torch.float32)


def reference(
    estimator: Any,
    state: UnrollState,
    value: Callable[..., Tensor],
    when: str = "every",
    strength: float = 1.0,
) -> Theta:
    theta = {name: x.clone().requires_grad_() for name, x in LEARNED.theta().items()}
    absorption = estimator.unroller.family.absorption
    total = torch.zeros((), dtype=torch.float64)
    for moment in trajectory(estimator, theta, state):
        for k in range(NUM):
            p, f = loss_at(moment, k, absorption.independent)
            loss = f(p)
            risen = loss + strength * (value(f, p) - loss)
            penalty = TASK.normalize(risen) - TASK.normalize(loss)
            total = total + moment.live[k] * (moment.score[k] + weight(moment, when)[k] * penalty)
    grads = torch.autograd.grad(
        total / (NUM * LENGTH), list(theta.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(theta, grads))


def assert_equal(found: Theta, expected: Theta, tolerance: float = 1e-10) -> None:
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=tolerance, atol=tolerance, msg=name)
    assert max(float(x.abs().max()) for x in expected.values()) > 1e-4
