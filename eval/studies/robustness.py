"""Optimizers over a fixed grid of step sizes, not tuned: how much does the first guess matter?

result = sweep(tasks, ["adamw", "metaoptimize:meta_lr=0.03"], step_sizes("1e-7:1e-2"), steps=1000,
seeds=5)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.baselines.registry import known_options, with_options
from lo_framework.eval.running import protocol
from lo_framework.eval.running.cells import Failure, by_setting, plan_cells
from lo_framework.eval.running.envelope import Envelope
from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.running.pool import Store, Workshop, drive
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.statistics import Array
from lo_framework.eval.studies.result import _array, _plain
from lo_framework.eval.studies.transfer import SPLITS, check, make_recipe
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.protocols import Task
from lo_framework.spec import UserError, parse_spec

FILE = Envelope("robustness", "robustness.json", version=1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One optimizer on one task, from each of L step sizes and S seeds. ``failure``: why there are
    no numbers.

    Attributes:
        metrics: name -> ``[L, S]``; losses of diverged runs are infinite, their accuracies nan.
            Counts too.
        diverged: ``[L, S]`` bool.
    """

    task: str
    optimizer: str
    metrics: dict[str, Array] = field(default_factory=dict)
    diverged: Array = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    failure: str = ""


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
    if not values or not all(0 < x < math.inf for x in values):
        raise UserError(
            f'--lrs "{text}": expected positive step sizes, as 1e-7:1e-2 or 1e-4,1e-3,1e-2'
        )
    if not colon:
        return tuple(sorted(set(values)))
    if per_decade < 1:
        raise UserError(f"--per-decade: expected at least 1, got {per_decade}")
    if not values[0] <= values[1]:
        raise UserError(f'--lrs "{text}": the range ends before it begins')
    places = round((math.log10(values[1]) - math.log10(values[0])) * per_decade)
    return tuple(float(f"{values[0] * 10 ** (i / per_decade):.3g}") for i in range(places + 1))


def check_specs(specs: Sequence[str], lrs: Sequence[float]) -> None:
    """Every optimizer can start from every step size.

    Raises:
        UserError: it cannot (unknown baseline or option, a step size outside of its bounds), or it
            fixes ``lr`` itself.
    """
    for spec in specs:
        if "lr" in parse_spec(spec)[1]:
            raise UserError(f'"{spec}" gives lr, which is what is swept: leave it out')
        make_baseline(spec)
        if "lr" not in known_options(spec):
            raise UserError(f'"{spec}" has no lr that could be swept')
        for lr in lrs:
            with_options(spec, {"lr": f"{lr:g}"})


def sweep(
    tasks: Sequence[Task],
    specs: Sequence[str],
    lrs: Sequence[float],
    *,
    steps: int = 1000,
    seeds: int = 5,
    seed_offset: int = 0,
    workers: int = 1,
    data_dir: str | None = None,
    plugins: Sequence[str] = (),
    command: Sequence[str] = (),
    progress: Progress | None = None,
    store: Store | None = None,
) -> Sweep:
    """Run every optimizer from every step size on every task, on the reported seeds, paired.

    Raises:
        UserError: nothing to do, an optimizer that cannot start at a step size, numbers out of
            range.
    """
    if not lrs:
        raise UserError("an empty grid: expected at least one step size")
    check(tasks, specs, steps, workers)
    check_specs(specs, lrs)
    reported = protocol.report_seeds(seeds, seed_offset)
    made = {spec: make_baseline(spec) for spec in specs}
    plans = {
        f"{task.name} {spec}": _line(task, spec, made[spec], lrs, reported, steps)
        for task in tasks
        for spec in specs
    }
    workshop = Workshop(tasks={task.name: task for task in tasks}, optimizers=dict(made))
    if workers > 1:
        workshop.recipe = make_recipe(tasks, {}, made, data_dir, tuple(plugins))
    if progress is not None:
        progress.begin(len(plans) * len(lrs) * seeds * steps)
    return Sweep(
        tasks=tuple(task.name for task in tasks),
        optimizers=tuple(specs),
        lrs=tuple(lrs),
        lines=tuple(
            drive(plans, workshop, workers=workers, progress=progress, store=store).values()
        ),
        steps=steps,
        seeds=reported,
        provenance=provenance(command),
    )


def _line(
    task: Task,
    spec: str,
    optimizer: LearnedOptimizer,
    lrs: Sequence[float],
    seeds: Sequence[int],
    steps: int,
) -> Plan[Line]:
    thetas = make_thetas(optimizer, [{"lr": lr} for lr in lrs])
    found = by_setting((yield plan_cells(task.name, spec, thetas, seeds, steps, SPLITS)))
    if isinstance(found, Failure):
        return Line(task=task.name, optimizer=spec, failure=found.reason)
    metrics, diverged = found
    return Line(task=task.name, optimizer=spec, metrics=metrics, diverged=diverged)


def to_json(result: Sweep) -> str:
    """Strict JSON: what is not finite is null."""
    return FILE.write(_plain(asdict(result)), None)


def from_json(text: str, source: str = "the file") -> Sweep:
    """The sweep again; raises UserError."""
    return FILE.read(text, source, _sweep)


def _sweep(data: dict[str, Any]) -> Sweep:
    lines = []
    for line in data["lines"]:
        diverged = np.asarray(line["diverged"], dtype=bool)
        metrics = {
            n: _array(x, np.inf if n.endswith("loss") else np.nan)
            for n, x in line["metrics"].items()
        }
        lines.append(Line(**{**line, "metrics": metrics, "diverged": diverged}))
    sequences = {key: tuple(data[key]) for key in ("tasks", "optimizers", "lrs", "seeds")}
    return Sweep(**{**data, **sequences, "lines": tuple(lines)})
