"""A teacher that fades: what it does to a step, to the score and to gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lo_framework.episode import Draw, Need, tile_theta
from lo_framework.eval.baselines import make_baseline
from lo_framework.inner.step import Family
from lo_framework.inner.teacher import fading
from lo_framework.learned import make_learned
from lo_framework.learned.base import Clock
from tests.lo_framework.small_tasks import TinyNet

K = 3


def drawn(task: TinyNet, share: float, seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    batch = task.batch("train", generator, (K,))
    clock = Clock(torch.full((K,), 0.1), torch.full((K,), 50.0))
    taught = (torch.full((K,), share),) if share else ()
    return Draw(batch, batch, torch.zeros(K, dtype=torch.long), clock, taught=taught)


def family(learned: str = "hyper-adamw", engine: str = "eager") -> Family:
    return Family(TinyNet(), make_learned(learned), engine, None, make_baseline("adamw:law=true"))


def alone(name: str, steps: int) -> Tensor:
    rule = make_baseline(name) if name.startswith("adamw") else make_learned(name)
    one = Family(TinyNet(), rule)
    step, carry = one.step(), one.start(torch.Generator().manual_seed(0), K)
    for i in range(steps):
        carry, _ = step(tile_theta(rule.theta(), K), carry, drawn(TinyNet(), 0.0, i))
    return carry.params


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_whole_share_is_the_teacher_and_none_is_the_learner(engine: str) -> None:
    for share, name in ((1.0, "adamw:law=true"), (0.0, "hyper-adamw")):
        both = family(engine=engine)
        step, carry = both.step(), both.start(torch.Generator().manual_seed(0), K)
        for i in range(4):
            carry, losses = step(
                tile_theta(both.learned.theta(), K), carry, drawn(both.task, share, i)
            )
        torch.testing.assert_close(carry.params, alone(name, 4), rtol=1e-5, atol=1e-6)
        assert bool((losses.penalty > 0).all()) == bool(share)


def test_a_step_and_its_price_as_written() -> None:
    share, both = 0.3, family()
    step, start = both.step(), both.start(torch.Generator().manual_seed(0), K)
    theta = tile_theta(both.learned.theta(), K)
    end, losses = step(theta, start, drawn(both.task, share, 0))
    ours = alone("hyper-adamw", 1) - start.params
    theirs = alone("adamw:law=true", 1) - start.params
    for k in range(K):
        a, b = ours[k].double(), theirs[k].double()
        torch.testing.assert_close(
            (end.params[k] - start.params[k]).double(),
            share * b + (1 - share) * a,
            rtol=1e-4,
            atol=1e-6,
        )
        cosine = float(a @ b / (a.norm() * b.norm()))
        apart = 2.0 * math.tanh(math.log(float(a.norm() / b.norm())) / 2.0)
        price = share * (0.7 * (1 - cosine) + 0.3 * apart**2)
        assert float(losses.penalty[k]) == pytest.approx(price, rel=1e-3)


def test_the_learner_learns_from_the_price() -> None:
    both = family()
    step = both.step(Need.HELD, second_order=True, differentiable=True)
    theta = {name: x.requires_grad_() for name, x in both.learned.theta().items()}
    carry = both.start(torch.Generator().manual_seed(0), K)
    total = torch.zeros(())
    for i in range(3):
        carry, losses = step(tile_theta(theta, K), carry, drawn(both.task, 0.5, i))
        total = total + losses.penalty.sum()
    slopes = torch.autograd.grad(total, [*theta.values()], allow_unused=True)
    assert any(g is not None and bool(g.abs().sum() > 0) for g in slopes)
    assert not any(p.requires_grad for p in both.teacher.rule.parameters())


def test_it_fades() -> None:
    assert [fading(done, 0.5) for done in (0.0, 0.05, 0.275, 0.5, 0.9)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.0, 0.0]
    )
    assert fading(0.0, 0.0) == 0.0
