"""Everything that is measured around one point of one run, as plain JSON values.

A part that fails (a loss that is not finite somewhere in a ball) is named with its reason and costs
the others nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from lo_framework.eval.sharpness import spectrum
from lo_framework.eval.sharpness.ascent import QUICK, Neighbourhood, doubling_radius, neighbourhoods
from lo_framework.eval.sharpness.ball import Ball, relative_radii
from lo_framework.eval.sharpness.measures import Mean, average_sharpness, m_sharpness
from lo_framework.eval.sharpness.numbers import number, numbers
from lo_framework.eval.sharpness.point import Point
from lo_framework.eval.sharpness.settings import Settings
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.layout import Layout
from lo_framework.protocols import Buffers, Task

SAMPLE_SEED = 0  # the same rows for every run of every optimizer
SPLITS = ("train", "test")
DOUBLING = (0.25, 0.5)  # parts of the doubling radius


def measure_point(
    task: Task,
    layout: Layout,
    params: Tensor,
    buffers: Buffers,
    settings: Settings,
    *,
    pictures: bool,
    on_work: Callable[[int], None],
) -> dict[str, Any]:
    """``values`` (numbers by name), ``balls``, ``spectrum``, ``slices``, ``cost`` and ``failures``
    (reasons by part).

    Args:
        params: ``[N]``; buffers of one run.
        pictures: slices too.
        on_work: told of finished units of `work_of`.

    Raises:
        FloatingPointError: the loss at the point itself is not finite.
    """
    began = time.perf_counter()
    surface = Surface(
        task,
        layout,
        params,
        buffers,
        task.full("train"),
        rows=settings.level.rows,
        seed=SAMPLE_SEED,
    )
    values: dict[str, float | None] = {}
    for split in SPLITS:
        for name, x in task.metrics(layout.unflatten(params), buffers, task.full(split)).items():
            values[f"{split}_{name}"] = number(x)
    values |= {
        "sample_loss": number(surface.loss_here),
        "gradient_norm": number(surface.gradient_here.norm()),
        "weight_norm": number(surface.params.norm()),
        "gradient_curvature": number(
            surface.curvature_along(surface.params, surface.gradient_here)
        ),
    }
    point = Point(surface, settings)
    data = point.data
    data["values"] |= values
    for name, work, measure in _parts(settings, pictures):
        try:
            measure(point)
        except Exception as error:
            point.fail(name, error)
        on_work(work)
    used = surface.used
    seconds = {"seconds": time.perf_counter() - began}
    data["rows"] = surface.rows
    data["cost"] = {
        "losses": used.losses,
        "gradients": used.gradients,
        "hvps": used.hvps,
        **seconds,
    }
    return data


def work_of(settings: Settings, pictures: bool) -> int:
    """About how many gradient evaluations a point takes; for progress bars."""
    return sum(work for _, work, _ in _parts(settings, pictures))


Part = tuple[str, int, Callable[[Point], None]]


def _parts(settings: Settings, pictures: bool) -> list[Part]:
    level = settings.level
    starts = 3 + level.ascent.random_starts
    climb, steep = (
        starts * level.ascent.steps,
        starts * (level.ascent.steps + 3 * level.ascent.norm_steps),
    )
    parts: list[Part] = [("l2 balls", len(settings.radii) * steep, _l2)]
    if level.relative:
        parts.append(("relative radii", len(level.relative) * climb, _relative))
    if level.doubling:
        parts.append(("doubling radius", 10 * climb, _doubling))
    if level.linf:
        parts.append(("l-infinity balls", len(level.linf) * climb, _linf))
    if level.adaptive:
        parts.append(("adaptive balls", len(level.adaptive) * climb, _adaptive))
    if level.m:
        parts.append(("m-sharpness", len(level.m) * len(settings.radii) * climb, _minibatches))
    if level.sigma:
        parts.append(("average case", len(level.sigma) * level.average, _average))
    spectra: list[Part] = []
    if level.eigenvalues:
        spectra.append(("curvature", 2 * (40 + level.trace), spectrum.curvature))
    if level.ggn:
        spectra.append(("Gauss-Newton matrix", 3 * (40 + level.trace), spectrum.gauss_newton))
    if pictures and level.density:
        spectra.append(("spectral density", 3 * level.density * level.lanczos, spectrum.density))
    if pictures:
        spectra.append(("slices", 2 * level.line + level.plane**2 // 2, spectrum.slices))
    return [*parts, *spectra]


def _l2(point: Point) -> None:
    point.data["balls"]["l2"] = _ball(
        point, "l2 balls", Ball.of(point.surface), point.settings.radii, norms=True
    )


def _relative(point: Point) -> None:
    ball, fractions = Ball.of(point.surface), point.level.relative
    labels = [f"{fraction:g} ‖w‖" for fraction in fractions]
    found = _ball(
        point, "relative radii", ball, relative_radii(point.surface, fractions), labels=labels
    )
    point.data["balls"]["l2, relative"] = found


def _linf(point: Point) -> None:
    ball = Ball.of(point.surface, "linf")
    point.data["balls"]["l-infinity"] = _ball(point, "l-infinity balls", ball, point.level.linf)


def _adaptive(point: Point) -> None:
    ball = Ball.of(point.surface, adaptive=True)
    point.data["balls"]["adaptive l2"] = _ball(point, "adaptive balls", ball, point.level.adaptive)


def _doubling(point: Point) -> None:
    """The radius r₂ at which the loss has doubled, and what is on the way there."""
    radius = number(doubling_radius(point.surface))
    point.data["values"]["doubling_radius"] = radius
    if radius is not None:
        radii, labels = [part * radius for part in DOUBLING], [f"{part:g} r₂" for part in DOUBLING]
        point.data["balls"]["l2, of r₂"] = _ball(
            point, "doubling radius", Ball.of(point.surface), radii, labels=labels
        )


def _minibatches(point: Point) -> None:
    """Minibatches of the sample; m above its rows is left out."""
    for m in point.level.m:
        if m <= point.surface.rows:
            found = [m_sharpness(point.surface, m, r, effort=QUICK) for r in point.settings.radii]
            point.data["balls"][f"m-sharpness, m = {m}"] = _means(found, point.settings.radii, "")


def _average(point: Point) -> None:
    sigmas = point.level.sigma
    found = [
        average_sharpness(point.surface, sigma, samples=point.level.average) for sigma in sigmas
    ]
    point.data["balls"]["average case"] = _means(found, sigmas, "σ = ")


def _means(found: Sequence[Mean], radii: Sequence[float], prefix: str) -> dict[str, list[Any]]:
    means = {"gap": numbers(x.value for x in found), "stderr": numbers(x.stderr for x in found)}
    return {"labels": [f"{prefix}{r:g}" for r in radii], "radii": list(radii), **means}


def _ball(
    point: Point,
    what: str,
    ball: Ball,
    radii: Sequence[float],
    *,
    norms: bool = False,
    labels: Sequence[str] = (),
) -> dict[str, list[Any]]:
    """One list per quantity, in the order of ascending radii; None from a radius on within which
    the loss is not finite.
    """
    radii = sorted(radii)
    found: list[Neighbourhood] = []
    for count in range(len(radii), 0, -1):
        try:
            found = neighbourhoods(
                point.surface, radii[:count], ball, point.level.ascent, norms=norms
            )
            break
        except FloatingPointError as error:
            point.fail(f"{what}, r = {radii[count - 1]:.4g}", error)
    missing = [None] * (len(radii) - len(found))

    def column(values: Iterable[float]) -> list[float | None]:
        return numbers(values) + missing

    columns = {
        "max_loss": column(x.max_loss for x in found),
        "gap": column(x.gap for x in found),
        "curvature": column(x.curvature_part for x in found),
        "one_step": column(x.one_step_gap for x in found),
    }
    if norms:
        columns["max_gradient_norm"] = column(x.max_gradient_norm for x in found)
        columns["first_order"] = column(x.first_order for x in found)
    return {"labels": list(labels) or [f"{r:g}" for r in radii], "radii": list(radii), **columns}
