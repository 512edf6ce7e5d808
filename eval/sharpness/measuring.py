"""Everything that is measured around one point of one run, as plain JSON values.

A part that fails (a loss that is not finite somewhere in a ball) is named with its reason and costs
the others nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from lo_framework.errors import describe
from lo_framework.eval.sharpness.ascent import QUICK, Neighbourhood, doubling_radius, neighbourhoods
from lo_framework.eval.sharpness.ball import Ball, Norm, relative_radii
from lo_framework.eval.sharpness.hessian import (
    ggn_operator,
    hessian_operator,
    spectral_density,
    top_eigenvalues,
    trace,
)
from lo_framework.eval.sharpness.measures import Mean, average_sharpness, m_sharpness
from lo_framework.eval.sharpness.metrics import number, numbers
from lo_framework.eval.sharpness.settings import Level, Settings
from lo_framework.eval.sharpness.slices import Slice, loss_line, loss_plane, random_plane
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.layout import Layout
from lo_framework.native.active import usual_kernels
from lo_framework.optimizees.task import Buffers, Task

SAMPLE_SEED = 0  # the same rows for every run of every optimizer
SPLITS = ("train", "test")
DOUBLING = (0.25, 0.5)  # parts of the doubling radius
# of slices: in units of the (filter-normalised) weights, and in l2 length along eigenvectors
EXTENT = 1.0
DENSITY_POINTS = 256
DIGITS = 6  # of what only pictures show
# of a neighbourhood, by their names in JSON
OF_LOSSES = {
    "max_loss": "max_loss",
    "gap": "gap",
    "curvature": "curvature_part",
    "one_step": "one_step_gap",
}
OF_GRADIENTS = {"max_gradient_norm": "max_gradient_norm", "first_order": "first_order"}


@dataclass
class Point:
    """A point that is being measured.

    Attributes:
        data: JSON values by kind: what was measured so far.
        vectors: top eigenvectors ``[k, N]`` once they are known, for the slices.
        part: what is being measured now.
    """

    surface: Surface
    settings: Settings
    data: dict[str, Any] = field(
        default_factory=lambda: {
            key: {} for key in ("values", "balls", "spectrum", "slices", "failures")
        }
    )
    vectors: Tensor | None = None
    part: str = ""

    @property
    def level(self) -> Level:
        return self.settings.level

    def fail(self, error: Exception, where: str = "") -> None:
        """Say why the current part could not be measured."""
        self.data["failures"][self.part + where] = describe(error)


def measure_point(
    task: Task,
    layout: Layout,
    params: Tensor,
    buffers: Buffers,
    settings: Settings,
    pictures: bool,
    on_work: Callable[[int], None],
) -> dict[str, Any]:
    """Return ``values`` (numbers by name), ``balls``, ``spectrum``, ``slices``, ``cost`` and
    ``failures`` (reasons by part).

    Args:
        params: ``[N]``; buffers of one run.
        pictures: slices too.
        on_work: told of finished units of `work_of`.

    Raises:
        FloatingPointError: the loss at the point itself is not finite.
    """
    began = time.perf_counter()
    rows, train = settings.level.rows, task.full("train")
    surface = Surface(task, layout, params, buffers, train, rows=rows, seed=SAMPLE_SEED)
    point = Point(surface, settings)
    data, here = point.data, surface.gradient_here
    for split in SPLITS:
        with usual_kernels():
            metrics = task.metrics(layout.unflatten(params), buffers, task.full(split))
        data["values"] |= {f"{split}_{name}": number(x) for name, x in metrics.items()}
    data["values"] |= {
        "sample_loss": number(surface.loss_here),
        "gradient_norm": number(here.norm()),
        "weight_norm": number(surface.params.norm()),
        "gradient_curvature": number(surface.curvature_along(surface.params, here)),
    }
    for name, work, measure in _parts(settings, pictures):
        point.part = name
        try:
            measure(point)
        except Exception as error:
            point.fail(error)
        on_work(work)
    data["rows"] = surface.rows
    data["cost"] = {**asdict(surface.used), "seconds": time.perf_counter() - began}
    return data


Part = tuple[str, int, Callable[[Point], None]]


def work_of(settings: Settings, pictures: bool) -> int:
    """Estimate how many gradient evaluations a point takes; for progress bars."""
    return sum(work for _, work, _ in _parts(settings, pictures))


def _parts(settings: Settings, pictures: bool) -> list[Part]:
    """Return what is measured, in order: name, work and how; what the effort lacks has no work."""
    level, radii = settings.level, len(settings.radii)
    starts = 3 + level.ascent.random_starts
    climb = starts * level.ascent.steps
    steep = climb + 3 * starts * level.ascent.norm_steps
    linf = partial(_balls, name="l-infinity", radii=level.linf, norm="linf")
    adaptive = partial(_balls, name="adaptive l2", radii=level.adaptive, adaptive=True)
    parts: list[Part] = [
        ("l2 balls", radii * steep, partial(_balls, name="l2", radii=settings.radii, norms=True)),
        ("relative radii", len(level.relative) * climb, _relative),
        ("doubling radius", level.doubling * 10 * climb, _doubling),
        ("l-infinity balls", len(level.linf) * climb, linf),
        ("adaptive balls", len(level.adaptive) * climb, adaptive),
        ("m-sharpness", len(level.m) * radii * climb, _minibatches),
        ("average case", len(level.sigma) * level.average, _average),
        ("curvature", bool(level.eigenvalues) * 2 * (40 + level.trace), _curvature),
        ("Gauss-Newton matrix", level.ggn * 3 * (40 + level.trace), _gauss_newton),
        ("spectral density", pictures * 3 * level.density * level.lanczos, _density),
        ("slices", pictures * (2 * level.line + level.plane**2 // 2), _slices),
    ]
    return [part for part in parts if part[1]]


def _relative(point: Point) -> None:
    fractions = point.level.relative
    radii, labels = relative_radii(point.surface, fractions), [f"{x:g} ‖w‖" for x in fractions]
    _balls(point, "l2, relative", radii, labels=labels)


def _doubling(point: Point) -> None:
    """Measure the radius r₂ at which the loss has doubled, and gaps on the way there."""
    radius = number(doubling_radius(point.surface))
    point.data["values"]["doubling_radius"] = radius
    if radius is not None:
        radii, labels = [part * radius for part in DOUBLING], [f"{part:g} r₂" for part in DOUBLING]
        _balls(point, "l2, of r₂", radii, labels=labels)


def _minibatches(point: Point) -> None:
    """Measure the mean gap over minibatches; m above the rows of the sample is left out."""
    surface, radii = point.surface, point.settings.radii
    for m in point.level.m:
        if m <= surface.rows:
            means = [m_sharpness(surface, m, r, effort=QUICK) for r in radii]
            point.data["balls"][f"m-sharpness, m = {m}"] = _means(means, radii, "")


def _average(point: Point) -> None:
    samples, sigmas = point.level.average, point.level.sigma
    means = [average_sharpness(point.surface, sigma, samples=samples) for sigma in sigmas]
    point.data["balls"]["average case"] = _means(means, sigmas, "σ = ")


def _means(means: Sequence[Mean], radii: Sequence[float], prefix: str) -> dict[str, list[Any]]:
    gaps = {"gap": numbers(x.value for x in means), "stderr": numbers(x.stderr for x in means)}
    return {"labels": [f"{prefix}{r:g}" for r in radii], "radii": list(radii), **gaps}


def _balls(
    point: Point,
    name: str,
    radii: Sequence[float],
    *,
    norm: Norm = "l2",
    adaptive: bool = False,
    norms: bool = False,
    labels: Sequence[str] = (),
) -> None:
    """Keep one list per quantity, in the order of ascending radii; None from a radius on within
    which the loss is not finite.
    """
    radii, ball = sorted(radii), Ball.of(point.surface, norm, adaptive=adaptive)
    found: list[Neighbourhood] = []
    for count in range(len(radii), 0, -1):
        some = radii[:count]
        try:
            found = neighbourhoods(point.surface, some, ball, point.level.ascent, norms=norms)
            break
        except FloatingPointError as error:
            point.fail(error, f", r = {some[-1]:.4g}")
    missing = [None] * (len(radii) - len(found))
    quantities = OF_LOSSES | OF_GRADIENTS if norms else OF_LOSSES
    columns: dict[str, list[Any]] = {
        key: numbers(getattr(x, field) for x in found) + missing
        for key, field in quantities.items()
    }
    names = list(labels) or [f"{r:g}" for r in radii]
    point.data["balls"][name] = {"labels": names, "radii": radii, **columns}


def _curvature(point: Point) -> None:
    """Measure the largest eigenvalues and the trace of the Hessian."""
    point.vectors = _matrix(point, hessian_operator(point.surface), "hessian", "")


def _gauss_newton(point: Point) -> None:
    """Measure those of the Gauss-Newton matrix, where the task is a classifier."""
    operator = ggn_operator(point.surface)
    if operator is not None:
        _matrix(point, operator, "ggn", "ggn_")


def _matrix(point: Point, operator: Any, name: str, prefix: str) -> Tensor:
    top = top_eigenvalues(operator, point.level.eigenvalues)
    total = trace(operator, point.level.trace)
    values = {"top_eigenvalue": top.values[0], "trace": total.value, "trace_stderr": total.stderr}
    point.data["values"] |= {f"{prefix}{key}": number(x) for key, x in values.items()}
    pairs = {"eigenvalues": numbers(top.values), "residuals": numbers(top.residuals)}
    point.data["spectrum"][name] = pairs
    return top.vectors


def _density(point: Point) -> None:
    level = point.level
    spectrum = spectral_density(
        hessian_operator(point.surface),
        probes=level.density,
        steps=level.lanczos,
        points=DENSITY_POINTS,
    )
    curve = {"x": numbers(spectrum.grid, DIGITS), "y": numbers(spectrum.density, DIGITS)}
    point.data["spectrum"]["density"] = curve


def _slices(point: Point) -> None:
    """Take lines and planes along random directions and, as these miss the few sharp ones, along
    top eigenvectors.
    """
    surface, slices = point.surface, point.data["slices"]
    counts = (point.level.line, point.level.plane)
    line, plane = (np.linspace(-EXTENT, EXTENT, count, dtype=np.float64) for count in counts)
    if any(len(slot.shape) >= 2 for slot in surface.layout.slots):
        first, second = random_plane(surface.layout, surface.params, 0)
        slices["random line"] = _json(loss_line(surface, first, line))
        slices["random plane"] = _json(loss_plane(surface, first, second, plane))
    vectors = [] if point.vectors is None else [*point.vectors[:2]]
    for i, vector in enumerate(vectors):
        slices[f"eigenvector {i + 1}"] = _json(loss_line(surface, vector, line))
    if len(vectors) > 1:
        slices["eigenvector plane"] = _json(loss_plane(surface, vectors[0], vectors[1], plane))


def _json(found: Slice) -> dict[str, Any]:
    x = {"x": numbers(found.x, DIGITS)}
    if found.y is None:
        return {**x, "loss": numbers(found.losses, DIGITS)}
    rows = [numbers(row, DIGITS) for row in found.losses]
    return {**x, "y": numbers(found.y, DIGITS), "loss": rows}
