"""Optimizers over a fixed grid of step sizes, not tuned: how much does the first guess matter?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from lo_framework.errors import shown
from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.baselines.registry import known_options, with_options
from lo_framework.eval.running.cells import Failure, by_setting, plan_cells
from lo_framework.eval.running.envelope import Envelope, Numbers, require
from lo_framework.eval.running.pool import Plan
from lo_framework.eval.studies.evaluation import SPLITS, Drive, Evaluation
from lo_framework.eval.studies.request import RobustnessRequest
from lo_framework.spec import UserError, parse_spec, split_specs

LOWEST, HIGHEST = 1e-37, 3e38  # what float32 can hold
MOST = 1000  # step sizes, each of which is a run per seed


@dataclass(frozen=True, kw_only=True)
class Line(Numbers):
    """One optimizer on one task, from each of L step sizes and S seeds: metrics ``[L, S]``."""

    optimizer: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A whole sweep; ``lines`` by (task, optimizer), tasks outermost."""

    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    lrs: tuple[float, ...]
    lines: tuple[Line, ...]
    steps: int
    seeds: tuple[int, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def line(self, task: str, optimizer: str) -> Line:
        return next(line for line in self.lines if (line.task, line.optimizer) == (task, optimizer))

    def check(self) -> None:
        """Raise ValueError: a line is missing, or its numbers do not fit seeds and step sizes."""
        wanted = [(task, optimizer) for task in self.tasks for optimizer in self.optimizers]
        require(wanted, ((line.task, line.optimizer) for line in self.lines))
        if not (self.lrs and all(0 < a < b for a, b in zip(self.lrs, (*self.lrs[1:], math.inf)))):
            raise ValueError("lrs: expected increasing step sizes")
        for line in self.lines:
            line.check(line.optimizer, len(self.lrs), len(self.seeds))

    @property
    def failures(self) -> list[Line]:
        return [line for line in self.lines if line.failure]


def step_sizes(text: str, per_decade: int = 2) -> tuple[float, ...]:
    """``"1e-7:1e-2"`` (both ends, ``per_decade`` of them a decade) or ``"1e-4,1e-3"``, increasing.

    Raises:
        UserError: no step sizes, or not positive numbers.
    """
    low, colon, high = text.partition(":")
    words = [low, high] if colon else text.split(",")
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if not values or not all(LOWEST <= x <= HIGHEST for x in values):
        raise UserError(
            f"--lrs {shown(text)}: expected positive step sizes of {LOWEST:g} to {HIGHEST:g}, "
            "as 1e-7:1e-2 or 1e-4,1e-3,1e-2"
        )
    if colon:
        if not values[0] <= values[1]:
            raise UserError(f'--lrs "{text}": the range ends before it begins')
        places = round((math.log10(values[1]) - math.log10(values[0])) * per_decade)
        steps = range(min(places, MOST) + 1)
        values = [float(f"{values[0] * 10 ** (i / per_decade):.3g}") for i in steps]
    else:
        values = sorted(set(values))
    if len(values) > MOST:
        raise UserError(f"--lrs: expected at most {MOST} step sizes")
    return tuple(values)


class RobustnessEvaluation(Evaluation[RobustnessRequest, Sweep]):
    """Every optimizer from every step size on every task, on the reported seeds, paired."""

    def prepare(self) -> None:
        r = self.request
        self.lrs = step_sizes(r.lrs, r.per_decade)
        self.labels = split_specs(r.optimizers)
        for spec in self.labels:
            if "lr" in parse_spec(spec)[1]:
                raise UserError(f'"{spec}" gives lr, which is what is swept: leave it out')
            make_baseline(spec)
            if "lr" not in known_options(spec):
                raise UserError(f'"{spec}" has no lr that could be swept')
            for lr in self.lrs:
                with_options(spec, {"lr": f"{lr:g}"})
        self.add_baselines(self.labels, tuned=False)
        self.work = len(self.labels) * len(self.lrs) * r.seeds * r.steps

    def compute(self, drive: Drive[Line]) -> Sweep:
        lines = drive(self.each(self.labels, self._line))
        return Sweep(
            tasks=self.names,
            optimizers=tuple(self.labels),
            lrs=self.lrs,
            lines=tuple(lines.values()),
            steps=self.request.steps,
            seeds=self.reported,
        )

    def _line(self, task: str, spec: str) -> Plan[Line]:
        line = Line(task=task, optimizer=spec)
        thetas = make_thetas(self.optimizers[spec], [{"lr": lr} for lr in self.lrs])
        cells = plan_cells(task, spec, thetas, self.reported, self.request.steps, SPLITS)
        measured = by_setting((yield cells))
        if isinstance(measured, Failure):
            return replace(line, failure=measured.reason)
        metrics, diverged = measured
        return replace(line, metrics=metrics, diverged=diverged)


FILE = Envelope("robustness", Sweep)
