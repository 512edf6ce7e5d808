"""Many arms against one: a row for each arm, its ratio to the reference with an interval, a panel
for each task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """The paired difference's interval, in parts of the reference's mean; None where there is none."""
    d, base = c.difference, c.difference.value / (c.ratio - 1) if c.ratio != 1 else math.inf
    found = Mark(c.ratio, 1 + d.low / base, 1 + d.high / base)
    return found if all(map(math.isfinite, found)) and base > 0 else None


def draw_forest(result: Result, path: str | Path | None = None) -> Figure | None:
    """The picture, saved as PNG if ``path`` is given; None if there is nothing to compare with."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference = reference_of(result)
    found = [c for c in compare(result) if c.baseline == reference and c.metric in METRICS]
    tasks = [task for task in result.tasks if any(c.task == task for c in found)]
    labels = list(dict.fromkeys(c.learned for c in found))
    if not tasks:
        return None
    columns = min(2, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = (4.0 * columns + 4.5, (0.34 * len(labels) + 1.1) * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    for i, axes in enumerate(grid.flat):
        if i >= len(tasks):
            axes.set_axis_off()
            continue
        _panel(axes, tasks[i], labels, [c for c in found if c.task == tasks[i]])
        if i + columns >= len(tasks):
            axes.set_xlabel(f"times {reference}'s, paired by seed")
    seeds = f"{result.steps} steps, mean and 95% interval over {len(result.report_seeds)} seeds; left is better"
    figure.suptitle(seeds, fontsize=10)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(METRICS), frameon=False, fontsize=9
    )
    if path is not None:
        # No software version in the file: the same data give the same bytes.
        figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
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
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(task, fontsize=10)
