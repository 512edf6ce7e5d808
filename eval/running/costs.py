"""What a step costs: a short run of its own in a process that has done nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lo_framework.eval.running.cells import Found, Watch, roll
from lo_framework.eval.statistics import Array
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.memory import memory_of
from lo_framework.optimizees.task import Task

STEPS = 50


@dataclass(frozen=True, kw_only=True)
class CostCell:
    """One setting of an optimizer on one task, for the first steps of one seed."""

    task: str
    optimizer: str
    theta: dict[str, Array]
    seed: int
    steps: int = STEPS

    @property
    def work(self) -> int:
        """Task-steps."""
        return self.steps

    def compute(
        self, task: Task, optimizer: LearnedOptimizer, on_step: Callable[[int], None]
    ) -> Found:
        """Median wall time of a step in seconds, and the most bytes that the run took beyond the
        task's data: parameters, gradients, the optimizer's state and what a step computes.
        """

        def run(steps: int, watch: Callable[[int], None]) -> None:
            roll(task, optimizer, [self.theta], [self.seed], steps, splits=(), on_step=watch)

        run(2, lambda n: None)  # libraries are loaded and kernels compiled in the first steps
        watch = Watch(on_step, task.device)
        memory = memory_of(lambda: run(self.steps, watch), task.device)
        found = {"seconds": watch.seconds_per_step(), "bytes": memory.above}
        return Found(data={name: x if math.isfinite(x) else None for name, x in found.items()})


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one step: wall time in seconds, peak memory in bytes; None where it is not known."""

    seconds: float | None
    bytes: float | None
