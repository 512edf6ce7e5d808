"""The evaluation-mode loss on a fixed sample of the training data, as a function of the flat
parameters.

    surface = Surface(task, layout, params, buffers, task.full("train"), rows=1024)
    loss, grad = surface.gradient(surface.params)
    losses = surface.losses(points)          # [K, N] -> [K]

Every sharpness measure sees a network through this class only. The sample does not change between
points (a maximum over noisy losses is biased upwards) and depends on nothing but the data and the
seed, so that optimizers are compared on the same function. Evaluation mode: running statistics of
normalisation layers are constants, dropout is off.

Points come in batches ``[K, N]``. The derivatives are ``torch.autograd.grad`` of the summed losses
(no loss depends on another's point): the same numbers as ``torch.func.grad`` without its dispatch,
1.5 ms instead of 2.4 ms for a gradient of an MLP 64-32-10 on 1,197 rows. Six points under one
``vmap`` cost 7 ms instead of 9 ms there, six Hessian products 12 ms instead of 29 ms; convolutions
on a CPU gain nothing (179 ms instead of 108 ms) and go one by one, those of the built-in ``cnn``
through its kernel where it can be compiled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.eval.sharpness.replayed import replayed
from lo_framework.layout import Layout
from lo_framework.optimizees.task import Batch, Buffers, Task
from lo_framework.spec import UserError

# Input numbers (of all points) in one pass: enough to hide dispatch, few enough for the activations
# that a Hessian product keeps (16,384 rows of 8x8 digits, 341 of 32x32x3 images).
PASS_NUMBERS = 2**20


@dataclass
class Evaluations:
    """The cost so far, in passes over the whole sample: plain losses, gradients (a loss with them),
    Hessian products.
    """

    losses: float = 0.0
    gradients: float = 0.0
    hvps: float = 0.0


class Surface:
    """See the module.

    Attributes:
        params: the point in question, ``[N]``, a constant of type ``dtype``.
        data: the sample, a batch as `Task.metrics` takes it.
        rows: its number of rows.
        loss_here, gradient_here: loss and gradient ``[N]`` at ``params``.
        used: the `Evaluations` so far, shared with the surfaces of `batches`.
    """

    def __init__(
        self,
        task: Task,
        layout: Layout,
        params: Tensor,
        buffers: Buffers,
        data: Batch,
        *,
        rows: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            params: ``[N]``, as `layout` lays it out.
            buffers: those of one run (no leading dimension).
            data: rows to sample from, usually ``task.full("train")``.
            rows: size of the sample, drawn without replacement; None or more than there are: all
                rows, in order.
            seed: of the sample.
            dtype: float32 or float64, to which parameters, buffers and data are cast (integers
                stay).

        Raises:
            UserError: the loss depends on no parameter, or the task cannot compute in `dtype`.
            FloatingPointError: the loss at `params` is not finite.
        """
        self.task, self.layout, self.dtype = task, layout, dtype
        self.params = params.detach().to(dtype)
        self.buffers = {name: _cast(x.detach(), dtype) for name, x in buffers.items()}
        self.data = tuple(_cast(x, dtype) for x in sample(data, rows, seed))
        self.used = Evaluations()
        self._share = 1.0
        self._problem = replayed(task, layout)
        try:
            self.loss_here, self.gradient_here = self.gradient(self.params)
        except RuntimeError as error:
            if dtype == torch.float32:
                raise
            raise UserError(f"{task.name}: cannot compute in {dtype}: {error}") from error
        if not (torch.isfinite(self.loss_here) and torch.isfinite(self.gradient_here).all()):
            raise FloatingPointError(
                f"{task.name}: the loss at the point to be measured is not finite"
            )

    @property
    def rows(self) -> int:
        return len(self.data[0])

    @property
    def size(self) -> int:
        """N."""
        return self.params.numel()

    def loss(self, flat: Tensor) -> Tensor:
        """Map ``[N]`` to the loss, 0-d."""
        return self.losses(flat[None])[0]

    def gradient(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[N]`` to the loss, 0-d, and its gradient ``[N]``."""
        losses, grads = self.gradients(flat[None])
        return losses[0], grads[0]

    def hvp(self, flat: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient and the Hessian times ``v``, both ``[N]``."""
        grads, products = self.hvps(flat[None], v[None])
        return grads[0], products[0]

    def curvature_along(self, flat: Tensor, v: Tensor) -> Tensor:
        """Return ``v^T H v / v^T v`` at ``flat``, 0-d; along the gradient it is the
        gradient-weighted curvature.
        """
        return (v @ self.hvp(flat, v)[1]) / (v @ v)

    def losses(self, flats: Tensor) -> Tensor:
        """Map ``[K, N]`` to losses ``[K]``."""
        self.used.losses += self._share * len(flats)
        losses = torch.zeros(len(flats)).to(flats)
        for part, weight, batch in self._parts(flats):
            losses[part] += weight * self._problem.losses(flats[part], self.buffers, batch)
        return losses

    def gradients(self, flats: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``[K, N]`` to losses ``[K]`` and gradients ``[K, N]``."""
        self.used.gradients += self._share * len(flats)
        losses, grads = torch.zeros(len(flats)).to(flats), torch.zeros_like(flats)
        for part, weight, batch in self._parts(flats):
            loss, grad = self._problem.slopes(flats[part].detach(), self.buffers, batch)
            losses[part] += weight * loss
            grads[part] += weight * grad
        return losses, grads

    def hvps(self, flats: Tensor, v: Tensor | Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return gradients and Hessians times ``v``, both ``[K, N]``, reverse over reverse.

        Args:
            v: ``[K, N]``, or a function, row by row, of the gradients ``[K, N]`` that gives it; a
                constant either way.
        """
        if callable(v) and self.rows > self._rows_at_once:
            v = v(self.gradients(flats)[1])  # the direction belongs to the gradient over all passes
        self.used.hvps += self._share * len(flats)
        grads, products = torch.zeros_like(flats), torch.zeros_like(flats)
        for part, weight, batch in self._parts(flats):
            at = flats[part].detach().requires_grad_()
            _, grad = self._problem.slopes(at, self.buffers, batch)
            grads[part] += weight * grad.detach()
            if not grad.requires_grad:  # a loss linear in the parameters has no curvature
                continue
            direction = v(grad.detach()) if callable(v) else v[part]
            (product,) = torch.autograd.grad((grad * direction).sum(), at, materialize_grads=True)
            products[part] += weight * product
        return grads, products

    def batches(self, m: int, seed: int = 0) -> Iterator[tuple[float, Surface]]:
        """Yield the sample, shuffled and cut in minibatches of ``m`` rows: each a surface, with its
        share of the rows.

        The last may be smaller.
        """
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed)).to(
            self.params.device
        )
        for index in order.split(m):
            part = copy.copy(self)
            part.data = tuple(x.index_select(0, index) for x in self.data)
            share = len(index) / self.rows
            part._share = self._share * share
            part.loss_here, part.gradient_here = part.gradient(part.params)
            yield share, part

    @property
    def _rows_at_once(self) -> int:
        return max(1, PASS_NUMBERS // max(1, self.data[0][0].numel()))

    @property
    def _points(self) -> int:
        """Points of one pass."""
        return max(1, self._rows_at_once // self.rows) if self._problem.together else 1

    def passes(self) -> Iterator[tuple[float, Batch]]:
        """Yield the sample in parts whose activations fit into memory, with their shares."""
        step = self._rows_at_once
        for start in range(0, self.rows, step):
            part = tuple(x[start : start + step] for x in self.data)
            yield len(part[0]) / self.rows, part

    def _parts(self, flats: Tensor) -> Iterator[tuple[Tensor, float, Batch]]:
        """Yield, pass by pass: which points, the share of the rows, and these rows."""
        for part in torch.arange(len(flats)).split(self._points):
            for weight, batch in self.passes():
                yield part, weight, batch


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def sample(data: Batch, rows: int | None, seed: int) -> Batch:
    """Return ``rows`` of ``data`` without replacement; all, in order, for None or too many."""
    count = len(data[0])
    if rows is not None and rows < 1:
        raise UserError(f"the sample needs at least one row, not {rows}")
    if rows is None or rows >= count:
        return data
    index = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:rows].to(
        data[0].device
    )
    return tuple(x.index_select(0, index) for x in data)
