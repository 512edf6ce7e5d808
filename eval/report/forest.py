"""Many arms against one: a row for each arm, its ratio to the reference with an interval, a panel
for each task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lo_framework.eval.report.drawing import canvas, label
from lo_framework.eval.report.palette import COLOURS
from lo_framework.eval.running.protocol import BY_KEY
from lo_framework.eval.studies.comparison import Comparison, compare, reference_of
from lo_framework.eval.studies.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("mean_loss", "final_loss", "test_loss")
LEAST = 0.02  # intervals that reach zero or below end at the left edge of the logarithmic axis


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
    found = [c for c in compare(result) if c.baseline == reference and c.metric in METRICS]
    tasks = [task for task in result.tasks if any(c.task == task for c in found)]
    labels = list(dict.fromkeys(c.learned for c in found))
    if not tasks:
        return None
    columns = min(2, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = (4.0 * columns + 4.5, (0.34 * len(labels) + 1.1) * rows + 0.6)
    figure, grid = canvas(rows, columns, size, sharey=True, sharex=True)
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    for i, (axes, task) in enumerate(zip(grid, tasks)):
        _panel(axes, task, labels, [c for c in found if c.task == task])
        if i + columns >= len(tasks):
            axes.set_xlabel(f"times {label(str(reference))}'s, paired by seed")
    seeds = f"mean and 95% interval over {len(result.report_seeds)} seeds"
    figure.suptitle(f"{result.steps} steps, {seeds}; left is better", fontsize=10)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(METRICS), frameon=False, fontsize=9
    )
    return figure


def _panel(axes: Any, task: str, labels: Sequence[str], found: Sequence[Comparison]) -> None:
    by_place = {(c.learned, c.metric): c for c in found}
    for k, metric in enumerate(METRICS):
        marks = [
            (i, mark(by_place[x, metric])) for i, x in enumerate(labels) if (x, metric) in by_place
        ]
        shown = [(i + 0.22 * (k - 1), m) for i, m in marks if m is not None]
        if not shown:
            continue
        values = [m.value for _, m in shown]
        sides = [
            [m.value - max(m.low, LEAST) for _, m in shown],
            [m.high - m.value for _, m in shown],
        ]
        axes.errorbar(
            values,
            [y for y, _ in shown],
            xerr=sides,
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
