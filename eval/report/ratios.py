"""Many optimizers on many tasks at a glance: the mean of each in parts of the reference's, a table
for each metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lo_framework.eval.report import numbers
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

SHOWN = ("mean_loss", "final_loss", "test_loss")
SURE = "*"
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
        failed = [_failed(column, (optimizer, reference)) for column in columns]
        verdicts = [c.verdict for c in row if c is not None]
        judged = any(verdict != ONE_SEED for verdict in verdicts)
        counts = [verdicts.count(word) if judged else None for word in (BETTER, WORSE)]
        table.add(optimizer, *map(_cell, row, failed), *counts)
    return table


def _failed(column: _Column, optimizers: Sequence[str]) -> bool:
    return any(
        arm.task == column.task and arm.optimizer in optimizers for arm in column.result.failures
    )


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
