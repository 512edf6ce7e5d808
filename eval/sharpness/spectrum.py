"""The parts of a measured point that need the Hessian, and the slices of the loss: for tables and
for pictures.
"""

from __future__ import annotations

from typing import Any

import torch

from lo_framework.eval.sharpness.hessian import (
    ggn_operator,
    hessian_operator,
    spectral_density,
    top_eigenvalues,
    trace,
)
from lo_framework.eval.sharpness.numbers import number, numbers
from lo_framework.eval.sharpness.point import Point
from lo_framework.eval.sharpness.slices import (
    Slice,
    axis,
    filter_normalised,
    loss_line,
    loss_plane,
    random_plane,
)

# of slices: in units of the (filter-normalised) weights, and in l2 length along eigenvectors
EXTENT = 1.0
DENSITY_POINTS = 256
DIGITS = 6  # of what only pictures show


def curvature(point: Point) -> None:
    """The largest eigenvalues and the trace of the Hessian."""
    point.vectors = _matrix(point, hessian_operator(point.surface), "")


def gauss_newton(point: Point) -> None:
    """The same of the Gauss-Newton matrix, where the task is a classifier."""
    operator = ggn_operator(point.surface)
    if operator is not None:
        _matrix(point, operator, "ggn_")


def _matrix(point: Point, operator: Any, prefix: str) -> torch.Tensor:
    found = top_eigenvalues(operator, point.level.eigenvalues)
    total = trace(operator, point.level.trace)
    values = {"top_eigenvalue": found.values[0], "trace": total.value, "trace_stderr": total.stderr}
    point.data["values"] |= {f"{prefix}{name}": number(x) for name, x in values.items()}
    pairs = {"eigenvalues": numbers(found.values), "residuals": numbers(found.residuals)}
    point.data["spectrum"]["ggn" if prefix else "hessian"] = pairs
    return found.vectors


def density(point: Point) -> None:
    found = spectral_density(
        hessian_operator(point.surface),
        probes=point.level.density,
        steps=point.level.lanczos,
        points=DENSITY_POINTS,
    )
    point.data["spectrum"]["density"] = {
        "x": numbers(found.grid, DIGITS),
        "y": numbers(found.density, DIGITS),
    }


def slices(point: Point) -> None:
    """Lines and planes along random directions and, as these miss the few sharp ones, along top
    eigenvectors.
    """
    surface, found = point.surface, point.data["slices"]
    line, plane = axis(EXTENT, point.level.line), axis(EXTENT, point.level.plane)
    if any(len(slot.shape) >= 2 for slot in surface.layout.slots):
        direction = filter_normalised(surface.layout, surface.params, 0)
        found["random line"] = _json(loss_line(surface, direction, line))
        found["random plane"] = _json(
            loss_plane(surface, *random_plane(surface.layout, surface.params, 0), plane)
        )
    if point.vectors is None:
        return
    for i, vector in enumerate(point.vectors[:2]):
        found[f"eigenvector {i + 1}"] = _json(loss_line(surface, vector, line))
    if len(point.vectors) > 1:
        found["eigenvector plane"] = _json(
            loss_plane(surface, point.vectors[0], point.vectors[1], plane)
        )


def _json(found: Slice) -> dict[str, Any]:
    if found.y is None:
        return {"x": numbers(found.x, DIGITS), "loss": numbers(found.losses, DIGITS)}
    rows = [numbers(row, DIGITS) for row in found.losses]
    return {"x": numbers(found.x, DIGITS), "y": numbers(found.y, DIGITS), "loss": rows}
