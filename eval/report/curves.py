"""Learning curves as PNG: one panel per task, a line and a 95% band per optimizer, diverged runs as
crosses.

    curves = [Curve(label="adamw", steps=steps, values=losses)]
    picture = png(draw_curves([Panel(title="mlp/digits", curves=curves)]), 150)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lo_framework.eval.report.drawing import (
    Look,
    canvas,
    curve,
    label,
    legend,
    line_handle,
    log_limits,
    looks,
    open_frame,
    outer_labels,
    readable_ticks,
)
from lo_framework.eval.statistics import Array, expanded_percentile, iqm, median

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CENTRES = {"iqm": (iqm, "IQM"), "median": (median, "median")}
LEVEL = 0.95
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


@dataclass(frozen=True, kw_only=True)
class Band:
    """One optimizer in one panel: a line and its interval ``[points]``, a cross (x, y) where
    something diverged (y nan: at the upper edge), and how many of its runs did.
    """

    label: str
    x: Array
    line: Array
    low: Array
    high: Array
    crosses: list[tuple[float, float]]
    runs: int
    diverged: int


def draw_curves(
    panels: Sequence[Panel],
    *,
    title: str = "",
    ylabel: str = "training loss",
    log: bool = True,
    centre: Literal["iqm", "median"] = "iqm",
    smooth: int = 1,
    points: int = 0,
) -> Figure:
    """Draw the panels in a grid under one legend.

    The line is the centre over all seeds, diverged ones counted as infinitely bad, so it ends where
    too many diverged; the band is the bootstrap interval of that centre. The legend counts diverged
    runs over all panels.

    Args:
        smooth: points of a trailing running mean, for minibatch losses; 1 draws what is given.
        points: draw about so many of each curve, the last among them; 0 draws all.

    Raises:
        ValueError: no panels, a panel without curves, or values that are not ``[seeds, points]``.
    """
    if not panels or not all(panel.curves for panel in panels):
        raise ValueError("nothing to draw: no panels, or a panel without curves")
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    figure, grid = canvas(len(panels), columns, (4.0, 3.2), (0.0, 1.0))
    look = looks(x.label for panel in panels for x in panel.curves)
    everything: list[Band] = []
    for axes, panel in zip(grid, panels, strict=True):
        bands = [_thinned(_band(x, CENTRES[centre][0], smooth), points) for x in panel.curves]
        draw_bands(axes, panel.title, bands, look, log)
        axes.margins(x=0.02)
        everything += bands
    outer_labels(grid, columns, "step", ylabel)
    crossed = {band.label for band in everything if band.crosses}
    cross = dict(marker="x", markersize=6, markeredgewidth=1.6)
    handles = [
        line_handle(counted(name, everything), own, **(cross if name in crossed else {}))
        for name, own in look.items()
    ]
    legend(figure, handles, "; ".join(_notes(everything, CENTRES[centre][1], smooth)))
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def centre_and_interval(
    values: Array, statistic: Callable[[Array], Array] = iqm
) -> tuple[Array, Array, Array]:
    """Return the ``statistic`` over runs ``[runs, points]`` and its bootstrap interval."""
    line, n = statistic(values.T), len(values)
    if n == 1:
        return line, line, line
    # Whole runs are drawn, as the points of one are correlated.
    index = np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
    low, high = expanded_percentile(np.stack([statistic(values[i].T) for i in index]), LEVEL, n)
    return line, low, high


def draw_bands(
    axes: Any,
    title: str,
    bands: Sequence[Band],
    look: Mapping[str, Look],
    log: bool = True,
    **style: Any,
) -> None:
    """Draw lines above bands above grid; crosses on top, those above the axis at its upper edge."""
    bottom, top = _limits(bands, log)
    axes.set_ylim(bottom, top)  # before the scale: a log axis without positive data complains
    if log:
        axes.set_yscale("log")
        readable_ticks(axes.yaxis)
    for band in bands:
        own = look[band.label]
        shown, high = np.isfinite(band.line), np.minimum(band.high, 2 * top)
        filled = dict(color=own.colour, alpha=0.18, linewidth=0, zorder=2)
        axes.fill_between(band.x, band.low, high, where=shown, **filled)
        curve(axes, band.x, band.line, own, 1.6, zorder=3, **style)
        if band.crosses:
            x, y = np.array(band.crosses).T
            y = np.clip(np.where(np.isnan(y), top, y), bottom, top)
            cross = dict(marker="x", s=36, linewidth=1.6, zorder=4, clip_on=False)
            axes.scatter(x, y, color=own.colour, **cross)
    open_frame(axes, label(title))


def counted(name: str, bands: Sequence[Band]) -> str:
    """Return an optimizer's name for a legend, with how many of its runs diverged."""
    own = [band for band in bands if band.label == name]
    bad, runs = sum(band.diverged for band in own), sum(band.runs for band in own)
    return f"{label(name)} ({bad} of {runs} diverged)" if bad else label(name)


def _band(curve: Curve, statistic: Callable[[Array], Array], smooth: int) -> Band:
    steps = np.asarray(curve.steps, dtype=np.float64)
    values = np.array(curve.values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != steps.size or values.size == 0:
        raise ValueError(
            f"{curve.label}: expected values [seeds, points] for {steps.size} steps, "
            f"got {list(values.shape)}"
        )
    bad = np.maximum.accumulate(~np.isfinite(values), axis=1)  # once diverged, diverged for good
    values[bad] = np.nan
    values = _running_mean(values, smooth)
    ends = []
    for run, gone in zip(values, bad, strict=True):
        if gone[-1]:
            last = max(int(gone.argmax()) - 1, 0)
            ends.append((float(steps[last]), float(run[last])))
    values[bad] = np.inf
    line, low, high = centre_and_interval(values, statistic)
    return Band(
        label=curve.label,
        x=steps,
        line=line,
        low=low,
        # An interval that reaches a divergence has no upper edge: a band without end would hide the
        # other curves.
        high=np.where(np.isfinite(high), high, line),
        crosses=ends,
        runs=len(values),
        diverged=len(ends),
    )


def _thinned(band: Band, points: int) -> Band:
    every = band.x.size // points if points else 1
    if every < 2:
        return band
    kept = np.arange(band.x.size - 1, -1, -every)[::-1]
    drawn = {name: getattr(band, name)[kept] for name in ("x", "line", "low", "high")}
    return replace(band, **drawn)


def _running_mean(values: Array, points: int) -> Array:
    """Mean of the last ``points`` values (fewer at the start), along the last axis; nan stays where
    it is.
    """
    if points <= 1:
        return values
    total = np.cumsum(np.nan_to_num(values), axis=1)
    total[:, points:] -= total[:, :-points]
    counted = np.minimum(np.arange(1, values.shape[1] + 1), points)
    return np.where(np.isnan(values), np.nan, total / counted)


def _limits(bands: Sequence[Band], log: bool) -> tuple[float, float]:
    """Return an axis that holds all below a ceiling a little above the highest start."""
    values = np.concatenate([[*band.line, *band.low, *band.high] for band in bands])
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if values.size == 0:
        return (0.1, 1.0) if log else (0.0, 1.0)
    start = max((band.line[0] for band in bands if np.isfinite(band.line[0])), default=0.0)
    top = min(float(values.max()), HEADROOM * start if start > 0 else np.inf)
    bottom = min(float(values.min()), top)
    if log:
        return log_limits(bottom / 1.15, top * 1.15)
    margin = 0.05 * (top - bottom) or 0.5
    return bottom - margin, top + margin


def _notes(bands: Sequence[Band], centre: str, smooth: int) -> list[str]:
    """Say in words what line, band and crosses are."""
    fewest, most = min(band.runs for band in bands), max(band.runs for band in bands)
    notes = ["one seed"]
    if most > 1:
        seeds = fewest if fewest == most else f"{fewest}-{most}"
        notes = [f"line: {centre} of {seeds} seeds", f"band: {LEVEL:.0%} bootstrap interval"]
    if smooth > 1:
        notes.insert(1, f"running mean of {smooth} points")
    if any(band.crosses for band in bands):
        notes.append("×: a run diverged (a band that holds such runs is open above)")
    return notes
