"""The pictures of a sharpness evaluation: curves against the radius, along the run, scatter.

Slices and spectra are in `landscapes`.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report import drawing
from lo_framework.eval.report.drawing import (
    Look,
    curve,
    label,
    line_handle,
    looks,
    open_frame,
    readable_ticks,
)
from lo_framework.eval.sharpness.matched import at_equal, shared_levels
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES
from lo_framework.eval.sharpness.result import Arm, Result
from lo_framework.eval.statistics import Array, kendall_tau, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES = {
    "gap": "surrogate gap h(r)",
    "first_order": "first-order R1(r)",
    "curvature": "curvature part h(r) − r‖∇L‖",
}
PROBED = {
    "cosine_correction": "Cosine of the update with minus the regularizer's correction of the "
    "gradient.",
    "cosine_orthogonal": "The same for what is left of both beside the gradient's direction: above "
    "zero, the update bends where the regularizer would bend it, whatever its length. Hand-made "
    "optimizers show what momentum and scaling alone give; only what goes beyond them speaks for "
    "an absorbed regularizer.",
}


def canvas(count: int, columns: int, width: float, height: float = 3.1) -> tuple[Figure, list[Any]]:
    """Return a figure and the axes of ``count`` panels, row by row; room for a legend below."""
    figure, grid = drawing.canvas(count, columns, (width, height))
    for axes in grid:
        open_frame(axes, "", grid="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    return figure, grid


def words(axes: Any, title: str, x: str, y: str = "") -> None:
    """Write what a panel and its axes show."""
    axes.set_title(title, fontsize=9.5)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def finish(figure: Figure, look: dict[str, Look], **options: Any) -> Figure:
    """Draw the legend; return the picture."""
    drawing.legend(figure, [line_handle(label(x), own, **options) for x, own in look.items()])
    return figure


def arms_of(result: Result, task: str) -> dict[str, Arm]:
    """Return those that have runs; learned ones last, so that they are drawn on top."""
    arms = {name: result.arm(task, name) for name in result.baselines + result.learned}
    return {name: arm for name, arm in arms.items() if any(run.equal for run in arm.runs)}


def line(axes: Any, x: Any, y: Array, look: Look, log: bool = False) -> None:
    """Draw the mean of ``y [S, P]`` over seeds with its 95% interval at each point; with ``log``
    both of the logarithms.
    """
    values = np.log(np.where(y > 0, y, np.nan)) if log else y
    bands = np.array([_band(column[np.isfinite(column)]) for column in values.T]).T
    low, centre, high = np.exp(bands) if log else bands
    axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)
    curve(axes, x, centre, look, 1.6, marker="o", markersize=3)


def _band(column: Array) -> tuple[float, float, float]:
    """Return the mean between the ends of its interval; no interval of one value, and no end so far
    out that its exponential overflows.
    """
    if column.size == 0:
        return math.nan, math.nan, math.nan
    estimate = mean_interval(column)
    half = min(estimate.high - estimate.value, 50.0) if column.size > 1 else 0.0
    return estimate.value - half, estimate.value, estimate.value + half


def radii(result: Result, task: str) -> Figure:
    """Draw h, R1 and the curvature part against the radius, at equal steps above and at matched
    loss below.
    """
    arms = arms_of(result, task)
    look = looks(arms)
    figure, grid = canvas(len(PLACES) * len(QUANTITIES), len(QUANTITIES), 3.9)
    x = result.settings["radii"]
    shown = product(PLACES.items(), QUANTITIES.items())
    for axes, ((place, where), (field, title)) in zip(grid, shown, strict=True):
        keys = [f"l2.{field}@{r:g}" for r in x]
        values = {
            name: np.array([arm.values(key, place) for key in keys]).T for name, arm in arms.items()
        }
        everything = np.concatenate([y.ravel() for y in values.values()])
        # The curvature part may be negative; where no run's is, it is drawn like the others.
        log = bool((everything[np.isfinite(everything)] > 0).all())
        for name, y in values.items():
            line(axes, x, y, look[name], log)
        axes.set_xscale("log")
        if log:
            axes.set_yscale("log")
        else:
            _signed_log(axes, everything)
        words(axes, f"{title}\n{where}", "radius r")
    return finish(figure, look)


def _signed_log(axes: Any, values: Array) -> None:
    """Make an axis logarithmic on both sides of zero and linear below the smallest value, with
    three labels per side, so that none overlap.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    smallest = float(sizes.min()) if sizes.size else 1e-6
    axes.set_yscale("symlog", linthresh=smallest)
    axes.axhline(0, color="0.5", linewidth=0.8)
    low, high = axes.get_ylim()
    largest = max(-low, high, 10 * smallest)
    decades = range(math.ceil(math.log10(smallest)), math.ceil(math.log10(largest)) + 1)
    every = math.ceil(len(decades) / 3)
    ticks = [sign * 10.0**k for k in decades[::-every] for sign in (1, -1)]
    shown = sorted([0.0, *(t for t in ticks if low <= t <= high)])
    axes.yaxis.set_major_locator(FixedLocator(shown))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)


def training(result: Result, task: str) -> Figure:
    """Draw full-split training loss against steps and path length, with the measured points."""
    arms = arms_of(result, task)
    look = looks(arms)
    figure, grid = canvas(2, 2, 4.6)
    for name, arm in arms.items():
        for run in arm.runs:
            watch = {key: np.array(x, float) for key, x in run.train.get("watch", {}).items()}
            for axes, key in zip(grid, ("steps", "path") if watch else ()):
                curve(axes, watch[key], watch["loss"], look[name], 1.0, alpha=0.8)
                at = watch["steps"] == run.step
                dot = dict(markersize=5, markeredgecolor="white", zorder=4)
                axes.plot(watch[key][at], watch["loss"][at], "o", color=look[name].colour, **dot)
    for axes, x_words in zip(grid, ("step", "path length: sum of ‖update‖"), strict=True):
        axes.set_yscale("log")
        readable_ticks(axes.yaxis)
        words(axes, "", x_words, "training loss, evaluation mode")
    return finish(figure, look)


def scatter(result: Result, task: str, key: str, title: str) -> Figure | None:
    """Draw test accuracy (or test loss) against a sharpness at both places; None if there is
    nothing to draw.
    """
    arms = arms_of(result, task)
    look = looks(arms)
    accuracy = any(np.isfinite(arm.values("test_accuracy", EQUAL)).any() for arm in arms.values())
    outcome = "test_accuracy" if accuracy else "test_loss"
    figure, grid = canvas(2, 2, 4.6)
    drawn = False
    for axes, place in zip(grid, PLACES, strict=True):
        points = [(arm.values(key, place), arm.values(outcome, place)) for arm in arms.values()]
        for name, (x, y) in zip(arms, points, strict=True):
            both = np.isfinite(x) & np.isfinite(y)
            drawn = drawn or bool(both.any())
            style = dict(s=30, alpha=0.85, edgecolor="white", linewidth=0.6)
            axes.scatter(x[both], y[both], color=look[name].colour, **style)
        x, y = (np.concatenate([pair[i] for pair in points]) for i in (0, 1))
        tau = kendall_tau(x, y)
        if np.isfinite(x).any() and np.nanmin(x) > 0:
            axes.set_xscale("log")
            readable_ticks(axes.xaxis)
        shown = "undefined" if math.isnan(tau) else f"{tau:+.2f}"
        words(axes, f"{PLACES[place]}: Kendall τ = {shown}", title, outcome.replace("_", " "))
    return finish(figure, look, marker="o", linewidth=0) if drawn else None


def probe(result: Result, task: str, field: str) -> Figure | None:
    """Draw ``field`` of the probe at equal training loss and at equal path length; None without a
    probe.
    """
    runs = {
        name: [
            {key: np.array(x, float) for key, x in run.train["probe"].items()}
            for run in arm.runs
            if run.train.get("probe")
        ]
        for name, arm in arms_of(result, task).items()
    }
    runs = {name: probed for name, probed in runs.items() if probed}
    if not runs:
        return None
    look = looks(runs)
    figure, grid = canvas(2, 2, 4.6)
    sides = (("loss", True, "training loss (falls to the right)"), ("path", False, "path length"))
    for axes, (key, falling, x_words) in zip(grid, sides, strict=True):
        along = [run[key] for probed in runs.values() for run in probed]
        levels = shared_levels(along, falling=falling)
        if levels.size == 0:
            none, middle = "the runs share no range", dict(ha="center", color="0.4")
            axes.text(0.5, 0.5, none, transform=axes.transAxes, **middle)
            continue
        for name, probed in runs.items():
            rows = [at_equal(run[key], run[field], levels, falling=falling) for run in probed]
            line(axes, levels, np.concatenate(rows), look[name])
        axes.axhline(0, color="0.5", linewidth=0.8)
        words(axes, "", x_words, "cosine")
        if falling:
            axes.set_xscale("log")
            readable_ticks(axes.xaxis)
            axes.invert_xaxis()
    return finish(figure, look)
