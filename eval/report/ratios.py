"""Many optimizers on many tasks at a glance: the mean of each in parts of the reference's, as a
table for each metric and as a picture with a panel for each task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lo_framework.eval.report import numbers
from lo_framework.eval.report.drawing import COLOURS, canvas, label, legend, outer_labels
from lo_framework.eval.report.table import Table
from lo_framework.eval.running.protocol import BY_KEY
from lo_framework.eval.studies.comparison import (
    BETTER,
    ONE_SEED,
    WORSE,
    Comparison,
    compare,
    reference_of,
)
from lo_framework.eval.studies.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("mean_loss", "final_loss", "test_loss")
SURE = "*"
LEAST = 0.02  # intervals that reach zero or below end at the left edge of the logarithmic axis
NOTE = (
    f"{SURE}: the 95% interval of the paired difference leaves zero out; "
    "better, worse: how many such tasks"
)


class _Column(NamedTuple):
    title: str
    result: Result
    task: str


def ratios(results: Sequence[Result], names: Sequence[str] = ()) -> list[Table]:
    """Rows are optimizers, columns the tasks of all ``results``; tables of their own for each
    reference.

    Args:
        names: of the results; told where two have the same task.
    """
    tables = []
    for reference in dict.fromkeys(reference_of(result) for result in results):
        named = zip(names or [""] * len(results), results, strict=True)
        chosen = [(name, result) for name, result in named if reference_of(result) == reference]
        tasks = [task for _, result in chosen for task in result.tasks]
        columns = [
            _Column(f"{task} ({name})" if tasks.count(task) > 1 else task, result, task)
            for name, result in chosen
            for task in result.tasks
        ]
        tables += [_table(metric, reference, columns) for metric in SHOWN if reference is not None]
    return [table for table in tables if table is not None]


def _table(metric: str, reference: str, columns: Sequence[_Column]) -> Table | None:
    optimizers = dict.fromkeys(
        x for column in columns for x in column.result.learned if x != reference
    )
    found = {
        (i, c.learned): c
        for i, column in enumerate(columns)
        for c in compare(column.result)
        if (c.task, c.metric, c.baseline) == (column.task, metric, reference)
    }
    if not found:
        return None
    title, notes = f"{BY_KEY[metric].title} in parts of {reference}'s", (NOTE, *_unlike(columns))
    table = Table(
        "optimizer", *(column.title for column in columns), BETTER, WORSE, title=title, notes=notes
    )
    for optimizer in optimizers:
        row = [found.get((i, optimizer)) for i in range(len(columns))]
        failed = [
            any(
                arm.task == column.task and arm.optimizer in (optimizer, reference)
                for arm in column.result.failures
            )
            for column in columns
        ]
        verdicts = [c.verdict for c in row if c is not None]
        judged = any(verdict != ONE_SEED for verdict in verdicts)
        counts = [verdicts.count(word) if judged else None for word in (BETTER, WORSE)]
        table.add(optimizer, *map(_cell, row, failed), *counts)
    return table


def _cell(c: Comparison | None, failed: bool) -> str | None:
    if c is None:
        return "failed" if failed else None
    return (f"{c.ratio:.3f}" if c.ratio < 10 else f"{c.ratio:.3g}") + SURE * (
        c.verdict in (BETTER, WORSE)
    )


def _unlike(columns: Sequence[_Column]) -> list[str]:
    """A line on results that were not run alike."""
    kinds = {f"{x.result.steps} steps and {numbers.seeds(x.result.report_seeds)}" for x in columns}
    return [f"columns are of different runs: {'; '.join(sorted(kinds))}"] if len(kinds) > 1 else []


class Mark(NamedTuple):
    """A ratio to the reference and its interval."""

    value: float
    low: float
    high: float


def mark(c: Comparison) -> Mark | None:
    """Return the paired difference as a ratio to the reference's mean; None where there is none."""
    d, base = c.difference, c.difference.value / (c.ratio - 1) if c.ratio != 1 else math.inf
    found = Mark(c.ratio, 1 + d.low / base, 1 + d.high / base)
    return found if all(map(math.isfinite, found)) and base > 0 else None


def draw_forest(result: Result) -> Figure | None:
    """Return the picture; None if there is nothing to compare with."""
    reference = reference_of(result)
    found = [c for c in compare(result) if c.baseline == reference and c.metric in SHOWN]
    tasks = [task for task in result.tasks if any(c.task == task for c in found)]
    labels = list(dict.fromkeys(c.learned for c in found))
    if not tasks:
        return None
    columns = min(2, len(tasks))
    panel = (4.0, 0.34 * len(labels) + 1.1)
    figure, grid = canvas(len(tasks), columns, panel, (4.5, 0.6), sharey=True, sharex=True)
    for axes, task in zip(grid, tasks, strict=True):
        _panel(axes, task, labels, [c for c in found if c.task == task])
    outer_labels(grid, columns, f"times {label(str(reference))}'s, paired by seed")
    seeds = f"mean and 95% interval over {len(result.report_seeds)} seeds"
    figure.suptitle(f"{result.steps} steps, {seeds}; left is better", fontsize=10)
    legend(figure, grid[0].get_legend_handles_labels()[0])
    return figure


def _panel(axes: Any, task: str, labels: Sequence[str], found: Sequence[Comparison]) -> None:
    by_place = {(c.learned, c.metric): c for c in found}
    for k, metric in enumerate(SHOWN):
        marks = [mark(by_place[x, metric]) if (x, metric) in by_place else None for x in labels]
        shown = [(i + 0.22 * (k - 1), *m) for i, m in enumerate(marks) if m is not None]
        if not shown:
            continue
        y, values, low, high = np.array(shown).T
        axes.errorbar(
            values,
            y,
            xerr=[np.maximum(values - np.maximum(low, LEAST), 0.0), high - values],
            fmt="os^"[k],
            color=COLOURS[k],
            markersize=3.5,
            linewidth=1.3,
            label=BY_KEY[metric].title,
        )
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    ticks = (0.25, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 4)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlim(0.4, 2.6)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), map(label, labels), fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(label(task), fontsize=10)
