"""The vmapped inner step: rows are separate runs, ill tasks stand still, loops and vmap agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from lo_framework.episode import Carry, Draw, Losses, Need, Step, tile_theta
from lo_framework.estimators.truncation import Unroller
from lo_framework.flat_task import over_tasks
from lo_framework.inner.step import Family
from lo_framework.learned import LearnedOptimizer
from lo_framework.learned.base import Clock
from lo_framework.objectives import make_objective
from tests.lo_framework.small_tasks import (
    ALL_KINDS,
    INF_LOSS,
    NAN_GRADIENT,
    NAN_LOSS,
    TinyNet,
    carry_row,
    doubled,
    draw_row,
    once,
)


def prepared(
    learned: LearnedOptimizer, dtype: torch.dtype, steps: int
) -> tuple[Family, Carry, list[Draw]]:
    """Three tasks at their start, and the data of ``steps`` steps."""
    family = Family(TinyNet(dtype), learned)
    unroller = Unroller(family, make_objective("valid"), once(2 * steps, steps), 3)
    state = unroller.init(torch.Generator().manual_seed(4))
    return family, state.carry, [unroller.draw(state, i)[0] for i in range(steps)]


def run(
    step: Step, theta: dict[str, Tensor], carry: Carry, draws: list[Draw]
) -> tuple[Carry, list[Losses]]:
    losses = []
    for draw in draws:
        carry, loss = step(theta, carry, draw)
        losses.append(loss)
    return carry, losses


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_rows_are_separate_runs(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    """K tasks at once, each alone through the same step, and each by hand without any vmap."""
    learned = doubled(kind).to(dtype)
    family, carry, draws = prepared(learned, dtype, steps=4)
    step, theta = family.step(Need.HELD), learned.theta()
    end, losses = run(step, tile_theta(theta, 3), carry, draws)
    task, layout = family.task, family.layout
    for k in range(3):
        alone, own = run(
            step, tile_theta(theta, 1), carry_row(carry, k), [draw_row(d, k) for d in draws]
        )
        params, buffers = carry.params[k], {n: x[k] for n, x in carry.buffers.items()}
        state = {n: x[k] for n, x in carry.state.items()}
        for t, draw in enumerate(draws):
            train, noise = tuple(x[k] for x in draw.train), draw.noise[k]

            def loss_of(flat: Tensor, buffers=buffers, train=train, noise=noise):  # type: ignore[no-untyped-def]
                return task.loss(layout.unflatten(flat), buffers, train, noise)

            grads, (loss, buffers) = grad_and_value(loss_of, has_aux=True)(params)
            params, state = functional_call(
                learned,
                theta,
                (layout, params, grads, state, loss, Clock(*(x[k] for x in draw.clock))),
            )
            held, _ = task.loss(
                layout.unflatten(params), buffers, tuple(x[k] for x in draw.held), noise
            )
            for found in (losses[t].train[k], own[t].train[0]):
                torch.testing.assert_close(found, loss, rtol=tolerance, atol=tolerance)
            for found in (losses[t].held[k], own[t].held[0]):
                torch.testing.assert_close(found, held, rtol=tolerance, atol=tolerance)
        for found in (end.params[k], alone.params[0]):
            torch.testing.assert_close(found, params, rtol=tolerance, atol=tolerance)
        for name, x in buffers.items():
            torch.testing.assert_close(end.buffers[name][k], x, rtol=tolerance, atol=tolerance)
        for name, x in state.items():
            torch.testing.assert_close(
                end.state[name][k], x, rtol=10 * tolerance, atol=10 * tolerance
            )


@pytest.mark.parametrize("illness", [NAN_LOSS, INF_LOSS, NAN_GRADIENT])
def test_an_ill_task_stands_still(illness: float) -> None:
    learned = doubled("attention-mlp:width=4,heads=2")
    family, carry, draws = prepared(learned, torch.float64, steps=3)
    step, theta = family.step(Need.HELD), tile_theta(learned.theta(), 3)
    healthy, _ = run(step, theta, carry, draws)
    first, _ = run(step, theta, carry, draws[:1])
    sick = torch.tensor([0.0, illness, 0.0], dtype=torch.float64)
    start = first._replace(buffers={**first.buffers, "sick": sick})
    end, losses = run(step, theta, start, draws[1:])
    assert end.alive.tolist() == [True, False, True]
    for found in losses:
        assert found.train[1] == torch.inf and found.held[1] == torch.inf
        assert (
            torch.isfinite(found.train[[0, 2]]).all() and torch.isfinite(found.held[[0, 2]]).all()
        )
    assert torch.equal(end.params[1], first.params[1]) and torch.equal(
        end.params[[0, 2]], healthy.params[[0, 2]]
    )
    assert all(torch.equal(x[1], first.state[n][1]) for n, x in end.state.items())
    assert end.buffers["bn.count"].tolist() == [3, 1, 3]


def test_dead_stays_dead() -> None:
    family, carry, draws = prepared(doubled("hyper-adamw"), torch.float64, steps=2)
    carry = carry._replace(alive=torch.tensor([True, False, True]))
    end, losses = run(family.step(), tile_theta(family.learned.theta(), 3), carry, draws)
    assert end.alive.tolist() == [True, False, True] and torch.equal(end.params[1], carry.params[1])
    assert losses[0].train[1] == torch.inf and losses[0].held.tolist() == [0.0, torch.inf, 0.0]


def test_every_task_has_its_own_theta() -> None:
    learned = doubled("mlp:hidden=4,step_mult=0.1")
    family, carry, draws = prepared(learned, torch.float64, steps=2)
    step = family.step()
    thetas = [doubled("mlp:hidden=4,step_mult=0.1", seed=s).theta() for s in range(3)]
    together, _ = run(
        step, {n: torch.stack([t[n] for t in thetas]) for n in thetas[0]}, carry, draws
    )
    for k, theta in enumerate(thetas):
        alone, _ = run(
            step, tile_theta(theta, 1), carry_row(carry, k), [draw_row(d, k) for d in draws]
        )
        torch.testing.assert_close(together.params[k], alone.params[0], rtol=1e-13, atol=1e-14)


def test_starts_are_drawn_in_order_and_contiguous() -> None:
    learned = doubled("mlp:features=39,hidden=4")
    family = Family(TinyNet(), learned)
    carry = family.start(torch.Generator().manual_seed(0), 3)
    generator = torch.Generator().manual_seed(0)
    for k in range(3):
        params, buffers = family.task.init(generator)
        assert torch.equal(carry.params[k], family.layout.flatten(params))
        assert torch.equal(carry.buffers["sick"][k], buffers["sick"])
        state = learned.init_state(family.layout, carry.params[k])
        assert all(torch.equal(x[k], state[n]) for n, x in carry.state.items())
    assert carry.alive.all() and all(
        x.is_contiguous() for x in (carry.params, *carry.state.values())
    )


def test_a_task_that_refuses_vmap_is_looped() -> None:
    """The same numbers and derivatives as under vmap."""
    results = []
    for vmappable in (True, False):
        learned = doubled("attention-mlp:width=4,heads=2")
        family, carry, draws = prepared(learned, torch.float64, steps=3)
        family.task.vmappable = vmappable  # type: ignore[attr-defined]
        theta = {n: x.requires_grad_() for n, x in learned.theta().items()}
        step = family.step(Need.HELD, second_order=True, differentiable=True)
        end, losses = run(step, tile_theta(theta, 3), carry, draws)
        total = sum(loss.train.sum() + loss.held.sum() for loss in losses)
        results.append((end, torch.autograd.grad(total, list(theta.values()))))  # type: ignore[arg-type]
    (end, grads), (other, others) = results
    torch.testing.assert_close(end.params, other.params, rtol=1e-12, atol=1e-13)
    assert end.buffers["bn.count"].dtype == other.buffers["bn.count"].dtype and set(
        end.state
    ) == set(other.state)
    for g, h in zip(grads, others):
        torch.testing.assert_close(g, h, rtol=1e-10, atol=1e-12)


def test_over_tasks_takes_nested_arguments() -> None:
    def f(a: dict[str, Tensor], b: tuple[Tensor, tuple[()]]) -> tuple[Tensor, dict[str, Tensor]]:
        return a["x"] + b[0], {"y": a["x"] * b[0]}

    class Stubborn(TinyNet):
        vmappable = False

    a, b = {"x": torch.arange(3.0)}, (torch.ones(3), ())
    for task in (TinyNet(), Stubborn()):
        total, rest = over_tasks(task, f)(a, b)
        assert total.tolist() == [1, 2, 3] and rest["y"].tolist() == [0, 1, 2]
        total, rest = over_tasks(task, f)({"x": a["x"][2:]}, (b[0][:1], ()))  # without vmap
        assert total.tolist() == [3] and rest["y"].tolist() == [2]


def test_one_task_may_draw_as_little_as_many() -> None:
    for num in (1, 2):
        drawing = over_tasks(TinyNet(), lambda x: x + torch.rand_like(x))
        with pytest.raises(RuntimeError, match="random"):
            drawing(torch.ones(num))
