"""Final loss against the step size at the start: a panel per task, log-log, bands, diverged runs as
crosses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report.drawing import (
    canvas,
    label,
    legend,
    line_handle,
    log_labels,
    log_limits,
    open_frame,
    readable_ticks,
)
from lo_framework.eval.report.palette import Look, looks
from lo_framework.eval.statistics import bootstrap_interval, iqm
from lo_framework.eval.studies.robustness import Line, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# the axis ends this factor above the loss from the smallest step size: what explodes leaves at the
# top
HEADROOM = 2.0
WIDE = 100  # decades of step sizes: more of them have ticks at their ends alone


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
