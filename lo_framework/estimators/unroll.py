"""The score of fresh episodes' first steps as a pure function: `unroll`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from lo_framework.episode import tile_theta
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.truncation import Truncation, Unroller
from lo_framework.inner.step import Family
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.objectives import make_objective
from lo_framework.optimizees.task import Task


def unroll(
    theta: Theta,
    task: Task,
    learned: LearnedOptimizer,
    *,
    steps: int,
    seed: int = 0,
    num_tasks: int = 1,
    horizon: int | None = None,
    objective: str = "valid",
    second_order: bool = True,
) -> Tensor:
    """The mean score (0-d) of ``num_tasks`` fresh episodes' first ``steps`` steps under ``theta``.

    ``seed`` fixes initial parameters and all data. ``horizon`` is the length to which the episode's
    progress refers (default ``steps``). ``second_order=False`` treats the inner gradients as
    constants.

    It is pure, for an outer loop of one's own::

        import torch
        import lo_framework as lo

        (task,) = lo.make_tasks("mlp")
        learned = lo.make_learned("hyper-adamw")
        outer = torch.optim.Adam(learned.parameters(), lr=0.01)
        score = torch.func.grad_and_value(lo.unroll)
        for i in range(20):
            slope, loss = score(learned.theta(), task, learned, steps=20, seed=i, num_tasks=4)
            for name, p in learned.named_parameters():
                p.grad = slope[name]
            outer.step()

    ``torch.func.grad``, ``vjp``, ``jvp`` and ``vmap`` take it, one inside another too. The
    estimators are faster: they go through plain autograd, and ``engine="graph"`` does not repeat
    Python's work.
    """
    horizon = horizon or steps
    truncation = Truncation(unroll_length=steps, episode=(horizon, horizon))
    generator = torch.Generator().manual_seed(seed)
    with temporarily_clear_interpreter_stack():  # inside a vmap, nothing random is drawn
        family = Family(task, learned)
        unroller = Unroller(family, make_objective(objective), truncation, num_tasks)
        carry = family.start(generator, num_tasks)
    needs = unroller.objective.needs
    step = family.step(needs, second_order=second_order, differentiable=True)
    clock = torch.full((num_tasks,), horizon)
    state = UnrollState(carry, torch.zeros_like(clock), clock, clock, generator, {})
    _, sums = unroller.run(step, tile_theta(theta, num_tasks), carry, state, range(steps))
    return sums.score.mean() / steps
