"""Pictures of the loss around a point of the first seed: lines, planes, and the spectrum of its
Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lo_framework.eval.report import drawing
from lo_framework.eval.report.drawing import label
from lo_framework.eval.report.sharpness.pictures import (
    arms_of,
    canvas,
    curve,
    finish,
    looks_of,
    readable,
    words,
)
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES
from lo_framework.eval.sharpness.result import Result
from lo_framework.eval.statistics import Array

LINES = {
    "random line": "a random direction",
    "eigenvector 1": "the top eigenvector",
    "eigenvector 2": "the second eigenvector",
}
PLANES = {"random plane": "two random directions", "eigenvector plane": "the two top eigenvectors"}
LEVELS = 14
Curves = dict[str, dict[str, Any]]  # by optimizer


def pictures(result: Result, task: str) -> Iterator[tuple[bytes, str]]:
    """Yield PNG and caption of whatever was measured."""
    if data := lines(result, task):
        yield (
            data,
            "Loss along lines through the point, first seed. Random directions have the length of "
            "the weights, filter by filter, and miss the few sharp directions that there are; "
            "along eigenvectors the unit is l2 length. A curve that is low and wide is flat; "
            "compare shapes only where the losses at 0 are equal.",
        )
    for name, directions in PLANES.items():
        if data := plane(result, task, name):
            yield (
                data,
                f"Loss on the plane of {directions}, first seed, at equal steps; all panels have "
                "the same levels, spaced by the logarithm. The dot is the point itself.",
            )
    if data := density(result, task):
        yield (
            data,
            "Density of the Hessian's eigenvalues, first seed (stochastic Lanczos quadrature; its "
            "peaks are as wide as the method's resolution). The mass at zero is flat directions; "
            "what matters is how far the right tail goes.",
        )


def lines(result: Result, task: str) -> bytes | None:
    shown = {name: _of_first_seed(result, task, "slices", name) for name in LINES}
    shown = {name: places for name, places in shown.items() if any(places.values())}
    if not shown:
        return None
    look = looks_of(arms_of(result, task))
    figure, grid = canvas(len(PLACES), len(shown), width=4.2)
    for row, place in zip(grid, PLACES, strict=True):
        for axes, (name, places) in zip(row, shown.items(), strict=True):
            for optimizer, one in places[place].items():
                curve(axes, one["x"], _array(one["loss"]), look[optimizer], 1.5)
            axes.set_yscale("log")
            readable(axes.yaxis)
            unit = "in weight norms" if name == "random line" else "l2"
            words(axes, f"along {LINES[name]}\n{PLACES[place]}", f"distance, {unit}", "loss")
    return finish(figure, look)


def plane(result: Result, task: str, name: str) -> bytes | None:
    """Draw filled contours side by side."""
    planes = _of_first_seed(result, task, "slices", name)[EQUAL]
    losses = [_array(p["loss"]).ravel() for p in planes.values()]
    values = np.concatenate([*losses, np.empty(0)])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size == 0 or values.min() == values.max():
        return None
    columns = min(3, len(planes))
    rows = math.ceil(len(planes) / columns)
    figure, grid = canvas(rows, columns, width=3.6, height=3.3)
    panels = [*grid.flat]
    for axes in panels[len(planes) :]:
        axes.remove()
    low, high = math.log10(values.min()), math.log10(values.max())
    levels = np.linspace(low, high, LEVELS)
    drawn: Any = None
    for axes, (optimizer, p) in zip(panels, planes.items()):
        height = np.log10(np.clip(_array(p["loss"]), 10**low, 10**high))
        surface = (p["x"], p["y"], height)
        drawn = axes.contourf(*surface, levels=levels, cmap="viridis", extend="max")
        thin = dict(colors="white", linestyles="solid", linewidths=0.4, alpha=0.6)
        axes.contour(*surface, levels=levels, **thin)
        axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=5)
        axes.set_title(label(optimizer), fontsize=9.5)
        axes.grid(False)
        axes.set_aspect("equal")
    bar = figure.colorbar(drawn, ax=panels[: len(planes)], shrink=0.85)
    ticks = np.linspace(low, high, 5).tolist()
    bar.set_ticks(ticks, labels=[f"{10**t:.2g}" for t in ticks])
    bar.set_label("loss", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return drawing.png(figure, 110)


def density(result: Result, task: str) -> bytes | None:
    places = _of_first_seed(result, task, "spectrum", "density")
    if not any(places.values()):
        return None
    look = looks_of(arms_of(result, task))
    figure, grid = canvas(1, len(PLACES), width=4.8)
    for axes, place in zip(grid[0], PLACES, strict=True):
        top = 0.0
        for optimizer, one in places[place].items():
            y = _array(one["y"])
            top = max(top, float(np.nanmax(y)))
            curve(axes, one["x"], np.where(y > 0, y, np.nan), look[optimizer], 1.2)
        axes.set_yscale("log")
        if top:
            axes.set_ylim(1e-6 * top, 2 * top)
        words(axes, PLACES[place], "eigenvalue", "density")
    return finish(figure, look)


def _of_first_seed(result: Result, task: str, kind: str, name: str) -> dict[str, Curves]:
    """Return what was measured at each place, for each optimizer that has it."""
    found: dict[str, Curves] = {place: {} for place in PLACES}
    for arm in arms_of(result, task):
        for place in PLACES:
            point = arm.runs[0].point(place) or {}
            if name in point.get(kind, {}):
                found[place][arm.optimizer] = point[kind][name]
    return found


def _array(values: Any) -> Array:
    return np.array(values, dtype=np.float64)
