"""What a step of each optimizer costs, measured alone, and how long it takes to the reference."""

from __future__ import annotations

import math
from dataclasses import replace

from lo_framework.eval.report.page import Term
from lo_framework.eval.report.table import Table
from lo_framework.eval.studies.comparison import matched_steps, reference_of
from lo_framework.eval.studies.result import Arm, Result
from lo_framework.eval.targets import StepsToTarget

MIB = 2.0**20


def costs_table(result: Result, task: str) -> Table | None:
    """Rows are optimizers; None where nothing was measured."""
    arms = [result.arm(task, label) for label in result.optimizers]
    if not any(arm.cost for arm in arms):
        return None
    reference, steps = reference_of(result), matched_steps(result, task)
    headers = ["optimizer", "gradients", "ms alone", "x", "MiB alone", "x"]
    headers += [f"steps to {reference}", f"seconds to {reference}"] * bool(steps)
    table = Table(*headers, title=f"{task}: what a step costs")
    base = next((arm for arm in arms if arm.optimizer == reference), None)
    for arm in arms:
        if arm.failure:
            table.failed(arm.optimizer)
            continue
        cells: list[object] = [f"{arm.gradients_per_step:.3g}"]
        for name, unit in (("seconds", 1e-3), ("bytes", MIB)):
            own, other = _cost(arm, name), math.nan if base is None else _cost(base, name)
            cells += [_known(own / unit), _known(own / other if other else math.nan)]
        if steps:
            took = steps.get(arm.optimizer)
            cells += [took, None if took is None else _in_time(took, _cost(arm, "seconds"))]
        table.add(arm.optimizer, *cells)
    return table


def costs_words(result: Result) -> list[Term]:
    """What the columns about costs mean, in this table and beside what was reached."""
    words = [
        Term("diverged", "runs behind the final loss that are no longer finite"),
        Term("ms/step", "wall time, noisy: seeds run side by side in one process"),
        Term("grads", "gradient evaluations per step", names=("gradients",)),
        Term("state", "numbers kept per parameter"),
    ]
    if not any(arm.cost for arm in result.arms):
        return words
    reference = reference_of(result)
    return [
        *words,
        Term(
            "ms alone, MiB alone",
            "median wall time of a step, and the most memory that a short run took beyond the "
            "task's data (parameters, gradients, state, what a step computes), one run in a "
            "process of its own",
        ),
        Term("x", f"in parts of {reference}'s"),
        Term(f"seconds to {reference}", "those steps at that time of a step"),
    ]


def _cost(arm: Arm, name: str) -> float:
    value = None if arm.cost is None else getattr(arm.cost, name)
    return math.nan if value is None else value


def _in_time(steps: StepsToTarget, seconds: float) -> StepsToTarget | None:
    if not math.isfinite(seconds):
        return None
    return replace(steps, median=float(f"{steps.median * seconds:.3g}"))


def _known(value: float) -> str | None:
    return f"{value:.3g}" if math.isfinite(value) else None
