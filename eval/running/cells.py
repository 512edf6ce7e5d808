"""Cells: one task under one optimizer at a few settings and seeds. The unit of work, of parallelism
and of failure.

What a cell holds is decided by the plan alone, never by the number of workers, and every cell is
computed on its own: that is why results do not depend on how many processes share the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from lo_framework.eval.baselines.torch_runs import TorchBaseline, TorchRollout, torch_rollout
from lo_framework.eval.statistics import Array
from lo_framework.inner.rollout import CHUNK, Rollout, rollout
from lo_framework.inner.step import Family
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.optimizees.task import Task


@dataclass(frozen=True, kw_only=True)
class Cell:
    """C thetas of one optimizer on one task, each from S seeds; with ``last``, the mean loss of so
    many last batches is measured too.

    Thetas are arrays: tensors would travel to other processes through shared memory files, of which
    there are few.
    """

    task: str
    optimizer: str
    thetas: tuple[dict[str, Array], ...]
    seeds: tuple[int, ...]
    steps: int
    splits: tuple[str, ...]
    last: int = 0

    @property
    def work(self) -> int:
        """Task-steps."""
        return len(self.thetas) * len(self.seeds) * self.steps

    def compute(
        self, task: Task, optimizer: LearnedOptimizer, on_step: Callable[[int], None]
    ) -> Measured:
        """Run all settings and seeds; ``on_step(n)`` hears of every ``n`` finished task-steps.

        Losses of a diverged run are infinite and its accuracies nan.
        """
        watch = Watch(on_step, task.device)
        family = Family(task, optimizer)
        rest = (self.thetas, self.seeds, self.steps)
        rolled = roll(task, optimizer, *rest, splits=self.splits, on_step=watch)
        if isinstance(rolled, TorchRollout):
            state_floats, extra = rolled.state_numel / family.layout.size, rolled.extra
        else:
            state_floats, extra = _state_floats(family), {}
        metrics = {"mean_loss": rolled.train.double().mean(-1)}
        if self.last:
            metrics["last_loss"] = rolled.train[..., -self.last :].double().mean(-1)
        for name, value in rolled.final.items():
            bad = torch.inf if name.endswith(".loss") else torch.nan
            key = "final_loss" if name == "train.loss" else name.replace(".", "_")
            metrics[key] = torch.where(rolled.alive, value, bad).double()
        diverged = ~rolled.alive | ~torch.isfinite(metrics.get("final_loss", metrics["mean_loss"]))
        return Measured(
            curves=rolled.train.float().cpu().numpy(),
            metrics={name: value.cpu().numpy() for name, value in metrics.items()},
            diverged=diverged.cpu().numpy(),
            seconds_per_step=watch.seconds_per_step(),
            parameters=family.layout.size,
            state_floats=state_floats,
            extra={name: value.double().cpu().numpy() for name, value in extra.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The numbers of a cell: ``metrics[name] [C, S]`` (float64), ``curves [C, S, T]`` of minibatch
    losses (float32).

    ``extra``: per-run counts of a torch optimizer ``[C, S]``, where it has them.
    ``state_floats``: numbers of optimizer state per parameter of the task.
    """

    curves: Array
    metrics: dict[str, Array]
    diverged: Array
    seconds_per_step: float
    parameters: int
    state_floats: float
    extra: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The outcome of a cell of another kind, as JSON values."""

    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that could not be computed, and why in one line."""

    reason: str


def roll(
    task: Task,
    optimizer: LearnedOptimizer,
    thetas: Sequence[dict[str, Array]],
    seeds: Sequence[int],
    steps: int,
    **told: Any,
) -> Rollout | TorchRollout:
    """Run episodes, vmapped or as torch optimizers; ``told``: splits and callbacks of either."""
    where = [
        {name: torch.tensor(x, device=task.device) for name, x in theta.items()} for theta in thetas
    ]
    if isinstance(optimizer, TorchBaseline):
        return torch_rollout(task, optimizer, where, seeds, steps, **told)
    return rollout(task, optimizer, where, seeds, steps, **told)


def arrays_of(theta: Theta) -> dict[str, Array]:
    """``theta`` as a cell has it."""
    return {name: x.detach().cpu().numpy() for name, x in theta.items()}


def plan_cells(
    task: str,
    optimizer: str,
    thetas: Sequence[Theta],
    seeds: Sequence[int],
    steps: int,
    splits: tuple[str, ...],
    last: int = 0,
) -> list[Cell]:
    """Cells of whole settings, as many of them in a cell as fit one vmap, spread evenly."""
    per_cell = max(1, CHUNK // len(seeds))
    cells = -(-len(thetas) // per_cell)
    bounds = [i * len(thetas) // cells for i in range(cells + 1)]
    return [
        Cell(
            task=task,
            optimizer=optimizer,
            thetas=tuple(map(arrays_of, thetas[a:b])),
            seeds=tuple(seeds),
            steps=steps,
            splits=splits,
            last=last,
        )
        for a, b in pairwise(bounds)
    ]


def by_setting(outcomes: Sequence[Any]) -> tuple[dict[str, Array], Array] | Failure:
    """Metrics and counts ``[C, S]`` and where runs diverged ``[C, S]``, of cells that share their C
    settings.
    """
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return outcome
    tables = [outcome.metrics | outcome.extra for outcome in outcomes]
    # One cell may have counts that another lacks, as where all of its runs diverged at once.
    names = dict.fromkeys(name for table in tables for name in table)
    missing = [np.full(outcome.diverged.shape, np.nan) for outcome in outcomes]
    joined = {n: np.concatenate([t.get(n, nan) for t, nan in zip(tables, missing)]) for n in names}
    return joined, np.concatenate([outcome.diverged for outcome in outcomes])


def _state_floats(family: Family) -> float:
    """Count the optimizer's state and that of its explicit regularizer, per parameter."""
    carry = family.start(torch.Generator().manual_seed(0), 1)
    return (
        sum(x.numel() for x in (*carry.state.values(), *carry.memory.values())) / family.layout.size
    )


class Watch:
    """Times steps as they finish. The median interval, so that a pause of a busy machine does not
    count.
    """

    def __init__(self, on_step: Callable[[int], None], device: torch.device) -> None:
        self.on_step, self.device = on_step, device
        self.last = 0.0
        self.intervals: list[float] = []

    def __call__(self, n: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # a launched step is not a finished one
        now = time.perf_counter()
        if self.last:
            self.intervals.append((now - self.last) / n)
        self.last = now
        self.on_step(n)

    def seconds_per_step(self) -> float:
        return float(np.median(self.intervals)) if self.intervals else float("nan")
