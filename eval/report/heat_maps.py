"""Heat maps of an ablation: a panel per pair of options, the colour the final loss, the text its
value and what was counted; references as lines on the colour bar.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report import numbers
from lo_framework.eval.report.drawing import canvas, label, readable_ticks
from lo_framework.eval.statistics import iqm, mean_interval, outcomes
from lo_framework.eval.studies.ablation import Ablation, Entry
from lo_framework.eval.studies.panels import Mark, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY = "final_loss"
MAP = "cividis_r"  # light is low; made for all kinds of colour vision
# colours end this factor above the largest reference: what is worse than that is simply bad
HEADROOM = 1.3


def draw(result: Ablation, task: str) -> Figure:
    """Draw all panels of one task under one colour scale."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    panels = result.study.panels
    wide = max(len(panel.columns.values) for panel in panels)
    high = max(len(panel.rows.values) for panel in panels)
    each = (1.02 * wide + 0.9, 0.72 * high + 0.9)
    figure, grid = canvas(len(panels), min(2, len(panels)), each, (2.2, 0.9), least=0.0)
    beside = [(entry, _centre(entry)) for entry in result.references_of(task) if not entry.failure]
    low, top = _range(result, task, [value for _, value in beside])
    scale = ScalarMappable(norm=LogNorm(low, top), cmap=colormaps[MAP])
    for axes, panel in zip(grid, panels, strict=True):
        _panel(axes, result, task, panel, scale)
    bar = figure.colorbar(scale, ax=grid, extend="max", fraction=0.045, pad=0.015, aspect=35)
    bar.set_label("final training loss (log scale)", fontsize=9)
    readable_ticks(bar.ax.yaxis)
    for entry, value in beside:
        if low <= value <= top:
            bar.ax.axhline(value, color="#D55E00", linewidth=1.6)
            name = label(f"{entry.spec.partition(':')[0]} {entry.setting}")
            bar.ax.text(
                -0.25,
                value,
                name,
                ha="right",
                va="center",
                fontsize=7,
                color="#B04A00",
                transform=bar.ax.get_yaxis_transform(),
                backgroundcolor=(1, 1, 1, 0.7),
            )
    seeds = f"{result.steps} steps, mean ± half of the 95% interval over {len(result.seeds)} seeds"
    title = f"{label(task)}: {label(result.study.baseline)}"
    figure.suptitle(f"{title}\n{seeds}{_key(result)}", fontsize=10)
    return figure


def cells(result: Ablation, task: str, panel: Panel) -> dict[tuple[str, str], Entry]:
    """Return the entry of every row and column of a panel."""
    places = itertools.product(panel.rows.values, panel.columns.values)
    return {place: result.entry(task, panel, *place) for place in places}


def _panel(axes: Any, result: Ablation, task: str, panel: Panel, scale: Any) -> None:
    shape = (len(panel.rows.values), len(panel.columns.values))
    colours = np.ones((*shape, 4))
    for (i, j), entry in zip(np.ndindex(shape), cells(result, task, panel).values(), strict=True):
        value = math.inf if entry.failure else _centre(entry)
        colour = (
            scale.to_rgba(max(value, 1e-30)) if math.isfinite(value) else (0.75, 0.75, 0.75, 1.0)
        )
        colours[i, j] = colour
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        axes.text(
            j,
            i,
            _words(entry, marked(entry, result.study.marks)),
            ha="center",
            va="center",
            fontsize=7,
            color="black" if light > 0.5 else "white",
            linespacing=1.25,
        )
    axes.imshow(colours, aspect="auto")
    axes.set_xticks(range(shape[1]), map(label, panel.columns.values), fontsize=8)
    axes.set_yticks(range(shape[0]), map(label, panel.rows.values), fontsize=8)
    axes.set_xlabel(label(panel.columns.option), fontsize=9)
    axes.set_ylabel(label(panel.rows.option), fontsize=9)
    axes.set_title(label(panel.title), fontsize=10)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(shape[1] - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def marked(entry: Entry, marks: tuple[Mark, ...]) -> str:
    """Return ``"~12% ↑3%"``: counts that are not zero, each a share of all or a mean over seeds."""
    words = []
    for mark in marks:
        counts = entry.metrics.get(mark.count, np.zeros(0))
        total = float(np.nansum(counts))
        of = float(np.nansum(entry.metrics.get(mark.over, 0.0)))
        if total and not mark.over:
            words.append(f"{mark.symbol}{total / counts.size:.3g}")
        elif total and of:
            share = 100.0 * total / of
            words.append(f"{mark.symbol}{share:.0f}%" if share >= 1 else f"{mark.symbol}<1%")
    return " ".join(words)


def _centre(entry: Entry) -> float:
    """Return the mean, or where runs diverged the interquartile mean, which bears a quarter."""
    values, diverged = outcomes(entry.metrics[KEY])
    return float(iqm(values) if diverged else values.mean())


def _range(result: Ablation, task: str, beside: list[float]) -> tuple[float, float]:
    own = [_centre(entry) for entry in result.entries if entry.task == task and not entry.failure]
    values = [value for value in (*own, *beside) if math.isfinite(value) and value > 0]
    if not values:
        return 0.1, 1.0
    known = [value for value in beside if math.isfinite(value)]
    low, top = min(values), max(values)
    if known:
        top = min(top, HEADROOM * max(*known, float(np.median(values))))
    return low, max(top, 1.001 * low)


def _words(entry: Entry, marks: str) -> str:
    if entry.failure:
        return "FAILED"
    if entry.diverged.any():
        lines = [numbers.count_of(entry.diverged), "diverged"]
    else:
        value, _, half = numbers.plus_minus(mean_interval(entry.metrics[KEY])).partition(" ")
        lines = [value, half] if half else [value]
    return "\n".join(lines + [label(marks)] * bool(marks))


def _key(result: Ablation) -> str:
    words = [
        label(f"{mark.symbol} {mark.count}") + " (%)" * bool(mark.over)
        for mark in result.study.marks
    ]
    return f"\n{', '.join(words)}; grey: no finite mean" if words else ""
