"""The public unroll: under every transform of torch.func it is the fast path's meta-gradient."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp, vmap

from lo_framework.absorb.absorption import make_absorption
from lo_framework.episode import Need, tile_theta
from lo_framework.estimators import make_estimator
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.unroll import unroll
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.objectives import make_objective
from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.task import Task
from tests.lo_framework.small_tasks import ALL_KINDS, TinyNet, along, doubled, once

# torch's own: its rules of forward mode are compiled when they are first used
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

STEPS = 3
OBJECTIVES = ["valid:train=0.5,log=0.1", "combined", "train"]


class Double(Task):
    """A task in float64."""

    def __init__(self, task: Task) -> None:
        super().__init__(name=task.name, batch_size=task.batch_size)
        self.task = task
        self.metrics, self.normalize, self.loss = task.metrics, task.normalize, task.loss  # type: ignore[method-assign]

    @staticmethod
    def _wide(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    def init(self, generator: torch.Generator) -> Any:
        return tuple({n: self._wide(x) for n, x in d.items()} for d in self.task.init(generator))

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Any:
        return tuple(self._wide(x) for x in self.task.batch(split, generator, lead))


@cache
def task_of(name: str) -> Task:
    if name == "tiny":
        return TinyNet()
    (task,) = make_tasks(name)
    task.batch_size = 8
    return Double(task)


@cache
def learned_of(kind: str) -> LearnedOptimizer:
    return doubled(kind, spread=0.02)


def fast(
    task: Task, learned: LearnedOptimizer, objective: str, order: bool, num: int = 2
) -> tuple[Theta, float]:
    """Score and meta-gradient of tbptt, from the same start and data."""
    family = Family(task, learned)
    spec = f"tbptt:second_order={order}"
    estimator: Any = make_estimator(spec, family, make_objective(objective), once(STEPS), num)
    generator = torch.Generator().manual_seed(7)
    carry, clock = family.start(generator, num), torch.full((num,), STEPS)
    state = UnrollState(carry, torch.zeros_like(clock), clock, clock, generator, {})
    found, _ = estimator.estimate(learned.theta(), state)
    return found.grad, found.metrics["meta_loss"]


def assert_close(found: Theta, expected: Theta) -> None:
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-6
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g, rtol=1e-8, atol=1e-8 * max(scale, 1), msg=name)


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("name", ["mlp:hidden=8", "cnn:channels=4x4"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_transform_gives_the_fast_paths_meta_gradient(
    kind: str, name: str, order: bool
) -> None:
    task, learned = task_of(name), learned_of(kind)
    theta = learned.theta()

    def score(theta: Theta) -> Tensor:
        return unroll(theta, task, learned, steps=STEPS, seed=7, num_tasks=2, second_order=order)

    expected, level = fast(task, learned, "valid", order)
    found, value = grad_and_value(score)(theta)
    assert float(value) == pytest.approx(level, rel=1e-6)
    assert_close(found, expected)
    value, pull = vjp(score, theta)
    assert_close(pull(torch.ones_like(value))[0], expected)
    g = torch.Generator().manual_seed(3)
    tangent = {n: torch.randn(x.shape, generator=g, dtype=torch.float64) for n, x in theta.items()}
    _, slope = jvp(score, (theta,), (tangent,))
    assert float(slope) == pytest.approx(along(expected, tangent), rel=1e-8, abs=1e-8)
    both = vmap(score)({n: torch.stack([x, x + 0.01 * tangent[n]]) for n, x in theta.items()})
    apart = [score(theta), score({n: x + 0.01 * tangent[n] for n, x in theta.items()})]
    torch.testing.assert_close(both, torch.stack(apart), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("objective", ["train", "valid:train=0.5,log=0.1", "combined"])
def test_every_objective(objective: str, order: bool) -> None:
    """In first-order mode the training loss is told of parameters by a term of its own, and the
    gradient after the step is differentiated.
    """
    task, learned = task_of("tiny"), learned_of("hyper-adamw:lr=0.05")

    def score(theta: Theta) -> Tensor:
        return unroll(
            theta,
            task,
            learned,
            steps=STEPS,
            seed=7,
            num_tasks=2,
            objective=objective,
            second_order=order,
        )

    expected, _ = fast(task, learned, objective, order)
    assert_close(grad(score)(learned.theta()), expected)
    tangent = {n: torch.ones_like(x) for n, x in expected.items()}
    _, slope = jvp(score, (learned.theta(),), (tangent,))
    assert float(slope) == pytest.approx(along(expected, tangent), rel=1e-8)


def test_transforms_in_transforms() -> None:
    """Reverse over reverse, forward over reverse and a batch of gradients are one Hessian's."""
    task, learned = TinyNet(), learned_of("hyper-adamw:lr=0.05")
    theta = learned.theta()
    name = max(theta, key=lambda n: theta[n].numel())

    def slope(x: Tensor) -> Tensor:
        def score(y: Tensor) -> Tensor:
            return unroll({**theta, name: y}, task, learned, steps=2, seed=1)

        return grad(score)(x)

    v = torch.randn(
        theta[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    _, forward = jvp(slope, (theta[name],), (v,))
    backward = grad(lambda x: (slope(x) * v).sum())(theta[name])
    h = 1e-5
    ahead, behind = vmap(slope)(torch.stack([theta[name] + h * v, theta[name] - h * v]))
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((ahead - behind) / (2 * h), backward, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize(
    "spec", [None, "sam:rho=0.3", "gsam:rho=0.1,alpha=0.4,space=params", "attached"]
)
@pytest.mark.parametrize("gradients", [2, 1])
def test_a_step_under_a_transform(spec: str | None, engine: str, gradients: int) -> None:
    """With an absorbed regularizer, explicit ones, and whatever engine: the step itself."""
    task = TinyNet()
    learned = learned_of(f"hyper-adamw:lr=0.05,sam_rho=0.05,sam_gradients={gradients}")
    absorption = spec and make_absorption(
        "sam:rho=0.3" if spec == "attached" else spec, "attached=true" if spec == "attached" else ""
    )
    family = Family(task, learned, engine, absorption or None)
    g = torch.Generator().manual_seed(1)
    carry = family.start(g, 3)
    unroller = make_estimator("tbptt", family, make_objective("valid"), once(STEPS), 3).unroller  # type: ignore[attr-defined]
    draw, _ = unroller.draw(unroller.init(g), 0)
    step = family.step(Need.HELD, second_order=True, differentiable=True)
    theta = learned.theta()

    def score(theta: Theta) -> Tensor:
        end, first = step(tile_theta(theta, 3), carry, draw)
        _, last = step(tile_theta(theta, 3), end, draw)
        return (first.held + last.held + first.penalty + last.penalty + last.train).sum()

    leaves = {n: x.clone().requires_grad_() for n, x in theta.items()}
    plain = torch.autograd.grad(score(leaves), list(leaves.values()), materialize_grads=True)
    assert_close(grad(score)(theta), dict(zip(theta, plain)))
    if spec != "attached":
        assert not torch.isnan(vmap(score)(tile_theta(theta, 2))).any()


def test_an_outer_loop_of_ones_own_learns() -> None:
    """The loop of the module's docstring."""
    (task,), learned = make_tasks("mlp"), make_learned("hyper-adamw")
    outer, losses = torch.optim.Adam(learned.parameters(), lr=0.01), []
    score = grad_and_value(unroll)
    for i in range(15):
        slope, loss = score(learned.theta(), task, learned, steps=20, seed=i, num_tasks=4)
        for name, p in learned.named_parameters():
            p.grad = slope[name]
        outer.step()
        losses.append(float(loss))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
