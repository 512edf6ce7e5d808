"""Has a learned optimizer absorbed a regularizer, or is its run merely slower? What its updates
say.

A regularizer replaces the gradient g by ``g + correction`` (`regularizers.base`). An optimizer that
absorbed it sees g alone and acts as if it saw both: beyond what its update has along -g, the rest
should point along the rest of -correction. So for every step, on its own batch and noise:

    cosine_correction   cos(update, -correction)
    cosine_gradient     cos(update, -g)
    cosine_orthogonal   cos of the two components orthogonal to g: the direct test, blind to mere step length
    correction_ratio    ||correction|| / ||g||
    step_size           -<update, g> / ||g||^2, the effective step
    path_length         sum of ||update|| up to and with this step

A cosine with a vector that is zero up to rounding is undefined: nan at that step, and left out by
`running_mean` and `at_equal`. For example the update of plain SGD has no component orthogonal to g.

Slower training passes the same places later, so runs are compared at equal training loss and at
equal path length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lo_framework.eval.statistics import Array
from lo_framework.landscape import FunctionalLandscape
from lo_framework.layout import Layout
from lo_framework.protocols import Batch, Buffers, Task
from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import Params, Point, Regularizer, State

_FLAT = "params"
ROUNDING = 8.0  # a component shorter than this many rounding errors of its terms is none


class Step(NamedTuple):
    """One step of K runs: parameters before and after ``[K, N]``, buffers ``[K, ...]`` and batch
    ``[K, B, ...]`` that the step saw, and the ``[K]`` integer seeds of its dropout.
    """

    params: Tensor
    after: Tensor
    buffers: Buffers
    batch: Batch
    noise: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Correlation:
    """Curves ``[K, T]`` over the steps that were looked at; see the module for all but the losses.

    Attributes:
        loss: of the step's batch, at the parameters before the step.
        train_loss: evaluation-mode loss there on ``train_data``; nan if none are given.
    """

    cosine_correction: Array
    cosine_gradient: Array
    cosine_orthogonal: Array
    correction_ratio: Array
    step_size: Array
    path_length: Array
    loss: Array
    train_loss: Array


class Probe:
    """Looks at steps as a run goes by; `found` gives the curves. Several runs share one
    regularizer.
    """

    def __init__(
        self,
        task: Task,
        layout: Layout,
        regularizer: Regularizer,
        *,
        train_data: Batch | None = None,
    ) -> None:
        self.task, self.layout, self.regularizer = task, layout, regularizer
        self.full = train_data
        self._state: State | None = None
        self._path: Tensor | None = None
        self._rows: list[dict[str, Tensor]] = []

    def travel(self, distance: Tensor) -> None:
        """Add ``distance [K]``: the path of steps that are not looked at."""
        self._path = distance if self._path is None else self._path + distance

    def look(self, step: Step) -> None:
        """Record one step, to be called in order: a regularizer may carry state from one to the
        next.
        """
        if self._state is None:
            self._state = torch.func.vmap(lambda flat: self.regularizer.init_state({_FLAT: flat}))(
                step.params
            )
        one = torch.func.vmap(self._one)
        row, self._state = one(
            step.params, step.after, step.buffers, step.batch, step.noise, self._state
        )
        self.travel(row.pop("length"))
        assert self._path is not None
        row["path_length"] = self._path
        if self.full is None:
            row["train_loss"] = torch.full_like(row["loss"], torch.nan)
        else:
            row["train_loss"] = self._train_losses(step.params, step.buffers)
        self._rows.append(row)

    def found(self) -> Correlation:
        """The curves so far.

        Raises:
            ValueError: no step was looked at.
        """
        if not self._rows:
            raise ValueError("the probe has seen no step")
        names = list(self._rows[0])
        curves = {
            n: torch.stack([row[n].double() for row in self._rows], dim=1).cpu().numpy()
            for n in names
        }
        return Correlation(**curves)

    def _train_losses(self, params: Tensor, buffers: Buffers) -> Tensor:
        """``[K]``, run by run: a whole split's activations fill the memory once, not K times."""
        full = self.full
        assert full is not None
        runs = [(flat, {n: b[k] for n, b in buffers.items()}) for k, flat in enumerate(params)]
        with torch.no_grad():
            return torch.stack(
                [self.task.metrics(self.layout.unflatten(p), b, full)["loss"] for p, b in runs]
            )

    def _one(
        self,
        flat: Tensor,
        after: Tensor,
        buffers: Buffers,
        batch: Batch,
        noise: Tensor,
        state: State,
    ) -> tuple[dict[str, Tensor], State]:
        """One step of one run."""

        def loss_fn(params: Params, rows: Batch, seed: Tensor) -> Tensor:
            return self.task.loss(self.layout.unflatten(params[_FLAT]), buffers, rows, seed)[0]

        landscape = FunctionalLandscape(loss_fn, batch, noise)
        params = {_FLAT: flat}
        loss, grad = landscape.gradient(params)
        correction = self.regularizer.correction(landscape, Point(params, loss, grad), state)
        update, g, c = after - flat, grad[_FLAT], correction.field[_FLAT]
        # A difference of rounded parameters is wrong by some eps ||params||, one of gradients by
        # some eps ||g||.
        eps = ROUNDING * torch.finfo(flat.dtype).eps
        floor = eps * torch.maximum(flat.norm(), after.norm())
        small = eps * g.norm()
        square = g @ g
        row = {
            "cosine_correction": _cosine(update, -c, floor, small),
            "cosine_gradient": _cosine(update, -g, floor, small),
            "cosine_orthogonal": _cosine(_without(update, g), -_without(c, g), floor, small),
            "correction_ratio": _ratio(c.norm(), g.norm()),
            "step_size": _ratio(-(update @ g), square),
            "length": update.norm(),
            "loss": loss,
        }
        return row, correction.state


def correction_cosines(
    task: Task,
    layout: Layout,
    regularizer: Regularizer,
    steps: Iterable[Step],
    *,
    train_data: Batch | None = None,
) -> Correlation:
    """Of a whole run at once; see `Probe`."""
    probe = Probe(task, layout, regularizer, train_data=train_data)
    for step in steps:
        probe.look(step)
    return probe.found()


def running_mean(curves: ArrayLike, window: int) -> Array:
    """The mean over the last ``window`` points of ``curves [..., T]``; undefined ones (nan) do not
    count.
    """
    y = np.asarray(curves, dtype=np.float64)
    defined = ~np.isnan(y)

    def summed(x: Array) -> Array:
        total = np.concatenate([np.zeros((*x.shape[:-1], 1)), np.cumsum(x, axis=-1)], axis=-1)
        ends = np.arange(1, x.shape[-1] + 1)
        return total[..., ends] - total[..., np.maximum(ends - window, 0)]

    count = np.round(summed(defined.astype(np.float64)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, summed(np.where(defined, y, 0.0)) / count, np.nan)


def at_equal(xs: ArrayLike, curves: ArrayLike, levels: ArrayLike, *, falling: bool) -> Array:
    """``curves [K, T]`` where ``xs [K, T]`` first reach each of ``levels [L]``: ``[K, L]``.

    Between two steps linearly; nan where a run never gets there (censored). ``falling``: xs is a
    loss, smoothed (see `running_mean`), and reaching is being at most the level; else a path
    length. Points at which xs or the curve is not finite are left out.
    """
    x, y = (
        np.atleast_2d(np.asarray(xs, dtype=np.float64)),
        np.atleast_2d(np.asarray(curves, dtype=np.float64)),
    )
    wanted = np.atleast_1d(np.asarray(levels, dtype=np.float64))
    if x.shape != y.shape:
        raise ValueError(f"xs and curves need one shape, got {list(x.shape)} and {list(y.shape)}")
    found = np.full((len(x), wanted.size), np.nan)
    sign = -1.0 if falling else 1.0
    for k in range(len(x)):
        keep = np.isfinite(x[k]) & np.isfinite(y[k])
        a, b = sign * x[k][keep], y[k][keep]
        for j, level in enumerate(sign * wanted):
            hits = np.flatnonzero(a >= level)
            if hits.size == 0:
                continue
            i = int(hits[0])
            found[k, j] = b[i] if i == 0 else np.interp(level, a[i - 1 : i + 1], b[i - 1 : i + 1])
    return found


def _without(a: Tensor, g: Tensor) -> Tensor:
    return vectors.without({_FLAT: a}, {_FLAT: g})[_FLAT]


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, nan for ``b = 0``."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), torch.nan)


def _cosine(a: Tensor, b: Tensor, floor_a: Tensor, floor_b: Tensor) -> Tensor:
    """nan where one of them is not longer than its rounding errors."""
    long_a, long_b = a.norm(), b.norm()
    defined = (long_a > floor_a) & (long_b > floor_b)
    return torch.where(defined, (a @ b) / torch.where(defined, long_a * long_b, 1.0), torch.nan)
