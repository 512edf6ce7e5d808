"""Task augmentation: the same problem in other units.

A reparametrised task stores ``p / s`` and computes its loss at ``s * (p / s)``: nothing about the
problem changes but the scale on which an optimizer sees its parameters (and, inversely, its
gradients). An optimizer that was meta-trained on many scales must read the right step size off what
it observes instead of remembering it, which is the cheapest known lever for generalisation from few
problems (Metz et al. 2022, "VeLO"; Moudgil et al. 2025, "Celo").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lo_framework.optimizees.task import Batch, Buffers, Params, Task

_PREFIX = "scale of "


class Reparametrised(Task):
    """``task`` with a log-uniform scale in [1/span, span] per tensor, drawn anew at every init; one
    init in two keeps scale 1.

    The scales travel in the buffers, one 0-d tensor a parameter tensor, so the task stays pure and
    vmappable.
    """

    def __init__(self, task: Task, span: float) -> None:
        super().__init__(name=task.name, batch_size=task.batch_size)
        self.task = task
        self.span = span
        self.device = task.device
        self.vmappable = task.vmappable

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        params, buffers = self.task.init(generator)
        draw = 2 * torch.rand(len(params), generator=generator) - 1
        plain = torch.rand((), generator=generator) < 0.5
        log_scale = torch.where(plain, 0.0, draw * math.log(self.span))
        scales = dict(zip(params, log_scale.exp().to(self.device).unbind(), strict=True))
        scaled = {name: p / scales[name] for name, p in params.items()}
        return scaled, buffers | {_PREFIX + name: s for name, s in scales.items()}

    def _unscaled(self, params: Params, buffers: Buffers) -> tuple[Params, Buffers, Buffers]:
        scales = {name: x for name, x in buffers.items() if name.startswith(_PREFIX)}
        rest = {name: x for name, x in buffers.items() if name not in scales}
        return {name: p * scales[_PREFIX + name] for name, p in params.items()}, rest, scales

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        params, rest, scales = self._unscaled(params, buffers)
        loss, rest = self.task.loss(params, rest, batch, noise)
        return loss, rest | scales

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        params, rest, _ = self._unscaled(params, buffers)
        return self.task.metrics(params, rest, batch)

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        return self.task.batch(split, generator, lead)

    def full(self, split: str) -> Batch:
        return self.task.full(split)

    def normalize(self, loss: Tensor) -> Tensor:
        return self.task.normalize(loss)

    def to(self, device: torch.device | str) -> Reparametrised:
        return Reparametrised(self.task.to(device), self.span)
