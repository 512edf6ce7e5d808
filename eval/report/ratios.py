"""Many optimizers on many tasks at a glance: the mean of each in parts of the reference's, a table for each metric."""

from __future__ import annotations

from collections.abc import Sequence

from eval.comparison import BETTER, WORSE, Comparison, compare, reference_of
from eval.protocol import BY_KEY
from eval.report.table import Table
from eval.result import Result

SHOWN = ("mean_loss", "final_loss", "test_loss")
SURE = "*"


def ratios(results: Sequence[Result]) -> list[Table]:
    """Rows are optimizers, columns the tasks of all ``results``; nothing if these have no reference in common."""
    references = {reference_of(result) for result in results}
    if len(references) != 1 or None in references:
        return []
    (reference,) = references
    found = [c for result in results for c in compare(result) if c.baseline == reference]
    return [table for metric in SHOWN if (table := _table(metric, str(reference), found))]


def _table(metric: str, reference: str, comparisons: Sequence[Comparison]) -> Table | None:
    found = [c for c in comparisons if c.metric == metric]
    tasks, optimizers = (list(dict.fromkeys(x)) for x in ([c.task for c in found], [c.learned for c in found]))
    if not found:
        return None
    note = f"{SURE}: the 95% interval of the paired difference leaves zero out; better, worse: how many such tasks"
    title = f"{BY_KEY[metric].title} in parts of {reference}'s"
    table = Table("optimizer", *tasks, BETTER, WORSE, title=title, notes=(note,))
    for optimizer in optimizers:
        row = {c.task: c for c in found if c.learned == optimizer}
        verdicts = [c.verdict for c in row.values()]
        table.add(optimizer, *(_cell(row.get(task)) for task in tasks), verdicts.count(BETTER), verdicts.count(WORSE))
    return table


def _cell(c: Comparison | None) -> str | None:
    if c is None:
        return None
    return (f"{c.ratio:.3f}" if c.ratio < 10 else f"{c.ratio:.3g}") + SURE * (c.verdict in (BETTER, WORSE))
