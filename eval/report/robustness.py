"""The report of `eval robustness`. Its picture has a panel per task: final loss against the step
size at the start, log-log, with bands, diverged runs as crosses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.columns import columns
from lo_framework.eval.report.curves import (
    LEVEL,
    Band,
    centre_and_interval,
    counted,
    draw_bands,
)
from lo_framework.eval.report.drawing import (
    canvas,
    legend,
    line_handle,
    log_labels,
    log_limits,
    looks,
    outer_labels,
    png,
)
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import table_of_values
from lo_framework.eval.running.protocol import BY_KEY, Metric
from lo_framework.eval.statistics import Array, mean_interval, summarize
from lo_framework.eval.studies.robustness import FILE, Line, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# a step size does well if its mean final loss is at most this many times the first optimizer's best
NEAR = 2.0
WIDE = 100  # decades of step sizes: more of them have ticks at their ends alone


class RobustnessReport(Report[Sweep]):
    file, title = FILE, "Robustness to the step size at the start"

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        yield "robustness.csv", self.csv()
        yield "robustness.md", self.markdown()
        if self.worked():
            yield "robustness.png", png(draw(self.result), 150)

    def csv(self) -> str:
        """Return a row for each task, optimizer and step size."""
        result = self.result
        rows = [
            (
                (line.task, line.optimizer, lr, len(result.seeds), int(line.diverged[i].sum())),
                {
                    name: values[i]
                    for name, values in line.metrics.items()
                    if not name.startswith(("valid_", "train_"))
                },
            )
            for line in result.lines
            if not line.failure
            for i, lr in enumerate(result.lrs)
        ]
        headers, cells = columns((x for _, x in rows), ("mean", "low", "high", "iqm"), _parts)
        headers = ["task", "optimizer", "lr", "seeds", "diverged", *headers]
        return table_of_values(headers, [(*first, *cells(x)) for first, x in rows])

    def heading(self) -> list[str]:
        result = self.result
        sizes = f"{len(result.lrs)} step sizes from {result.lrs[0]:g} to {result.lrs[-1]:g}"
        return [f"{result.steps} steps, {numbers.seeds(result.seeds)}, {sizes}, none chosen"]

    def tables(self) -> list[Table]:
        """Return per task a summary, then final loss and the test metric at every step size."""
        result, tables = self.result, []
        for task in result.tasks:
            lines = [line for line in result.lines if line.task == task]
            if all(line.failure for line in lines):
                continue
            tables.append(_summary(result, task))
            measured = {name for line in lines for name in line.metrics}
            test = "test_accuracy" if "test_accuracy" in measured else "test_loss"
            tables += [_everywhere(result, task, x) for x in ("final_loss", test) if x in measured]
        return tables

    def notes(self) -> list[str]:
        return [
            "final loss: full training split after the last step; "
            "±: half of the 95% interval of the mean (Student's t)",
            "best, worst: of the means on the reported seeds; nothing was tuned, so a best is the "
            "best of this grid only",
            "a mean over seeds of which one diverged is infinite",
            "the step size is lr of a fixed-step optimizer, and alpha0 of MetaOptimize",
        ]

    def worked(self) -> bool:
        return len(self.result.failures) < len(self.result.lines)


def _parts(values: Array, metric: Metric) -> tuple[float, ...]:
    seen = summarize(values, lower_is_better=metric.lower_is_better)
    return seen.mean.value, seen.mean.low, seen.mean.high, seen.iqm.value


def means(result: Sweep, task: str, optimizer: str) -> Array | None:
    """Return ``[L]`` mean final losses, infinite where any run diverged; None for a failed line."""
    line = result.line(task, optimizer)
    if line.failure:
        return None
    return np.array([mean_interval(x).value for x in line.metrics["final_loss"]])


def _summary(result: Sweep, task: str) -> Table:
    every = {optimizer: means(result, task, optimizer) for optimizer in result.optimizers}
    # The first one that worked is what the others are measured by.
    first, bound = next((name, NEAR * float(x.min())) for name, x in every.items() if x is not None)
    near_best = f"within {NEAR:g}x of the best of {first}"
    headers = ["best final loss", "at", "worst", "at", "worst / best", near_best, "diverged"]
    table = Table("optimizer", *headers, title=f"{task}: mean final loss over the grid")
    for optimizer, values in every.items():
        if values is None:
            table.failed(optimizer)
            continue
        least, most = int(values.argmin()), int(values.argmax())
        near = [lr for lr, value in zip(result.lrs, values) if value <= bound]
        span = f"{len(near)} of {len(values)}" + (f" ({near[0]:g} to {near[-1]:g})" if near else "")
        diverged = result.line(task, optimizer).diverged
        ends = [x for i in (least, most) for x in (float(values[i]), f"{result.lrs[i]:g}")]
        worse = numbers.ratio(float(values[most] / values[least]))
        table.add(optimizer, *ends, worse, span, numbers.count_of(diverged))
    return table


def _everywhere(result: Sweep, task: str, key: str) -> Table:
    metric = BY_KEY[key]
    table = Table("step size", *result.optimizers, title=f"{task}: {metric.title}")
    lines = [result.line(task, optimizer) for optimizer in result.optimizers]
    for i, lr in enumerate(result.lrs):
        cells = (
            numbers.mean_or_diverged(line.metrics[key][i], line.diverged[i], metric)
            if not line.failure and key in line.metrics
            else None
            for line in lines
        )
        table.add(f"{lr:g}", *cells)
    return table


def draw(result: Sweep) -> Figure:
    """Draw a line per optimizer: interquartile means over seeds, in the band of their intervals."""
    x = np.array(result.lrs)
    panels = {
        task: [_band(line, x) for line in result.lines if line.task == task and not line.failure]
        for task in result.tasks
    }
    panels = {task: bands for task, bands in panels.items() if bands}
    columns = min(2, len(panels))
    figure, grid = canvas(len(panels), columns, (4.8, 3.4), (0.0, 1.3), least=6.0)
    look = looks(result.optimizers)
    circles: dict[str, Any] = dict(marker="o", markersize=3.5)
    for axes, (task, bands) in zip(grid, panels.items(), strict=True):
        axes.set_xlim(*log_limits(x[0] / 1.5, x[-1] * 1.5))
        axes.set_xscale("log")
        if np.log10(x[-1]) - np.log10(x[0]) > WIDE:
            axes.set_xticks([x[0], x[-1]])
            log_labels(axes.xaxis)
        draw_bands(axes, task, bands, look, **circles)
    outer_labels(grid, columns, "step size at the start (lr, alpha0)", "final training loss")
    everything = [band for bands in panels.values() for band in bands]
    notes = [
        f"{result.steps} steps; line: IQM of {len(result.seeds)} seeds",
        f"band: {LEVEL:.0%} bootstrap interval",
    ]
    if any(band.crosses for band in everything):
        notes.append("×: runs diverged (at the upper edge)")
    handles = [line_handle(counted(name, everything), own, **circles) for name, own in look.items()]
    legend(figure, handles, "; ".join(notes))
    return figure


def _band(line: Line, lrs: Array) -> Band:
    losses = line.metrics["final_loss"]
    centre, low, high = centre_and_interval(np.where(np.isfinite(losses), losses, np.inf).T)
    return Band(
        label=line.optimizer,
        x=lrs,
        line=centre,
        low=low,
        high=high,
        crosses=[(lr, np.nan) for lr in lrs[line.diverged.any(axis=1)]],
        runs=line.diverged.size,
        diverged=int(line.diverged.sum()),
    )
