"""The pictures of a sharpness evaluation, each a PNG in memory: curves against the radius, along
the run, scatter.

Landscapes (slices, spectra) are in `eval.report.sharpness_landscapes`. Only matplotlib's object
interface is used, imported when first needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report.palette import Look, looks
from lo_framework.eval.sharpness.matched import shared_levels
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES, read
from lo_framework.eval.sharpness.probe import at_equal
from lo_framework.eval.sharpness.result import Arm, Result, SeedRun
from lo_framework.eval.statistics import Array, kendall_tau, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES = {
    "gap": "surrogate gap h(r)",
    "first_order": "first-order R1(r) = r N1(r)",
    "curvature": "curvature part h(r) − r‖∇L‖",
}
PROBED = {
    "cosine_correction": "Cosine of the update with minus the regularizer's correction of the gradient.",
    "cosine_orthogonal": "The same for what is left of both beside the gradient's direction: above zero, the update "
    "bends where the regularizer would bend it, whatever its length. Hand-made optimizers show what momentum and "
    "scaling alone give; only what goes beyond them speaks for an absorbed regularizer.",
}


def canvas(rows: int, columns: int, width: float = 3.9, height: float = 3.1) -> tuple[Figure, Any]:
    """A figure and its axes ``[rows, columns]``; room for a legend below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.6, width * columns), height * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(True, which="major", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, grid


def png(figure: Figure) -> bytes:
    """The same data give the same bytes: no software version inside."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def legend(figure: Figure, look: dict[str, Look], marker: str = "") -> None:
    from matplotlib.lines import Line2D

    handles = []
    for label, (colour, dashes) in look.items():
        line = Line2D(
            [], [], color=colour, linewidth=0 if marker else 1.8, label=label, marker=marker or None
        )
        if dashes and not marker:
            line.set_dashes(dashes)
        handles.append(line)
    fit = int(figure.get_figwidth() / (0.6 + 0.072 * max(len(label) for label in look)))
    columns = max(1, min(fit, len(handles)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )


def arms_of(result: Result, task: str) -> list[Arm]:
    """Those that have runs; learned ones last, so that they are drawn on top."""
    found = [result.arm(task, label) for label in result.baselines + result.learned]
    return [arm for arm in found if any(run.equal for run in arm.runs)]


def line(axes: Any, x: Any, y: Array, look: Look, log: bool = False) -> None:
    """Mean of ``y [S, P]`` over seeds with its 95% interval at each point; with ``log`` both of the
    logarithms.
    """
    values = np.log(np.where(y > 0, y, np.nan)) if log else y
    back: Callable[[float], float] = math.exp if log else float
    bands = [_band(column[np.isfinite(column)]) for column in values.T]
    centre, low, high = ([back(value) for value in one] for one in zip(*bands, strict=True))
    axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)
    axes.plot(
        x,
        centre,
        color=look.colour,
        dashes=look.dashes or (None, None),
        linewidth=1.6,
        marker="o",
        markersize=3,
    )


def _band(column: Array) -> tuple[float, float, float]:
    """Mean and ends of its interval; of one value no interval, and of logarithms none that
    overflows.
    """
    if column.size == 0:
        return math.nan, math.nan, math.nan
    estimate = mean_interval(column)
    if not math.isfinite(estimate.low):
        return (estimate.value,) * 3
    return (
        estimate.value,
        max(estimate.low, estimate.value - 50),
        min(estimate.high, estimate.value + 50),
    )


def radii(result: Result, task: str) -> bytes:
    """h, R1 and the curvature part against the radius, at equal steps above and at matched loss
    below.
    """
    arms = arms_of(result, task)
    look = looks(arm.optimizer for arm in arms)
    figure, grid = canvas(len(PLACES), len(QUANTITIES))
    x = result.settings["radii"]
    for row, place in zip(grid, PLACES, strict=True):
        for axes, (field, title) in zip(row, QUANTITIES.items(), strict=True):
            found = {arm.optimizer: _against_radius(arm, field, x, place) for arm in arms}
            # The curvature part may be negative; where no run's is, it is drawn like the others.
            log = all((y[np.isfinite(y)] > 0).all() for y in found.values())
            for label, y in found.items():
                line(axes, x, y, look[label], log)
            axes.set_xscale("log")
            if log:
                axes.set_yscale("log")
            else:
                _signed_log(axes, np.concatenate([y.ravel() for y in found.values()]))
            axes.set_title(f"{title}\n{PLACES[place]}", fontsize=9.5)
            axes.set_xlabel("radius r", fontsize=9)
    legend(figure, look)
    return png(figure)


def _signed_log(axes: Any, values: Array) -> None:
    """Logarithmic on both sides of zero, linear below the smallest value; three labels a side, so
    that none overlap.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    smallest = float(sizes.min()) if sizes.size else 1e-6
    axes.set_yscale("symlog", linthresh=smallest)
    axes.axhline(0, color="0.5", linewidth=0.8)
    low, high = axes.get_ylim()
    decades = range(
        math.ceil(math.log10(smallest)), math.ceil(math.log10(max(-low, high, 10 * smallest))) + 1
    )
    every = math.ceil(len(decades) / 3)
    ticks = [sign * 10.0**k for k in decades[::-every] for sign in (1, -1)]
    axes.yaxis.set_major_locator(
        FixedLocator(sorted([0.0, *(t for t in ticks if low <= t <= high)]))
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)


def _against_radius(arm: Arm, field: str, x: Sequence[float], place: str) -> Array:
    return np.array([[read(run.point(place), f"l2.{field}@{r:g}") for r in x] for run in arm.runs])


def training(result: Result, task: str) -> bytes:
    """Full-split training loss against steps and path length, with the points that are measured."""
    arms = arms_of(result, task)
    look = looks(arm.optimizer for arm in arms)
    figure, grid = canvas(1, 2, width=4.6)
    for arm in arms:
        own = look[arm.optimizer]
        for run in arm.runs:
            watch = run.train.get("watch")
            if not watch:
                continue
            loss = np.array(watch["loss"], dtype=np.float64)
            for axes, key in zip(grid[0], ("steps", "path"), strict=True):
                x = np.array(watch[key], dtype=np.float64)
                axes.plot(
                    x,
                    loss,
                    color=own.colour,
                    dashes=own.dashes or (None, None),
                    linewidth=1.0,
                    alpha=0.8,
                )
                if run.step is not None and run.step in watch["steps"]:
                    at = watch["steps"].index(run.step)
                    axes.plot(
                        x[at],
                        loss[at],
                        "o",
                        color=own.colour,
                        markersize=5,
                        markeredgecolor="white",
                        zorder=4,
                    )
    for axes, words in zip(grid[0], ("step", "path length: sum of ‖update‖"), strict=True):
        axes.set_yscale("log")
        readable(axes.yaxis)
        axes.set_xlabel(words, fontsize=9)
        axes.set_ylabel("training loss, evaluation mode", fontsize=9)
    legend(figure, look)
    return png(figure)


def scatter(result: Result, task: str, key: str, title: str) -> bytes | None:
    """Test accuracy (or test loss) against a sharpness at both places; None if there is nothing to
    draw.
    """
    arms = arms_of(result, task)
    look = looks(arm.optimizer for arm in arms)
    accuracy = any(np.isfinite(arm.values("test_accuracy", EQUAL)).any() for arm in arms)
    outcome, words = ("test_accuracy", "test accuracy") if accuracy else ("test_loss", "test loss")
    figure, grid = canvas(1, 2, width=4.6)
    drawn = False
    for axes, place in zip(grid[0], PLACES, strict=True):
        points = {
            arm.optimizer: (arm.values(key, place), arm.values(outcome, place)) for arm in arms
        }
        for label, (x, y) in points.items():
            both = np.isfinite(x) & np.isfinite(y)
            drawn = drawn or bool(both.any())
            axes.scatter(
                x[both],
                y[both],
                s=30,
                color=look[label].colour,
                alpha=0.85,
                edgecolor="white",
                linewidth=0.6,
            )
        x, y = (np.concatenate([pair[i] for pair in points.values()]) for i in (0, 1))
        tau = kendall_tau(x, y)
        shown = "undefined" if math.isnan(tau) else f"{tau:+.2f}"
        if np.isfinite(x).any() and np.nanmin(x) > 0:
            axes.set_xscale("log")
            readable(axes.xaxis)
        axes.set_title(f"{PLACES[place]}: Kendall τ = {shown}", fontsize=9.5)
        axes.set_xlabel(title, fontsize=9)
        axes.set_ylabel(words, fontsize=9)
    legend(figure, look, marker="o")
    return png(figure) if drawn else None


def readable(axis: Any) -> None:
    """Plain numbers on a logarithmic axis that spans less than two decades; call when everything is
    drawn.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if 0 < low < high < 100 * low:
        span = high / low
        fine = (
            1.0,
            1.1,
            1.2,
            1.3,
            1.4,
            1.5,
            1.6,
            1.8,
            2.0,
            2.5,
            3.0,
            3.5,
            4.0,
            4.5,
            5.0,
            5.5,
            6.0,
            7.0,
            8.0,
            9.0,
        )
        coarse = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if span < 8 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=fine if span < 3 else coarse))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
        axis.set_minor_formatter(NullFormatter())


def probe(result: Result, task: str, field: str) -> bytes | None:
    """``field`` of the probe at equal training loss and at equal path length; None without a probe."""
    arms = arms_of(result, task)
    runs = {arm.optimizer: [run for run in arm.runs if run.train.get("probe")] for arm in arms}
    runs = {label: found for label, found in runs.items() if found}
    if not runs:
        return None
    look = looks(runs)
    figure, grid = canvas(1, 2, width=4.6)
    for axes, (key, falling, words) in zip(
        grid[0],
        (("loss", True, "training loss (falls to the right)"), ("path", False, "path length")),
        strict=True,
    ):
        levels = shared_levels(
            [_probed(run, key) for found in runs.values() for run in found], falling=falling
        )
        if levels.size == 0:
            axes.text(
                0.5,
                0.5,
                "the runs share no range",
                ha="center",
                transform=axes.transAxes,
                color="0.4",
            )
            continue
        for label, found in runs.items():
            y = np.concatenate(
                [
                    at_equal(_probed(run, key), _probed(run, field), levels, falling=falling)
                    for run in found
                ]
            )
            line(axes, levels, y, look[label])
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set_xlabel(words, fontsize=9)
        axes.set_ylabel("cosine", fontsize=9)
        if falling:
            axes.set_xscale("log")
            readable(axes.xaxis)
            axes.invert_xaxis()
    legend(figure, look)
    return png(figure)


def _probed(run: SeedRun, field: str) -> Array:
    return np.array(run.train["probe"][field], dtype=np.float64)
