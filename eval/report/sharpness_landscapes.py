"""Pictures of the loss around a point of the first seed: lines, planes, and the spectrum of its
Hessian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lo_framework.eval.report.palette import looks
from lo_framework.eval.report.sharpness_pictures import arms_of, canvas, legend, png, readable
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
Found = dict[str, Any]


def pictures(result: Result, task: str) -> Iterator[tuple[bytes, str]]:
    """PNG and caption of whatever was measured."""
    if data := lines(result, task):
        yield (
            data,
            "Loss along lines through the point, first seed. Random directions have the length of the weights, filter "
            "by filter, and miss the few sharp directions that there are; along eigenvectors the unit is l2 length. "
            "A curve that is low and wide is flat; compare shapes only where the losses at 0 are equal.",
        )
    for name, words in PLANES.items():
        if data := plane(result, task, name):
            yield (
                data,
                f"Loss on the plane of {words}, first seed, at equal steps; all panels have the same levels, spaced by "
                "the logarithm. The dot is the point itself.",
            )
    if data := density(result, task):
        yield (
            data,
            "Density of the Hessian's eigenvalues, first seed (stochastic Lanczos quadrature; its peaks are as wide as "
            "the method's resolution). The mass at zero is flat directions; what matters is how far the right tail "
            "goes.",
        )


def lines(result: Result, task: str) -> bytes | None:
    found = {name: _slices(result, task, name) for name in LINES}
    found = {name: places for name, places in found.items() if any(places.values())}
    if not found:
        return None
    look = looks(arm.optimizer for arm in arms_of(result, task))
    figure, grid = canvas(len(PLACES), len(found), width=4.2)
    for row, place in zip(grid, PLACES, strict=True):
        for axes, (name, places) in zip(row, found.items(), strict=True):
            for label, curve in places[place].items():
                colour, dashes = look[label]
                y = _array(curve["loss"])
                axes.plot(curve["x"], y, color=colour, dashes=dashes or (None, None), linewidth=1.5)
            axes.set_yscale("log")
            readable(axes.yaxis)
            axes.set_title(f"along {LINES[name]}\n{PLACES[place]}", fontsize=9.5)
            axes.set_ylabel("loss", fontsize=9)
            axes.set_xlabel(
                "distance, in weight norms" if name == "random line" else "distance, l2", fontsize=9
            )
    legend(figure, look)
    return png(figure)


def plane(result: Result, task: str, name: str) -> bytes | None:
    """Filled contours side by side."""
    found = _slices(result, task, name)[EQUAL]
    values = [_array(p["loss"]) for p in found.values()]
    finite = (
        np.concatenate([v[np.isfinite(v) & (v > 0)] for v in values]) if values else np.empty(0)
    )
    if finite.size == 0 or finite.min() == finite.max():
        return None
    columns = min(3, len(found))
    figure, grid = canvas(math.ceil(len(found) / columns), columns, width=3.6, height=3.3)
    low, high = math.log10(finite.min()), math.log10(finite.max())
    levels = np.linspace(low, high, LEVELS)
    drawn: Any = None
    for axes, item in zip(grid.flat, [*found.items(), *[None] * grid.size]):
        if item is None:
            axes.remove()
            continue
        label, p = item
        height = np.log10(np.clip(_array(p["loss"]), 10**low, 10**high))
        drawn = axes.contourf(p["x"], p["y"], height, levels=levels, cmap="viridis", extend="max")
        axes.contour(
            p["x"],
            p["y"],
            height,
            levels=levels,
            colors="white",
            linestyles="solid",
            linewidths=0.4,
            alpha=0.6,
        )
        axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=5)
        axes.set_title(label, fontsize=9.5)
        axes.grid(False)
        axes.set_aspect("equal")
    bar = figure.colorbar(drawn, ax=[axes for axes in grid.flat if axes.figure], shrink=0.85)
    ticks = np.linspace(low, high, 5).tolist()
    bar.set_ticks(ticks, labels=[f"{10**t:.2g}" for t in ticks])
    bar.set_label("loss", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return png(figure)


def density(result: Result, task: str) -> bytes | None:
    found: dict[str, dict[str, Found]] = {place: {} for place in PLACES}
    for arm in arms_of(result, task):
        for place in PLACES:
            point = arm.runs[0].point(place) or {}
            if "density" in point.get("spectrum", {}):
                found[place][arm.optimizer] = point["spectrum"]["density"]
    if not any(found.values()):
        return None
    look = looks(arm.optimizer for arm in arms_of(result, task))
    figure, grid = canvas(1, len(PLACES), width=4.8)
    for axes, place in zip(grid[0], PLACES, strict=True):
        top = 0.0
        for label, curve in found[place].items():
            colour, dashes = look[label]
            y = _array(curve["y"])
            top = max(top, float(np.nanmax(y)))
            axes.plot(
                curve["x"],
                np.where(y > 0, y, np.nan),
                color=colour,
                dashes=dashes or (None, None),
                linewidth=1.2,
            )
        axes.set_yscale("log")
        if top:
            axes.set_ylim(1e-6 * top, 2 * top)
        axes.set_title(PLACES[place], fontsize=9.5)
        axes.set_xlabel("eigenvalue", fontsize=9)
        axes.set_ylabel("density", fontsize=9)
    legend(figure, look)
    return png(figure)


def _slices(result: Result, task: str, name: str) -> dict[str, dict[str, Found]]:
    """place -> optimizer -> slice of the first seed."""
    found: dict[str, dict[str, Found]] = {place: {} for place in PLACES}
    for arm in arms_of(result, task):
        for place in PLACES:
            point = arm.runs[0].point(place) or {}
            if name in point.get("slices", {}):
                found[place][arm.optimizer] = point["slices"][name]
    return found


def _array(values: Any) -> Array:
    return np.array(values, dtype=np.float64)
