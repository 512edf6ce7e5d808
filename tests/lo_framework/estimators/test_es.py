"""ES and PES against the exact gradient of the smoothed objective, on a quadratic with one
meta-parameter.

theta is the log step size of SGD. With J truncations in an episode, ``smoothed[j, i]`` is the
derivative of the expected score of truncation j by the theta in force in truncation i, where each
truncation has its own Gaussian perturbation; expectations are Gauss-Hermite sums over all of them.
Then PES estimates ``sum_i smoothed[j, i]`` in truncation j, and ES only ``smoothed[j, j]``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lo_framework.episode import Losses
from lo_framework.estimators import make_estimator
from lo_framework.estimators.perturbed import antithetic_pairs
from lo_framework.inner.step import Family
from lo_framework.objectives import Objective, make_objective
from lo_framework.optimizees.task import Task
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import (
    NAN_LOSS,
    PlainSGD,
    PlainSGDConfig,
    Quadratic,
    TinyNet,
    copied,
    doubled,
    in_step,
    once,
    with_buffer,
)

LR, SIGMA, STEPS, UNROLL = 0.06, 0.15, 5, 2  # truncations of 2, 2 and 1 steps


def smoothed(bounds: list[tuple[int, int]], length: int) -> Tensor:
    """``[J, J]``, see above; truncation j holds the steps ``bounds[j]`` and its score is divided by
    ``length``.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(8)
    count = len(bounds)
    grid = (
        torch.tensor(list(itertools.product(nodes, repeat=count))) * math.sqrt(2) * SIGMA
    )  # [8^J, J]
    weight = torch.tensor(list(itertools.product(weights, repeat=count))).prod(1) / math.pi ** (
        count / 2
    )
    shift = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    lr = (math.log(LR) + shift + grid).exp()
    curvature = Quadratic().curvature
    p, expected = torch.ones(len(grid), len(curvature), dtype=torch.float64), []
    for j, (begin, end) in enumerate(bounds):
        total = torch.zeros((), dtype=torch.float64)
        for _ in range(begin, end):
            p = p - lr[:, j : j + 1] * curvature * p
            total = total + (weight * 0.5 * (curvature * p**2).sum(1)).sum()
        expected.append(torch.autograd.grad(total / length, shift, retain_graph=True)[0])
    return torch.stack(expected)


def measured(
    spec: str, unroll: int, rounds: int, early: bool = False, pairs: int = 600, repeats: int = 16
) -> Tensor:
    """Estimates ``[rounds, repeats]``; ``early``: half of the tasks end their first episode after
    one truncation.
    """
    family = Family(Quadratic(), PlainSGD(PlainSGDConfig(lr=LR)))
    estimator = make_estimator(
        f"{spec}:sigma={SIGMA}", family, make_objective("valid"), once(STEPS, unroll), pairs
    )
    theta = family.learned.theta()
    found = torch.zeros(rounds, repeats, dtype=torch.float64)
    for seed in range(repeats):
        state = in_step(estimator.init_state(theta, torch.Generator().manual_seed(seed)))
        if early:
            stop = state.stop.clone()
            stop[pairs // 2 :] = unroll
            state = replace(state, stop=stop)
        for r in range(rounds):
            estimate, state = estimator.estimate(theta, state)
            found[r, seed] = estimate.grad["log_lr"]
    return found


def errors(samples: Tensor, expected: Tensor | float) -> float:
    """Distance of the mean from ``expected`` in standard errors."""
    return float((samples.mean() - expected).abs() / (samples.std() / math.sqrt(len(samples))))


@pytest.mark.parametrize("spec", ["es", "pes"])
def test_unbiased_on_whole_episodes(spec: str) -> None:
    expected = smoothed([(0, STEPS)], STEPS).sum()
    for samples in measured(spec, STEPS, rounds=2):
        assert errors(samples, expected) < 4
        assert (
            samples.std() / math.sqrt(len(samples)) < 0.03 * expected.abs()
        )  # the test can see a bias


BOUNDS = [(0, 2), (2, 4), (4, 5)]


def test_pes_is_unbiased_on_truncations_and_es_is_not() -> None:
    exact = smoothed(BOUNDS, UNROLL)
    pes = measured("pes", UNROLL, rounds=6)
    es = measured("es", UNROLL, rounds=3)
    for r, samples in enumerate(
        pes
    ):  # the second episode like the first: credit ends where episodes end
        j = r % 3
        assert errors(samples, exact[j].sum()) < 4
        assert j == 0 or errors(samples, exact[j, j]) > 8
    for j, samples in enumerate(es):
        assert errors(samples, exact[j, j]) < 4
    assert errors(pes[:3].sum(0), exact.sum()) < 4
    assert errors(es.sum(0), exact.sum()) > 20
    assert exact.sum() == pytest.approx(
        float(exact.tril().sum())
    )  # no truncation depends on a later theta


def test_pes_credit_of_tasks_that_restart_at_different_times() -> None:
    """Half of the tasks end their first episode after one truncation: the mean mixes rows of the
    exact matrix.
    """
    exact = smoothed(BOUNDS, UNROLL).sum(1)
    for r, samples in enumerate(measured("pes", UNROLL, rounds=4, early=True)):
        early = 0 if r == 0 else (r - 1) % 3
        assert errors(samples, (exact[r % 3] + exact[early]) / 2) < 4


def test_pes_forgets_perturbations_when_an_episode_ends() -> None:
    """Stale ones would keep the estimate unbiased and only add variance, so they are looked for
    directly.
    """
    family = Family(Quadratic(), PlainSGD(PlainSGDConfig(lr=LR)))
    estimator = make_estimator(
        f"pes:sigma={SIGMA}", family, make_objective("valid"), once(STEPS, UNROLL), 2000
    )
    theta = family.learned.theta()
    state = in_step(estimator.init_state(theta, torch.Generator().manual_seed(0)))
    stop = state.stop.clone()
    stop[1000:] = UNROLL
    state = replace(state, stop=stop)
    for ages in ((1, 1), (2, 1), (3, 2), (1, 3), (2, 1)):
        _, state = estimator.estimate(theta, state)
        for half, age in zip(state.extra["xi"].split(1000), ages):
            assert float(half.std()) == pytest.approx(SIGMA * math.sqrt(age), rel=0.08)


def test_pairs_are_antithetic_and_share_data() -> None:
    learned = doubled("mlp:hidden=3")
    estimator = make_estimator(
        "pes:sigma=0.1", Family(TinyNet(), learned), make_objective("valid"), once(6, 3), 4
    )
    theta = learned.theta()
    state = estimator.init_state(theta, torch.Generator().manual_seed(0))
    assert torch.equal(state.carry.params[:4], state.carry.params[4:])
    eps = 0.1 * torch.randn(
        4, sum(x.numel() for x in theta.values()), generator=torch.Generator().manual_seed(1)
    )
    pairs = antithetic_pairs(theta, eps)
    for name, x in pairs.items():
        torch.testing.assert_close(x[:4] + x[4:], (2 * theta[name]).expand(4, *theta[name].shape))
        assert not torch.equal(x[:4], x[4:])
    draw, _ = estimator.unroller.draw(state, 0)
    for x in (*draw.train, *draw.held, draw.noise, *draw.clock):
        assert torch.equal(x[:4], x[4:])


def test_es_goes_on_from_the_positive_member() -> None:
    learned = doubled("mlp:hidden=3,step_mult=0.1")
    for spec, shared in (("es", True), ("pes", False)):
        family = Family(TinyNet(), learned)
        estimator = make_estimator(
            f"{spec}:sigma=0.1", family, make_objective("valid"), once(6, 3), 2
        )
        state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
        _, state = estimator.estimate(learned.theta(), state)
        assert torch.equal(state.carry.params[:2], state.carry.params[2:]) is shared
        assert (
            torch.equal(state.carry.state["momenta"][:2], state.carry.state["momenta"][2:])
            is shared
        )


@pytest.mark.parametrize("spec", ["es", "pes"])
def test_an_ill_task_is_isolated(spec: str) -> None:
    """Both members of its pair score the same, so it adds nothing: the gradient is that of a shard
    where it is flat.
    """
    learned = doubled("hyper-adamw:lr=0.05")
    estimator = make_estimator(
        f"{spec}:sigma=0.05", Family(TinyNet(), learned), make_objective("valid"), once(9, 3), 3
    )
    theta = learned.theta()
    state = in_step(estimator.init_state(theta, torch.Generator().manual_seed(0)))
    ill = with_buffer(copied(state), "sick", torch.tensor([0.0, NAN_LOSS, 0.0] * 2))
    found, after = estimator.estimate(theta, ill)
    assert all(torch.isfinite(g).all() for g in found.grad.values())
    assert found.metrics["nonfinite"] == pytest.approx(1 / 3)
    assert after.carry.alive.tolist() == [True, False, True] * 2 and after.stop[1] == after.t[1]

    class Muted(Objective):
        def measure(
            self, task: Task, losses: Losses, pairs: bool = False
        ) -> tuple[Tensor, dict[str, Tensor]]:
            score, known = super().measure(task, losses, pairs)
            return score * torch.tensor([1.0, 0.0, 1.0] * 2, dtype=torch.float64), known

    estimator.unroller.objective = Muted(estimator.unroller.objective.terms)
    others, _ = estimator.estimate(theta, copied(state))
    for name, g in found.grad.items():
        torch.testing.assert_close(g, others.grad[name], rtol=1e-9, atol=1e-12)
    restarted, done = estimator.unroller.restart_finished(after)
    assert done.tolist() == [False, True, False] and restarted.carry.alive.all()


def test_a_score_that_is_not_finite_costs_its_own_pair_only() -> None:
    """A user's ``normalize`` may let a NaN through."""

    class Careless(TinyNet):
        def normalize(self, loss: Tensor) -> Tensor:
            return loss

    learned = doubled("hyper-adamw:lr=0.05")
    estimator = make_estimator(
        "pes", Family(Careless(), learned), make_objective("valid"), once(4), 3
    )
    state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
    state = with_buffer(state, "sick", torch.tensor([0.0, NAN_LOSS, 0.0] * 2))
    found, _ = estimator.estimate(learned.theta(), state)
    assert all(torch.isfinite(g).all() for g in found.grad.values())
    assert any(g.abs().max() > 0 for g in found.grad.values())


def test_bad_settings() -> None:
    family = Family(Quadratic(), PlainSGD(PlainSGDConfig()))
    for bad in ("pes:sigma=0", "es:sigma=-1", "es:sigma=nan", "pes:sgima=1"):
        with pytest.raises(UserError):
            make_estimator(bad, family, make_objective("valid"), once(4), 1)
    with pytest.raises(UserError, match="at least one task"):
        make_estimator("es", family, make_objective("valid"), once(4), 0)
    with pytest.raises(UserError, match="no meta-parameters"):
        make_estimator("es", family, make_objective("valid"), once(4), 1).init_state(
            {}, torch.Generator()
        )
