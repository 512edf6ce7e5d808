"""The cells of a sharpness evaluation: one run of one seed, trained and watched, or trained again
and measured.

Every run is alone in its vmap: the bits of a run depend on what runs beside it, and the two cells
of a run must see the same parameters. What a cell gives is plain JSON values, with None for what is
not finite, so that a resumed evaluation and an uninterrupted one hold the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lo_framework.episode import Carry, Draw
from lo_framework.eval.baselines.torch_runs import TorchRollout
from lo_framework.eval.running.cells import Found, roll
from lo_framework.eval.sharpness.measuring import SPLITS, measure_point, work_of
from lo_framework.eval.sharpness.metrics import number, numbers
from lo_framework.eval.sharpness.probe import Watcher
from lo_framework.eval.sharpness.settings import Settings
from lo_framework.eval.statistics import Array
from lo_framework.inner.rollout import Rollout
from lo_framework.inner.step import Family
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.optimizees.task import Task


@dataclass(frozen=True, kw_only=True)
class Run:
    """One optimizer (a theta, as arrays) on one task from one seed."""

    task: str
    optimizer: str
    theta: dict[str, Array]
    seed: int
    settings: Settings

    def roll(
        self,
        task: Task,
        optimizer: LearnedOptimizer,
        on_step: Callable[[int], None],
        on_carry: Callable[[int, Carry, Draw | None], None],
        splits: tuple[str, ...] = (),
    ) -> Rollout | TorchRollout:
        """Run the episode; always the same bits."""
        rest = ([self.theta], [self.seed], self.settings.steps)
        return roll(task, optimizer, *rest, splits=splits, on_step=on_step, on_carry=on_carry)


@dataclass(frozen=True, kw_only=True)
class TrainCell(Run):
    """Train and watch: the full-split training loss, the path length and the probe at the settings'
    steps.
    """

    @property
    def work(self) -> int:
        return self.settings.steps

    def compute(
        self, task: Task, optimizer: LearnedOptimizer, on_step: Callable[[int], None]
    ) -> Found:
        began = time.perf_counter()
        family = Family(task, optimizer)
        watcher = Watcher(task, family.layout, self.settings)
        rolled = self.roll(task, optimizer, on_step, watcher, SPLITS)
        alive = bool(rolled.alive.all())
        final = {
            name.replace(".", "_"): number(x) if alive else None for name, x in rolled.final.items()
        }
        return Found(
            data={
                "final": final,
                "curve": numbers(rolled.train[0, 0].tolist(), 9),
                "diverged": not alive or final["train_loss"] is None,
                "seconds": time.perf_counter() - began,
                "parameters": family.layout.size,
                **watcher.found(),
            }
        )


@dataclass(frozen=True, kw_only=True)
class MeasureCell(Run):
    """Train again and measure the landscape around the parameters after each of the steps ``at``.

    ``pictures``: slices too (they are for one seed only).
    """

    at: tuple[int, ...]
    pictures: bool = False

    @property
    def work(self) -> int:
        return self.settings.steps + len(self.at) * work_of(self.settings, self.pictures)

    def compute(
        self, task: Task, optimizer: LearnedOptimizer, on_step: Callable[[int], None]
    ) -> Found:
        family = Family(task, optimizer)
        kept: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}

        def keep(t: int, carry: Carry, draw: Draw | None) -> None:
            if t in self.at:
                kept[t] = (
                    carry.params[0].clone(),
                    {name: x[0].clone() for name, x in carry.buffers.items()},
                )

        self.roll(task, optimizer, on_step, keep)
        points = {}
        for t, (params, buffers) in kept.items():
            where = (task, family.layout, params, buffers)
            points[str(t)] = measure_point(*where, self.settings, self.pictures, on_step)
        return Found(data={"points": points})
