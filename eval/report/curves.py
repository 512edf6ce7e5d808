"""Learning curves as PNG: one panel per task, a line and a 95% band per optimizer, diverged runs as
crosses.

    curves = [Curve(label="adamw", steps=steps, values=losses)]
    picture = png(draw_curves([Panel(title="mlp/digits", curves=curves)]), 150)
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lo_framework.eval.report.drawing import (
    Look,
    canvas,
    label,
    legend,
    line_handle,
    log_limits,
    looks,
    open_frame,
    readable_ticks,
)
from lo_framework.eval.statistics import Array, expanded_percentile, iqm, median

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CENTRES = {"iqm": (iqm, "IQM"), "median": (median, "median")}
RESAMPLES = 500  # enough for a band one looks at; numbers in tables take more
# the axis ends this factor above the highest start: what explodes leaves through the top
HEADROOM = 1.6


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Runs of one optimizer on one task: ``values [seeds, points]`` at ``steps [points]``, not
    finite once diverged.
    """

    label: str
    steps: ArrayLike
    values: ArrayLike


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One task: a title and the curves in it."""

    title: str
    curves: Sequence[Curve]


def draw_curves(
    panels: Sequence[Panel],
    *,
    title: str = "",
    ylabel: str = "training loss",
    log: bool = True,
    centre: Literal["iqm", "median"] = "iqm",
    level: float = 0.95,
    smooth: int = 1,
    columns: int | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the panels in a grid under one legend.

    The line is the centre over all seeds, diverged ones counted as infinitely bad, so it ends where
    too many diverged; the band is the bootstrap interval of that centre. The legend counts diverged
    runs over all panels.

    Args:
        smooth: points of a trailing running mean, for minibatch losses; 1 draws what is given.

    Raises:
        ValueError: no panels, a panel without curves, or values that are not ``[seeds, points]``.
    """
    if not panels or not all(panel.curves for panel in panels):
        raise ValueError("nothing to draw: no panels, or a panel without curves")
    columns = columns or (2 if len(panels) in (2, 4) else min(3, len(panels)))
    rows = math.ceil(len(panels) / columns)
    size = (max(5.6, 4.0 * columns), 3.2 * rows + 1.0)
    figure, grid = canvas(rows, columns, size, len(panels))
    look = looks(curve.label for panel in panels for curve in panel.curves)
    everything: list[_Drawn] = []
    for i, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        drawn = [_Drawn.of(curve, centre, level, smooth, seed) for curve in panel.curves]
        _draw_panel(axes, panel.title, drawn, look, log)
        everything += drawn
        if i % columns == 0:
            axes.set_ylabel(ylabel)
        if i + columns >= len(panels):
            axes.set_xlabel("step")
    notes = "; ".join(_notes(everything, CENTRES[centre][1], level, smooth))
    words = legend(
        figure,
        [
            _handle(name, own, [x for x in everything if x.label == name])
            for name, own in look.items()
        ],
        title=textwrap.fill(notes, int(16 * figure.get_figwidth())),
        title_fontproperties={"size": 8},
    )
    words.get_title().set(color="0.35", multialignment="center")
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """The drawing of a `Curve`: line, band ``[points]`` and the last finite (step, value) of each
    diverged run.
    """

    label: str
    seeds: int
    steps: Array
    line: Array
    low: Array
    high: Array
    ends: list[tuple[float, float]]

    @staticmethod
    def of(curve: Curve, centre: str, level: float, smooth: int, seed: int) -> _Drawn:
        steps = np.asarray(curve.steps, dtype=np.float64)
        values = np.array(curve.values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != steps.size or values.size == 0:
            raise ValueError(
                f"{curve.label}: expected values [seeds, points] for {steps.size} steps, "
                f"got {list(values.shape)}"
            )
        bad = np.maximum.accumulate(
            ~np.isfinite(values), axis=1
        )  # once diverged, diverged for good
        values[bad] = np.nan
        values = _running_mean(values, smooth)
        ends = []
        for run, gone in zip(values, bad, strict=True):
            if gone[-1]:
                last = max(int(gone.argmax()) - 1, 0)
                ends.append((float(steps[last]), float(run[last])))
        values[bad] = np.inf
        statistic = CENTRES[centre][0]
        line = statistic(values.T)
        low, high = line, line
        n = values.shape[0]
        if n > 1:
            # Whole runs are drawn, as the points of one are correlated.
            index = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
            low, high = expanded_percentile(
                np.stack([statistic(values[i].T) for i in index]), level, n
            )
        return _Drawn(
            label=curve.label, seeds=n, steps=steps, line=line, low=low, high=high, ends=ends
        )


def _running_mean(values: Array, points: int) -> Array:
    """Mean of the last ``points`` values (fewer at the start), along the last axis; nan stays where
    it is.
    """
    if points <= 1:
        return values
    finite = np.nan_to_num(values)
    total = np.cumsum(np.concatenate([np.zeros((len(values), 1)), finite], axis=1), axis=1)
    last = np.arange(1, values.shape[1] + 1)
    first = np.maximum(last - points, 0)
    return np.where(np.isnan(values), np.nan, (total[:, last] - total[:, first]) / (last - first))


def _draw_panel(
    axes: Any, title: str, drawn: list[_Drawn], look: dict[str, Look], log: bool
) -> None:
    """Lines above bands above grid; crosses on top, those above the axis at its upper edge."""
    bottom, top = _limits(drawn, log)
    axes.set_ylim(bottom, top)  # before the scale: a log axis without positive data complains
    if log:
        axes.set_yscale("log")
        readable_ticks(axes.yaxis, bottom, top)
    for one in drawn:
        colour, dashes = look[one.label]
        shown = np.isfinite(one.line) & np.isfinite(one.low)
        line = np.where(shown, one.line, np.nan)
        # An interval that reaches a divergence has no upper edge: a band without end would hide the
        # other curves.
        high = np.where(np.isfinite(one.high), np.minimum(one.high, 2 * top), line)
        low = np.where(shown, one.low, np.nan)
        axes.fill_between(one.steps, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        axes.plot(
            one.steps, line, color=colour, dashes=dashes or (None, None), linewidth=1.6, zorder=3
        )
        if one.ends:
            x, y = np.array(one.ends).T
            y = np.clip(np.where(np.isnan(y), top, y), bottom, top)
            axes.scatter(
                x, y, marker="x", s=36, color=colour, linewidth=1.6, zorder=4, clip_on=False
            )
    open_frame(axes, label(title))
    axes.margins(x=0.02)


def _limits(drawn: list[_Drawn], log: bool) -> tuple[float, float]:
    """The axis holds every line and band below a ceiling a little above the highest start."""
    starts = [one.line[0] for one in drawn if np.isfinite(one.line[0])]
    values = np.concatenate([np.concatenate([one.line, one.low, one.high]) for one in drawn])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if values.size == 0:
        return (0.1, 1.0) if log else (0.0, 1.0)
    ceiling = HEADROOM * max(starts) if starts and max(starts) > 0 else float(values.max())
    top = min(float(values.max()), ceiling)
    bottom = min(float(values.min()), top)
    if log:
        return log_limits(bottom / 1.15, top * 1.15)
    margin = 0.05 * (top - bottom) or 0.5
    return bottom - margin, top + margin


def _notes(everything: Sequence[_Drawn], centre: str, level: float, smooth: int) -> list[str]:
    """Say in words what line, band and crosses are."""
    fewest, most = min(one.seeds for one in everything), max(one.seeds for one in everything)
    notes = [
        f"line: {centre} of {fewest if fewest == most else f'{fewest}-{most}'} seeds"
        if most > 1
        else "one seed"
    ]
    if smooth > 1:
        notes.append(f"running mean of {smooth} points")
    if most > 1:
        notes.append(f"band: {level:.0%} bootstrap interval")
    if any(one.ends for one in everything):
        notes.append("×: a run diverged (a band that holds such runs is open above)")
    return notes


def _handle(name: str, look: Look, drawn: Sequence[_Drawn]) -> Any:
    """Return one optimizer's line for the legend, with how many of its runs diverged."""
    bad, runs = sum(len(one.ends) for one in drawn), sum(one.seeds for one in drawn)
    if not bad:
        return line_handle(label(name), look)
    text = f"{label(name)} ({bad} of {runs} diverged)"
    return line_handle(text, look, marker="x", markersize=6, markeredgewidth=1.6)
