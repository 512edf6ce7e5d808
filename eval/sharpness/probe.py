"""Has a learned optimizer absorbed a regularizer, or is its run merely slower? What its updates
say.

A regularizer replaces the gradient g by ``g + correction`` (`regularizers.base`). An optimizer that
absorbed it sees g alone and acts as if it saw both: beyond what its update has along -g, the rest
should point along the rest of -correction. So for every step, on its own batch and noise:

    cosine_correction   cos(update, -correction)
    cosine_gradient     cos(update, -g)
    cosine_orthogonal   cos of the components orthogonal to g: the direct test, blind to step length
    correction_ratio    ||correction|| / ||g||
    step_size           -<update, g> / ||g||^2, the effective step
    path_length         sum of ||update|| up to and with this step

A cosine with a vector that is zero up to rounding is undefined: nan at that step, and left out by
`matched.at_equal`. For example the update of plain SGD has no component orthogonal to g.

Slower training passes the same places later, so runs are compared at equal training loss and at
equal path length.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.absorb.absorption import FunctionalLandscape, make_regularizer
from lo_framework.episode import Carry, Draw
from lo_framework.errors import describe
from lo_framework.eval.sharpness.metrics import number, numbers
from lo_framework.eval.sharpness.settings import NO_PROBE, Settings
from lo_framework.eval.sharpness.surface import sample
from lo_framework.eval.statistics import Array
from lo_framework.layout import Layout
from lo_framework.native.active import usual_kernels
from lo_framework.optimizees.task import Batch, Buffers, Task
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
        train_loss: evaluation-mode loss on ``train_data``, at the parameters before the step; nan
            if none are given.
        loss: of the step's batch, there.
    """

    train_loss: Array
    path_length: Array
    cosine_correction: Array
    cosine_gradient: Array
    cosine_orthogonal: Array
    correction_ratio: Array
    step_size: Array
    loss: Array


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
        row, self._state = torch.func.vmap(self._one)(*step, self._state)
        self.travel(row.pop("length"))
        assert self._path is not None
        row["path_length"] = self._path
        row["train_loss"] = torch.full_like(row["loss"], torch.nan)
        if self.full is not None:
            # Run by run: a whole split's activations fill the memory once, not K times.
            for k, flat in enumerate(step.params):
                buffers = {name: x[k] for name, x in step.buffers.items()}
                row["train_loss"][k] = whole_loss(self.task, self.layout, flat, buffers, self.full)
        self._rows.append(row)

    def found(self) -> Correlation:
        """Return the curves so far.

        Raises:
            ValueError: no step was looked at.
        """
        if not self._rows:
            raise ValueError("the probe has seen no step")
        curves = {
            name: torch.stack([row[name].double() for row in self._rows], dim=1).cpu().numpy()
            for name in self._rows[0]
        }
        return Correlation(**curves)

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
        row = {
            "cosine_correction": _cosine(update, -c, floor, small),
            "cosine_gradient": _cosine(update, -g, floor, small),
            "cosine_orthogonal": _cosine(_without(update, g), -_without(c, g), floor, small),
            "correction_ratio": _ratio(c.norm(), g.norm()),
            "step_size": _ratio(-(update @ g), g @ g),
            "length": update.norm(),
            "loss": loss,
        }
        return row, correction.state


def _without(a: Tensor, g: Tensor) -> Tensor:
    return vectors.without({_FLAT: a}, {_FLAT: g})[_FLAT]


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a / b``, nan for ``b = 0``."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), torch.nan)


def _cosine(a: Tensor, b: Tensor, floor_a: Tensor, floor_b: Tensor) -> Tensor:
    """Return the cosine, nan where one of them is not longer than its rounding errors."""
    long_a, long_b = a.norm(), b.norm()
    defined = (long_a > floor_a) & (long_b > floor_b)
    return torch.where(defined, (a @ b) / torch.where(defined, long_a * long_b, 1.0), torch.nan)


class Watcher:
    """A callback for `lo_framework.inner.rollout.rollout` of one run."""

    def __init__(self, task: Task, layout: Layout, settings: Settings) -> None:
        self.task, self.layout, self.settings = task, layout, settings
        # On big data the whole split at a hundred steps takes many times as long as the training.
        self.data = sample(task.full("train"), settings.level.watched_rows, seed=0)
        self.watched = set(settings.watched)
        self.watch: dict[str, list[Any]] = {"steps": [], "loss": [], "path": []}
        self.path = 0.0
        self.before: Carry | None = None
        self.probed: list[int] = []
        self.probe: Probe | None = None
        self.failure = ""
        if settings.probe != NO_PROBE:
            self.probe = Probe(task, layout, make_regularizer(settings.probe), train_data=self.data)

    def __call__(self, t: int, carry: Carry, draw: Draw | None) -> None:
        if self.before is not None:
            assert draw is not None
            self.path += float((carry.params[0] - self.before.params[0]).double().norm())
            self._look(t - 1, self.before, carry, draw)
        if t in self.watched:
            for name, x in (("steps", t), ("loss", self._loss(carry)), ("path", self.path)):
                self.watch[name].append(x)
        self.before = carry

    def found(self) -> dict[str, Any]:
        """Return JSON values: lists of one length, at the watched steps."""
        return {"watch": self.watch, "probe": self._curves(), "probe_failure": self.failure}

    def _look(self, t: int, before: Carry, after: Carry, draw: Draw) -> None:
        """Show the probe the update of step ``t``. What it cannot do (a model without a batching
        rule) ends it only.
        """
        if self.probe is None or self.failure:
            return
        try:
            if t in self.settings.probed:
                self.probe.look(
                    Step(before.params, after.params, before.buffers, draw.train, draw.noise)
                )
                self.probed.append(t)
            else:
                self.probe.travel((after.params - before.params).norm(dim=-1))
        except Exception as error:
            self.failure = describe(error)

    def _curves(self) -> dict[str, Any] | None:
        if not self.probed:
            return None
        assert self.probe is not None
        curves = asdict(self.probe.found())
        del curves["loss"]  # of single batches
        short = {"train_loss": "loss", "path_length": "path"}
        named = {short.get(name, name): numbers(x[0].tolist()) for name, x in curves.items()}
        return {"steps": self.probed, **named}

    def _loss(self, carry: Carry) -> float | None:
        """Return the full-split loss, None once diverged."""
        if not bool(carry.alive[0]):
            return None
        buffers = {name: x[0] for name, x in carry.buffers.items()}
        return number(whole_loss(self.task, self.layout, carry.params[0], buffers, self.data))


@torch.no_grad()
def whole_loss(task: Task, layout: Layout, flat: Tensor, buffers: Buffers, data: Batch) -> Tensor:
    """Return the evaluation-mode loss (0-d) on all of ``data``."""
    with usual_kernels():
        return task.metrics(layout.unflatten(flat), buffers, data)["loss"]


def check_probe(spec: str) -> str:
    """Raises UserError: an unknown regularizer or option."""
    if spec != NO_PROBE:
        make_regularizer(spec)
    return spec
