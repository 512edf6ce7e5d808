"""The report of `eval robustness`. Its picture has a panel per task: final loss against the step
size at the start, log-log, with bands, diverged runs as crosses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.drawing import (
    Look,
    canvas,
    label,
    legend,
    line_handle,
    log_labels,
    log_limits,
    looks,
    open_frame,
    png,
    readable_ticks,
)
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import table_of_values
from lo_framework.eval.running.protocol import BY_KEY, METRICS
from lo_framework.eval.statistics import Array, bootstrap_interval, iqm, mean_interval, summarize
from lo_framework.eval.studies.robustness import FILE, Line, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# a step size does well if its mean final loss is at most this many times the first optimizer's best
NEAR = 2.0
# the axis ends this factor above the loss from the smallest step size: what explodes leaves at the
# top
HEADROOM = 2.0
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
        names = list(dict.fromkeys(name for line in result.lines for name in line.metrics))
        metrics = [metric for metric in METRICS if metric.key in names]
        own = (name for name in names if name not in BY_KEY)
        counts = [name for name in own if not name.startswith(("valid_", "train_"))]
        headers = ["task", "optimizer", "lr", "seeds", "diverged"]
        headers += [f"{m.key}_{part}" for m in metrics for part in ("mean", "low", "high", "iqm")]
        rows = []
        for line in result.lines:
            for i, lr in enumerate(result.lrs if not line.failure else ()):
                diverged = int(line.diverged[i].sum())
                row = [line.task, line.optimizer, lr, len(result.seeds), diverged]
                for metric in metrics:
                    if metric.key not in line.metrics:
                        row += [np.nan] * 4
                        continue
                    values = line.metrics[metric.key][i]
                    seen = summarize(values, lower_is_better=metric.lower_is_better)
                    row += [seen.mean.value, seen.mean.low, seen.mean.high, seen.iqm.value]
                row += [
                    float(np.mean(line.metrics[n][i])) if n in line.metrics else np.nan
                    for n in counts
                ]
                rows.append(row)
        return table_of_values([*headers, *(f"{name}_mean" for name in counts)], rows)

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


def means(result: Sweep, task: str, optimizer: str) -> Array | None:
    """Return ``[L]`` mean final losses, infinite where any run diverged; None for a failed line."""
    line = result.line(task, optimizer)
    if line.failure or "final_loss" not in line.metrics:
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
            table.add(optimizer, "FAILED", *[""] * 6)
            continue
        least, most = int(values.argmin()), int(values.argmax())
        near = [lr for lr, value in zip(result.lrs, values) if value <= bound]
        span = f"{len(near)} of {len(values)}" + (f" ({near[0]:g} to {near[-1]:g})" if near else "")
        diverged = result.line(task, optimizer).diverged
        ends = [x for i in (least, most) for x in (float(values[i]), f"{result.lrs[i]:g}")]
        worse = numbers.ratio(float(values[most] / values[least]))
        table.add(optimizer, *ends, worse, span, f"{int(diverged.sum())} of {diverged.size}")
    return table


def _everywhere(result: Sweep, task: str, key: str) -> Table:
    metric = BY_KEY[key]
    table = Table("step size", *result.optimizers, title=f"{task}: {metric.title}")
    lines = [result.line(task, optimizer) for optimizer in result.optimizers]
    for i, lr in enumerate(result.lrs):
        cells: list[str | None] = []
        for line in lines:
            measured = not line.failure and key in line.metrics
            cells.append(
                numbers.mean_or_diverged(line.metrics[key][i], line.diverged[i], metric)
                if measured
                else None
            )
        table.add(f"{lr:g}", *cells)
    return table


def draw(result: Sweep, *, level: float = 0.95) -> Figure:
    """Draw a line per optimizer: interquartile means over seeds, in the band of their intervals."""
    shown = [task for task in result.tasks if any(not x.failure for x in _lines(result, task))]
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    size = (max(6.0, 4.8 * columns), 3.4 * rows + 1.3)
    figure, grid = canvas(rows, columns, size, len(shown))
    look = looks(result.optimizers)
    for i, (axes, task) in enumerate(zip(grid, shown, strict=True)):
        lines = [line for line in _lines(result, task) if not line.failure]
        _panel(axes, label(task), result.lrs, lines, look, level)
        if i % columns == 0:
            axes.set_ylabel("final training loss")
        if i + columns >= len(shown):
            axes.set_xlabel("step size at the start (lr, alpha0)")
    handles = []
    for name, own in look.items():
        runs = [line.diverged for line in result.lines if line.optimizer == name]
        bad, total = sum(int(x.sum()) for x in runs), sum(x.size for x in runs)
        text = f"{label(name)} ({bad} of {total} diverged)" if bad else label(name)
        handles.append(line_handle(text, own, marker="o", markersize=3.5))
    words = [
        f"{result.steps} steps; line: IQM of {len(result.seeds)} seeds",
        f"band: {level:.0%} bootstrap interval",
    ]
    if any(line.diverged.any() for line in result.lines):
        words.append("×: runs diverged (at the upper edge)")
    options = dict(title="; ".join(words), title_fontproperties={"size": 8})
    legend(figure, handles, columns=2, **options)
    return figure


def _lines(result: Sweep, task: str) -> list[Line]:
    return [line for line in result.lines if line.task == task]


def _panel(
    axes: Any,
    title: str,
    lrs: tuple[float, ...],
    lines: list[Line],
    look: dict[str, Look],
    level: float,
) -> None:
    drawn = {}
    for line in lines:
        found = [
            bootstrap_interval(x, iqm, level=level, resamples=500)
            for x in line.metrics["final_loss"]
        ]
        drawn[line.optimizer] = np.array([[x.value, x.low, x.high] for x in found])
    values = np.concatenate([x[:, 0] for x in drawn.values()])
    values = values[np.isfinite(values) & (values > 0)]
    starts = [x[0, 0] for x in drawn.values() if np.isfinite(x[0, 0])]
    top = min(values.max(), HEADROOM * max(starts, default=math.inf)) if values.size else 1.0
    bottom = min(values.min(), top) if values.size else 0.1
    bottom, top = log_limits(bottom / 1.3, top * 1.3)
    axes.set_ylim(bottom, top)
    axes.set_xlim(*log_limits(lrs[0] / 1.5, lrs[-1] * 1.5))
    axes.set_xscale("log")
    if math.log10(lrs[-1]) - math.log10(lrs[0]) > WIDE:
        axes.set_xticks([lrs[0], lrs[-1]])
        log_labels(axes.xaxis)
    axes.set_yscale("log")
    readable_ticks(axes.yaxis, bottom, top)
    x = np.array(lrs)
    for line in lines:
        (colour, dashes), (centre, low, high) = look[line.optimizer], drawn[line.optimizer].T
        usable = np.isfinite(centre)
        style = dict(
            color=colour,
            dashes=dashes or (None, None),
            linewidth=1.6,
            marker="o",
            markersize=3.5,
            zorder=3,
        )
        axes.plot(x, np.where(usable, centre, np.nan), **style)
        low = np.where(usable & np.isfinite(low), np.maximum(low, bottom / 2), np.nan)
        high = np.where(
            usable, np.minimum(np.where(np.isfinite(high), high, 2 * top), 2 * top), np.nan
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        bad = line.diverged.any(axis=1)
        if bad.any():
            edge = np.full(int(bad.sum()), top)
            axes.scatter(
                x[bad], edge, marker="x", s=40, color=colour, linewidth=1.6, zorder=4, clip_on=False
            )
    open_frame(axes, title)
