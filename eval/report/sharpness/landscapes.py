"""Pictures of the loss around a point of the first seed: lines, planes, and the spectrum of its
Hessian.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from lo_framework.eval.report.drawing import curve, label, looks, readable_ticks
from lo_framework.eval.report.sharpness.pictures import (
    arms_of,
    canvas,
    finish,
    words,
)
from lo_framework.eval.sharpness.metrics import EQUAL, PLACES
from lo_framework.eval.sharpness.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {
    "random line": "a random direction",
    "eigenvector 1": "the top eigenvector",
    "eigenvector 2": "the second eigenvector",
}
PLANES = {"random plane": "two random directions", "eigenvector plane": "the two top eigenvectors"}
LEVELS = 14
Curves = dict[str, dict[str, Any]]  # by optimizer


def pictures(result: Result, task: str) -> Iterator[tuple[Figure | None, str]]:
    """Yield picture and caption; None of what was not measured."""
    yield (
        lines(result, task),
        "Loss along lines through the point, first seed. Random directions have the length of "
        "the weights, filter by filter, and miss the few sharp directions that there are; "
        "along eigenvectors the unit is l2 length. A curve that is low and wide is flat; "
        "compare shapes only where the losses at 0 are equal.",
    )
    for name, directions in PLANES.items():
        yield (
            plane(result, task, name),
            f"Loss on the plane of {directions}, first seed, at equal steps; all panels have "
            "the same levels, spaced by the logarithm. The dot is the point itself.",
        )
    yield (
        density(result, task),
        "Density of the Hessian's eigenvalues, first seed (stochastic Lanczos quadrature; its "
        "peaks are as wide as the method's resolution). The mass at zero is flat directions; "
        "what matters is how far the right tail goes.",
    )


def lines(result: Result, task: str) -> Figure | None:
    shown = {name: _of_first_seed(result, task, "slices", name) for name in LINES}
    shown = {name: places for name, places in shown.items() if any(places.values())}
    if not shown:
        return None
    look = looks(arms_of(result, task))
    figure, grid = canvas(len(PLACES) * len(shown), len(shown), 4.2)
    for axes, (place, name) in zip(grid, product(PLACES, shown), strict=True):
        for optimizer, one in shown[name][place].items():
            curve(axes, one["x"], np.array(one["loss"], float), look[optimizer], 1.5)
        axes.set_yscale("log")
        readable_ticks(axes.yaxis)
        unit = "in weight norms" if name == "random line" else "l2"
        words(axes, f"along {LINES[name]}\n{PLACES[place]}", f"distance, {unit}", "loss")
    return finish(figure, look)


def plane(result: Result, task: str, name: str) -> Figure | None:
    """Draw filled contours side by side."""
    planes = _of_first_seed(result, task, "slices", name)[EQUAL]
    losses = {optimizer: np.array(p["loss"], float) for optimizer, p in planes.items()}
    values = np.concatenate([*map(np.ravel, losses.values()), np.empty(0)])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size == 0 or values.min() == values.max():
        return None
    figure, grid = canvas(len(planes), min(3, len(planes)), 3.6, 3.3)
    low, high = math.log10(values.min()), math.log10(values.max())
    levels = np.linspace(low, high, LEVELS)
    drawn: Any = None
    for axes, (optimizer, p) in zip(grid, planes.items(), strict=True):
        height = np.log10(np.clip(losses[optimizer], 10**low, 10**high))
        surface = (p["x"], p["y"], height)
        drawn = axes.contourf(*surface, levels=levels, cmap="viridis", extend="max")
        thin = dict(colors="white", linestyles="solid", linewidths=0.4, alpha=0.6)
        lines = axes.contour(*surface, levels=levels, **thin)
        with warnings.catch_warnings():
            # matplotlib 3.10, the last one for Python 3.10, says that it will not, and does
            warnings.filterwarnings("ignore", "Rasterization of", UserWarning)
            for outlines in (drawn, lines):  # hundreds; the rest of a picture stays sharp
                outlines.set_rasterized(True)
        axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=5)
        axes.set_title(label(optimizer), fontsize=9.5)
        axes.grid(False)
        axes.set_aspect("equal")
    bar = figure.colorbar(drawn, ax=grid, shrink=0.85)
    ticks = np.linspace(low, high, 5).tolist()
    bar.set_ticks(ticks, labels=[f"{10**t:.2g}" for t in ticks])
    bar.set_label("loss", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def density(result: Result, task: str) -> Figure | None:
    places = _of_first_seed(result, task, "spectrum", "density")
    if not any(places.values()):
        return None
    look = looks(arms_of(result, task))
    figure, grid = canvas(len(PLACES), len(PLACES), 4.8)
    for axes, place in zip(grid, PLACES, strict=True):
        top = 0.0
        for optimizer, one in places[place].items():
            y = np.array(one["y"], float)
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
    for optimizer, arm in arms_of(result, task).items():
        for place in PLACES:
            point = arm.runs[0].point(place) or {}
            if name in point.get(kind, {}):
                found[place][optimizer] = point[kind][name]
    return found
