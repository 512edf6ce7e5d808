"""Objectives about steps: values against an unroll written out task by task, meta-gradients against
its slopes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value

from lo_framework.absorb.absorption import make_absorption
from lo_framework.episode import After, Losses
from lo_framework.estimators import make_estimator
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.truncation import Unroller
from lo_framework.inner.step import Family
from lo_framework.learned.base import Clock, Theta
from lo_framework.objectives import Objective, make_objective
from lo_framework.optimizees.task import Batch, soft_cap
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import (
    NAN_LOSS,
    TinyNet,
    along,
    copied,
    directions,
    doubled,
    in_step,
    once,
    slope,
    with_buffer,
)

TASK, LENGTH, NUM = TinyNet(), 4, 2
NAMES = ["gradient", "loss_decrease", "gen_gap", "combined"]
KINDS = {
    "hyper-adamw": "hyper-adamw:lr=0.05",
    "attention-mlp": "attention-mlp:width=4,heads=2,hidden=3,context=2",
}
WEIGHTS = (0.7, 1.3, 0.4)


def objective_of(spec: str) -> Objective:
    objective = make_objective(spec)
    return Objective(objective.terms, WEIGHTS) if len(objective.terms) == 3 else objective


def begun(
    spec: str, objective: str, kind: str = "hyper-adamw", engine: str = "eager", num: int = NUM
) -> tuple[Any, Theta, UnrollState]:
    """An estimator, theta and a state one truncation into its episodes, of which the last task's
    ends in the next.
    """
    learned = doubled(KINDS[kind])
    family = Family(TASK, learned, engine)
    estimator = make_estimator(spec, family, objective_of(objective), once(3 * LENGTH, LENGTH), num)
    state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(1)))
    _, state = estimator.estimate(learned.theta(), state)
    stop = state.stop.clone()
    stop[-1] = state.t[-1] + LENGTH - 1
    return estimator, learned.theta(), replace(state, stop=stop)


class Reference:
    """The mean score in the paper's notation; what has no gradient is recorded at the first theta
    it is asked about.
    """

    def __init__(
        self, estimator: Any, theta: Theta, state: UnrollState, second_order: bool
    ) -> None:
        self.unroller, self.state, self.second_order = estimator.unroller, state, second_order
        held = copied(state)
        self.draws = [self.unroller.draw(held, i) for i in range(LENGTH)]
        self.records: dict[Any, Tensor] = {}
        self.terms = dict.fromkeys(self.unroller.objective.terms, 0.0)
        self(theta)
        self.measured = {
            name: value / float(sum(w.sum() for _, w in self.draws))
            for name, value in self.terms.items()
        }

    def __call__(self, theta: Theta) -> Tensor:
        return torch.stack([self.task(theta, k) for k in range(self.unroller.num)]).mean() / LENGTH

    def constant(self, value: Tensor, *key: Any) -> Tensor:
        return self.records.setdefault(key, value.detach())

    def task(self, theta: Theta, k: int) -> Tensor:
        family, objective, carry = self.unroller.family, self.unroller.objective, self.state.carry
        params, inner = carry.params[k], {n: x[k] for n, x in carry.state.items()}
        total = torch.zeros((), dtype=torch.float64)
        for t, (draw, live) in enumerate(self.draws):

            def loss(flat: Tensor, batch: Batch, noise: Tensor = draw.noise[k]) -> Tensor:
                buffers = {n: x[k] for n, x in carry.buffers.items()}  # they do not enter the loss
                return TASK.loss(
                    family.layout.unflatten(flat), buffers, tuple(x[k] for x in batch), noise
                )[0]

            g1, seen = grad_and_value(loss)(params, draw.train)
            if not self.second_order:
                g1, seen = self.constant(g1, "g", k, t), self.constant(seen, "loss", k, t)
            new, inner = functional_call(
                family.learned,
                theta,
                (family.layout, params, g1, inner, seen, Clock(*(x[k] for x in draw.clock))),
            )
            found = {}
            if "gradient" in objective.terms:
                found["gradient"] = self.alignment(g1, grad(loss)(new, draw.second))
            if "loss_decrease" in objective.terms:
                before = self.constant(TASK.normalize(loss(params, draw.held)), "before", k, t)
                found["loss_decrease"] = soft_cap(TASK.normalize(loss(new, draw.held)) / before)
            if "gen_gap" in objective.terms:
                valid = self.constant(TASK.normalize(loss(new, draw.held)), "valid", k, t)
                found["gen_gap"] = soft_cap((TASK.normalize(loss(new, draw.second)) - valid).abs())
            for weight, (name, value) in zip(objective.weights, found.items(), strict=True):
                total = total + weight * value * live[k]
                self.terms[name] += float(value * live[k])
            params = new
        return total

    def alignment(self, g1: Tensor, g2: Tensor) -> Tensor:
        parts = []
        for a, b in zip(*(self.unroller.family.layout.unflatten(g).values() for g in (g1, g2))):
            a, b = a.flatten(), b.flatten()
            cos = (
                (a @ b) / (a.norm() * b.norm())
                if bool(b.any())
                else torch.zeros((), dtype=torch.float64)
            )
            parts.append(0.5 * (b @ b) / len(b) + 0.5 * (1 - cos))
        return torch.stack(parts).mean()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ["true", "false"])
def test_the_meta_gradient_is_the_slope_of_the_written_out_score(
    name: str, order: str, kind: str
) -> None:
    """In first-order mode the gradients that the optimizer saw are constants; the gradient after
    the update is not.
    """
    estimator, theta, state = begun(f"tbptt:second_order={order}", name, kind)
    found, _ = estimator.estimate(theta, copied(state))
    reference = Reference(estimator, theta, state, order == "true")
    for term, value in reference.measured.items():
        assert found.metrics[f"term_{term}"] == pytest.approx(value, rel=1e-6), term
    weights = estimator.unroller.objective.weights
    weighted = sum(w * v for w, v in zip(weights, reference.measured.values(), strict=True))
    assert found.metrics["meta_loss"] == pytest.approx(weighted, rel=1e-6)
    each = directions(theta) if kind == "hyper-adamw" else directions(theta)[-1:]
    for tensor, direction in each:
        expected = slope(reference, theta, direction)
        assert along(found.grad, direction) == pytest.approx(expected, rel=2e-5, abs=2e-8), tensor
    assert max(float(g.abs().max()) for g in found.grad.values()) > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spec", ["tbptt", "tbptt:second_order=false,segments=2", "pes", "es"])
def test_recorded_steps_have_the_bits_of_plain_ones(name: str, spec: str) -> None:
    results = []
    for engine in ("eager", "graph"):
        estimator, theta, state = begun(spec, name, engine=engine)
        found, state = estimator.estimate(theta, copied(state))
        results.append((found, state.carry.params))
    (ours, params), (theirs, other) = results
    assert ours.metrics == theirs.metrics and torch.equal(params, other)
    assert all(torch.equal(g, theirs.grad[n]) for n, g in ours.grad.items())


@pytest.mark.parametrize("order", ["true", "false"])
def test_segments_change_nothing(order: str) -> None:
    results = []
    for segments in (1, 2):
        estimator, theta, state = begun(
            f"tbptt:second_order={order},segments={segments}", "combined", "attention-mlp"
        )
        results.append(estimator.estimate(theta, copied(state))[0])
    for name, g in results[0].grad.items():
        torch.testing.assert_close(g, results[1].grad[name], rtol=1e-9, atol=1e-12)
    assert results[0].metrics == pytest.approx(results[1].metrics)


@pytest.mark.parametrize("name", NAMES)
def test_small_perturbations_see_the_same_constants_as_back_propagation(name: str) -> None:
    """A pair's difference is the derivative along its perturbation, without that of the loss before
    the step.
    """
    sigma = 1e-5
    estimator, theta, state = begun(f"es:sigma={sigma}", name)
    found, _ = estimator.estimate(theta, copied(state))
    size = sum(x.numel() for x in theta.values())
    alone = copied(state)
    eps = sigma * torch.randn(NUM, size, generator=alone.generator)
    other, _, _ = begun("tbptt", name)
    carry = alone.carry._replace(
        params=alone.carry.params[:NUM],
        alive=alone.carry.alive[:NUM],
        buffers={n: x[:NUM] for n, x in alone.carry.buffers.items()},
        state={n: x[:NUM] for n, x in alone.carry.state.items()},
    )
    expected = torch.zeros(size, dtype=torch.float64)
    for k in range(NUM):  # the mean over tasks, but only task k's steps count
        stop = torch.where(torch.arange(NUM) == k, state.stop, state.t)
        only = replace(copied(replace(alone, carry=carry)), stop=stop)
        grads = _without_restarts(other, theta, only)
        flat = torch.cat([g.flatten() for g in grads.values()])
        expected += eps[k] * (flat @ eps[k].double()) / sigma**2
    flat = torch.cat([g.flatten() for g in found.grad.values()]).double()
    torch.testing.assert_close(flat, expected, rtol=1e-3, atol=1e-6)


def _without_restarts(estimator: Any, theta: Theta, state: UnrollState) -> Theta:
    """A task whose steps do not count would begin a new episode."""
    estimator.unroller.restart_finished = lambda given: (given, None)
    return estimator.estimate(theta, state)[0].grad


@pytest.mark.parametrize("spec", ["tbptt", "es"])
@pytest.mark.parametrize("name", NAMES)
def test_an_ill_task_scores_worst_and_leaves_the_others_alone(name: str, spec: str) -> None:
    estimator, theta, state = begun(spec, name)
    copies = estimator.unroller.copies
    ill = with_buffer(copied(state), "sick", torch.tensor([0.0, NAN_LOSS] * copies))
    found, after = estimator.estimate(theta, ill)
    healthy, _ = estimator.estimate(theta, copied(state))
    assert found.metrics["nonfinite"] == 0.5 and found.metrics["diverged"] >= 0.5
    assert all(torch.isfinite(g).all() for g in found.grad.values()) and any(
        g.any() for g in found.grad.values()
    )
    for term in estimator.unroller.objective.terms:
        assert found.metrics[f"term_{term}"] > 1.5 + healthy.metrics[f"term_{term}"]
    assert after.carry.alive.tolist() == [True, False] * copies


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, 0.0])
def test_scores_and_their_gradients_are_finite_whatever_is_found(value: float) -> None:
    rows = torch.tensor([value, 0.5], dtype=torch.float64)
    wide = rows[:, None].expand(2, 3).clone()
    leaves = [x.requires_grad_() for x in (rows.clone(), rows.clone(), wide, wide.clone())]
    held, second, squares, cosines = leaves
    losses = Losses(rows, held, torch.zeros(2), After(rows, second, squares, cosines))
    for spec in ("combined", "combined:published=true"):
        for pairs in (False, True):
            score, terms = objective_of(spec).measure(TASK, losses, pairs)
            grads = torch.autograd.grad(score.sum(), leaves)
            assert torch.isfinite(score).all() and all(torch.isfinite(g).all() for g in grads)
            assert list(terms) == ["gradient", "loss_decrease", "gen_gap", "level"]
            assert not any(x.requires_grad for x in terms.values())


def test_published_forms_go_negative() -> None:
    one, half = torch.ones(1), torch.full((1,), 0.35)
    after = After(one * 0.7, half, torch.zeros(1, 2), torch.ones(1, 2))
    losses = Losses(one, half, torch.zeros(1), after)
    published = objective_of("combined:published=true").values(TASK, losses)
    assert [float(x) for x in published.values()] == pytest.approx([-0.5, -0.5, 0.0])
    corrected = objective_of("combined").values(TASK, losses)
    assert [float(x) for x in corrected.values()] == pytest.approx([0.0, 0.5, 0.0])


def test_other_objectives_draw_what_they_always_drew() -> None:
    drawn = {}
    for name in ("valid", "train", *NAMES):
        unroller = Unroller(
            Family(TASK, doubled(KINDS["hyper-adamw"])), make_objective(name), once(LENGTH), NUM
        )
        draw, _ = unroller.draw(unroller.init(torch.Generator().manual_seed(0)), 0)
        drawn[name] = (len(draw.held), len(draw.second))
    assert drawn == {
        "valid": (2, 0),
        "train": (0, 0),
        "gradient": (0, 2),
        "loss_decrease": (2, 0),
        "gen_gap": (2, 2),
        "combined": (2, 2),
    }


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("name", ["gradient", "combined"])
def test_an_absorbed_regularizer_is_added_on_top(name: str, engine: str) -> None:
    learned, found = doubled(KINDS["hyper-adamw"]), []
    for absorption in (None, make_absorption("sam:rho=0.3", "batch=independent")):
        family = Family(TASK, learned, engine, absorption)
        estimator = make_estimator("tbptt", family, objective_of(name), once(LENGTH), NUM)
        if (
            absorption is None and name == "gradient"
        ):  # the regularizer's own batch would change the stream
            continue
        state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(1)))
        found.append(estimator.estimate(learned.theta(), state)[0])
    with_penalty = found[-1].metrics
    terms = sum(
        w * with_penalty[f"term_{n}"]
        for w, n in zip(
            estimator.unroller.objective.weights, estimator.unroller.objective.terms, strict=True
        )
    )
    assert with_penalty["penalty"] > 0
    assert with_penalty["meta_loss"] == pytest.approx(terms + with_penalty["penalty"], rel=1e-6)
    if len(found) == 2:
        assert found[0].metrics["meta_loss"] == pytest.approx(terms, rel=1e-6)
        assert any(not torch.equal(g, found[1].grad[n]) for n, g in found[0].grad.items())


@pytest.mark.parametrize(
    "spec",
    [
        "gradient:flatness=-1",
        "gradient:flatness=0,direction=0",
        "gen_gap:published=true",
        "combined:direciton=1",
        "loss_decrease:flatness=1",
        "combined:train=1",
        "combnied",
    ],
)
def test_bad_specs(spec: str) -> None:
    with pytest.raises(UserError, match="objective"):
        make_objective(spec)
