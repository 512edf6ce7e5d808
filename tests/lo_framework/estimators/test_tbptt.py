"""TBPTT's meta-gradients against finite differences, segments against none, and what it does with
ill tasks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from lo_framework.episode import Losses, tile_theta
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.tbptt import TBPTT, combine
from lo_framework.inner.step import Family
from lo_framework.learned.base import Clock, Theta
from lo_framework.objectives import Objective, make_objective
from lo_framework.optimizees.task import Batch, Buffers
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import (
    ALL_KINDS,
    INF_LOSS,
    NAN_CURVATURE,
    NAN_GRADIENT,
    NAN_LOSS,
    PlainSGD,
    PlainSGDConfig,
    Quadratic,
    TinyNet,
    along,
    carry_row,
    copied,
    directions,
    doubled,
    draw_row,
    in_step,
    once,
    slope,
    with_buffer,
)

SMALL = {
    "attention": "width=4,heads=2",
    "attention-mlp": "width=4,heads=2,hidden=3,context=2",
    "mlp": "hidden=3",
}
SMALL |= {"mlp:features=39": "hidden=3", "lstm": "hidden=3", "hyper-adamw": "lr=0.02"}
SMALL["celo2"] = "hidden=4"
SMALL["scaled:controller=attention"] = "width=4,heads=2"


def small(kind: str, **values: Any) -> Any:
    return doubled(f"{kind}{',' if ':' in kind else ':'}{SMALL[kind]}", **values)


def begun(
    spec: str, learned: Any, objective: str, task: Any = None, num: int = 2, length: int = 4
) -> tuple[TBPTT, Theta, UnrollState]:
    """An estimator and a state one truncation into its episodes, which end inside the next one for
    the last task.
    """
    family = Family(task or TinyNet(), learned)
    estimator = make_estimator(
        spec, family, make_objective(objective), once(3 * length, length), num
    )
    state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(1)))
    _, state = estimator.estimate(learned.theta(), state)
    stop = state.stop.clone()
    stop[-1] = state.t[-1] + length - 1
    return estimator, learned.theta(), replace(state, stop=stop)


def score(estimator: TBPTT, theta: Theta, state: UnrollState) -> Tensor:
    """The mean over tasks and steps of the masked score: the meta-gradient is its gradient."""
    state, unroller = copied(state), estimator.unroller
    length = unroller.truncation.unroll_length
    _, sums = unroller.run(
        estimator.step, tile_theta(theta, unroller.num), state.carry, state, range(length)
    )
    return sums.score.mean() / length


def assert_slopes(grad: Theta, f: Any, theta: Theta, each: bool = True) -> None:
    """``f`` along a direction within every tensor, or (not ``each``) along one through all of them
    only.
    """
    for name, direction in directions(theta)[0 if each else -1 :]:
        expected = slope(f, theta, direction, h=2e-6)
        assert along(grad, direction) == pytest.approx(expected, rel=2e-5, abs=2e-9), name


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_second_order_gradient_is_the_slope_of_the_score(kind: str) -> None:
    estimator, theta, state = begun("tbptt", small(kind), "valid:train=0.3,log=0.1")
    found, _ = estimator.estimate(theta, copied(state))
    assert_slopes(found.grad, lambda th: score(estimator, th, state), theta)
    assert found.metrics["nonfinite"] == 0


@pytest.mark.parametrize("objective", ["valid", "train"])
@pytest.mark.parametrize("spec", ["tbptt:segments=3", "tbptt:segments=0"])
def test_second_order_gradient_in_segments(spec: str, objective: str) -> None:
    estimator, theta, state = begun(spec, small("attention-mlp"), objective)
    found, _ = estimator.estimate(theta, copied(state))
    assert_slopes(found.grad, lambda th: score(estimator, th, state), theta, each=False)


def test_second_order_reaches_through_the_loss_that_a_rule_reads() -> None:
    learned = PlainSGD(PlainSGDConfig(lr=0.3), reads_loss=True)
    estimator, theta, state = begun("tbptt", learned, "valid")
    found, _ = estimator.estimate(theta, copied(state))
    assert_slopes(found.grad, lambda th: score(estimator, th, state), theta)


class Frozen:
    """First order, spelled out: inner gradients (and losses as inputs) are constants, recorded
    along the run at theta.

    The training loss of a step is its tangent plane there. One task at a time, no vmap over tasks.
    """

    def __init__(
        self, estimator: TBPTT, objective: Objective, theta: Theta, state: UnrollState
    ) -> None:
        self.unroller, self.objective = estimator.unroller, objective
        self.state = state
        held = copied(state)
        self.draws = [
            self.unroller.draw(held, i) for i in range(self.unroller.truncation.unroll_length)
        ]
        self.records: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self(theta)

    def __call__(self, theta: Theta) -> Tensor:
        total = torch.stack([self.task(theta, k) for k in range(self.unroller.num)])
        return total.mean() / len(self.draws)

    def task(self, theta: Theta, k: int) -> Tensor:
        family = self.unroller.family
        task, layout = family.task, family.layout
        carry = self.state.carry
        params, buffers = carry.params[k], {n: x[k] for n, x in carry.buffers.items()}
        inner = {n: x[k] for n, x in carry.state.items()}
        total = torch.zeros((), dtype=torch.float64)
        for t, (draw, live) in enumerate(self.draws):
            train, noise = tuple(x[k] for x in draw.train), draw.noise[k]
            if (k, t) not in self.records:

                def loss_of(
                    flat: Tensor, train: Batch = train, noise: Tensor = noise
                ) -> tuple[Tensor, Buffers]:
                    return task.loss(layout.unflatten(flat), buffers, train, noise)

                grads, (loss, _) = grad_and_value(loss_of, has_aux=True)(params)
                self.records[k, t] = (params, grads, loss)
            at, grads, loss = self.records[k, t]
            tangent = loss + (grads * (params - at)).sum()
            params, inner = functional_call(
                family.learned,
                theta,
                (layout, params, grads, inner, loss, Clock(*(x[k] for x in draw.clock))),
            )
            held, _ = task.loss(
                layout.unflatten(params), buffers, tuple(x[k] for x in draw.held), noise
            )
            total = (
                total
                + self.objective.score(task, Losses(tangent[None], held[None], torch.zeros(1)))[0]
                * live[k]
            )
        return total


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_first_order_gradient_is_the_slope_with_frozen_inner_gradients(
    kind: str, segments: int
) -> None:
    spec, objective = f"tbptt:second_order=false,segments={segments}", "valid:train=0.4,log=0.1"
    estimator, theta, state = begun(spec, small(kind), objective)
    found, _ = estimator.estimate(theta, copied(state))
    frozen = Frozen(estimator, make_objective(objective), theta, state)
    assert float(frozen(theta)) == pytest.approx(float(score(estimator, theta, state)), rel=1e-12)
    assert_slopes(found.grad, frozen, theta, each=segments == 1)


@pytest.mark.parametrize("order", ["true", "false"])
def test_segments_change_nothing(order: str) -> None:
    learned = small("attention-mlp")
    results = []
    for segments in (1, 3, 99, 0):
        spec = f"tbptt:second_order={order},segments={segments}"
        family = Family(TinyNet(), learned)
        estimator = make_estimator(spec, family, make_objective("valid:train=0.3"), once(20, 5), 2)
        state = estimator.init_state(learned.theta(), torch.Generator().manual_seed(2))
        for _ in range(2):
            found, state = estimator.estimate(learned.theta(), state)
        results.append((found, state))
    (first, end), others = results[0], results[1:]
    for found, state in others:
        for name, g in first.grad.items():
            torch.testing.assert_close(found.grad[name], g, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(state.carry.params, end.carry.params, rtol=1e-12, atol=1e-12)
        assert torch.equal(state.generator.get_state(), end.generator.get_state())
        assert found.metrics == pytest.approx(first.metrics, rel=1e-12)


def test_sqrt_segments() -> None:
    family = Family(TinyNet(), small("hyper-adamw"))
    estimator = make_estimator("tbptt:segments=0", family, make_objective("valid"), once(20, 16), 1)
    assert estimator.segments == [range(0, 4), range(4, 8), range(8, 12), range(12, 16)]


def test_first_order_differs_where_curvature_matters() -> None:
    learned = PlainSGD(PlainSGDConfig(lr=0.1))
    grads = []
    for order in ("true", "false"):
        family = Family(Quadratic(), learned)
        estimator = make_estimator(
            f"tbptt:second_order={order}", family, make_objective("valid"), once(5), 1
        )
        state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
        grads.append(float(estimator.estimate(learned.theta(), state)[0].grad["log_lr"]))
    lr, c = 0.1, torch.tensor([1.0, 6.0], dtype=torch.float64)
    # p_t = (1 - lr c)^t; d p_t / d log lr with the curvature (exact) and with frozen gradients
    steps = torch.arange(1, 6, dtype=torch.float64)[:, None]
    p = (1 - lr * c) ** steps
    exact = -lr * c * steps * (1 - lr * c) ** (steps - 1)
    frozen = -lr * c * torch.cumsum((1 - lr * c) ** (steps - 1), 0)
    assert grads == pytest.approx(
        [float((c * p * d).sum() / 5) for d in (exact, frozen)], rel=1e-12
    )


def rows_apart(estimator: Any, theta: Theta, state: UnrollState) -> list[Any]:
    """Each task of ``state`` estimated alone, from the data that it has in the shard."""
    unroller, length = estimator.unroller, estimator.unroller.truncation.unroll_length
    held = copied(state)
    draws = [unroller.draw(held, i) for i in range(length)]
    results = []
    for k in range(unroller.num):
        alone = TBPTT(estimator.config, replace(unroller, num=1))
        rows = [(draw_row(draw, k), live[k : k + 1]) for draw, live in draws]
        alone.unroller.draw = lambda state, i, rows=rows: rows[i]  # type: ignore[method-assign]
        part = {n: getattr(state, n)[k : k + 1].clone() for n in ("t", "horizon", "stop")}
        results.append(
            alone.estimate(theta, replace(copied(state), carry=carry_row(state.carry, k), **part))
        )
    return results


@pytest.mark.parametrize("spec", ["tbptt", "tbptt:second_order=false", "tbptt:segments=2"])
def test_many_tasks_in_one_vmap_are_separate_runs(spec: str) -> None:
    estimator, theta, state = begun(spec, small("attention"), "valid:train=0.5", num=3)
    together, after = estimator.estimate(theta, copied(state))
    apart = rows_apart(estimator, theta, state)
    for name, g in together.grad.items():
        mean = torch.stack([found.grad[name] for found, _ in apart]).mean(0)
        torch.testing.assert_close(g, mean, rtol=1e-11, atol=1e-14)
    params = torch.cat([end.carry.params for _, end in apart])
    torch.testing.assert_close(after.carry.params, params, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "illness, spec",
    [
        (NAN_LOSS, "tbptt"),
        (NAN_LOSS, "tbptt:second_order=false"),
        (INF_LOSS, "tbptt:segments=2"),
        (NAN_GRADIENT, "tbptt"),
        (NAN_GRADIENT, "tbptt:second_order=false"),
        (NAN_GRADIENT, "tbptt:segments=2"),
        (NAN_CURVATURE, "tbptt"),
        (NAN_CURVATURE, "tbptt:segments=2"),
    ],
)
def test_an_ill_task_is_left_out_and_counted(illness: float, spec: str) -> None:
    estimator, theta, state = begun(spec, small("attention"), "valid:train=0.5", num=3)
    ill = with_buffer(state, "sick", torch.tensor([0.0, illness, 0.0]))
    found, after = estimator.estimate(theta, copied(ill))
    apart = rows_apart(estimator, theta, state)
    for name, g in found.grad.items():
        others = (apart[0][0].grad[name] + apart[2][0].grad[name]) / 3
        assert torch.isfinite(g).all()
        torch.testing.assert_close(g, others, rtol=1e-11, atol=1e-14)
    assert found.metrics["nonfinite"] == pytest.approx(1 / 3)
    for k in (0, 2):
        torch.testing.assert_close(
            after.carry.params[k], apart[k][1].carry.params[0], rtol=1e-12, atol=1e-13
        )
    if illness == NAN_CURVATURE:  # nothing is wrong with the task itself
        assert after.carry.alive.all()
        return
    assert after.carry.alive.tolist() == [True, False, True]
    assert torch.isfinite(after.carry.params).all() and after.stop[1] == after.t[1]
    restarted, done = estimator.unroller.restart_finished(after)
    assert done.tolist() == [False, True, True]  # the last one's episode was over anyway
    assert restarted.carry.alive.all() and restarted.carry.buffers["sick"][1] == 0


def test_meta_loss_counts_live_steps_only() -> None:
    learned = PlainSGD(PlainSGDConfig(lr=1e-9))  # the loss stays at 3.5
    estimator = make_estimator(
        "tbptt", Family(Quadratic(), learned), make_objective("valid"), once(5, 4), 3
    )
    state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
    for _ in range(4):
        found, state = estimator.estimate(learned.theta(), state)
        assert found.metrics["meta_loss"] == pytest.approx(3.5, rel=1e-6)
        assert found.metrics["diverged"] == 1


def test_combine() -> None:
    grads = {
        "a": torch.tensor([[3.0, 4.0], [torch.nan, 0.0], [0.3, 0.4]]),
        "b": torch.tensor([0.0, 1.0, 0.0]),
    }
    (mean,), bad, clipped = combine([grads], clip_task=1.0)
    torch.testing.assert_close(mean["a"], torch.tensor([0.6 + 0.3, 0.8 + 0.4]) / 3)
    assert mean["b"] == 0 and bad == pytest.approx(1 / 3) and clipped == pytest.approx(1 / 3)
    (mean,), bad, clipped = combine([grads], alive=torch.tensor([True, True, False]))
    torch.testing.assert_close(mean["a"], torch.tensor([3.3, 4.4]) / 3)
    assert bad == pytest.approx(2 / 3) and clipped == 0
    (mean,), bad, _ = combine([{"a": torch.full((2, 1), torch.inf)}])
    assert mean["a"] == 0 and bad == 1


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_gradients_of_exactly_zero_and_tiny_ones_leave_the_meta_gradient_finite(kind: str) -> None:
    """In float32, where the derivative of a root at zero can overflow: a tensor without gradient,
    and losses near 0.
    """
    learned = small(kind).float()
    task = TinyNet(torch.float32)
    for size in (1.0, 1e-7, 1e-30, 0.0):
        task.loss = lambda *args, size=size: scaled(TinyNet.loss(task, *args), size)  # type: ignore[method-assign]
        for spec in ("tbptt", "tbptt:second_order=false"):
            family = Family(task, learned)
            estimator = make_estimator(spec, family, make_objective("valid:train=0.5"), once(3), 2)
            state = in_step(estimator.init_state(learned.theta(), torch.Generator().manual_seed(0)))
            found, _ = estimator.estimate(learned.theta(), state)
            assert found.metrics["nonfinite"] == 0, (size, spec)


def scaled(result: tuple[Tensor, Any], size: float) -> tuple[Tensor, Any]:
    return result[0] * size, result[1]


@pytest.mark.parametrize(
    "bad", ["tbptt:segments=-1", "tbptt:clip_task=-1", "tbptt:order=2", "tbtt"]
)
def test_bad_specs(bad: str) -> None:
    with pytest.raises(UserError):
        make_estimator(
            bad, Family(TinyNet(), small("hyper-adamw")), make_objective("valid"), Truncation(), 1
        )
