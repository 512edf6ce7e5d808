"""``quadratic`` and ``rosenbrock``: functions with known minima (0), for tests and for a first look
at an optimizer.

Neither has data. A batch is one vector of gradient noise, eps [1, dim] with standard deviation
`std`: the loss gains ``<eps, x>``, so gradients are the true ones plus eps. `full` has eps = 0, the
expectation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from lo_framework.optimizees.registry import register_task
from lo_framework.optimizees.task import SPLITS, Batch, Buffers, DataTask, Params
from lo_framework.schema import Checked, NotNegative, Range

LARGEST = 1 << 24  # dimensions


class AnalyticTask(DataTask):
    """A function of one parameter "x" [dim]. `scale`: a typical loss at the start."""

    def __init__(self, *, name: str, dim: int, std: float, scale: float) -> None:
        data: dict[str, Batch] = dict.fromkeys(SPLITS, (torch.zeros(1, dim),))
        super().__init__(name=name, batch_size=1, data=data)
        self.dim, self.std, self.scale = dim, std, scale

    def value(self, x: Tensor) -> Tensor:
        """The noise-free function at `x` [dim], 0-d."""
        raise NotImplementedError

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        return self.value(params["x"]) + (batch[0].mean(0) * params["x"]).sum(), buffers

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        (expected,) = self.full(split)
        shape = (*lead, self.batch_size, self.dim)
        if not self.std:
            return (expected.new_zeros(shape),)
        return ((torch.randn(shape, generator=generator) * self.std).to(self.device),)

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.value(params["x"])}


@dataclass(frozen=True, kw_only=True)
class QuadraticConfig(Checked):
    """Options of ``quadratic``: dimension, condition number (largest over smallest curvature),
    gradient noise.
    """

    dim: Annotated[int, Range(low=1, high=LARGEST)] = 10
    cond: Annotated[float, Range(low=1, high=1e30)] = 100.0
    std: NotNegative = 0.0


@register_task("quadratic", config=QuadraticConfig, uses_dataset=False)
class Quadratic(AnalyticTask):
    """``1/2 sum_i c_i x_i^2``, curvatures c_i log-spaced from 1 down to 1 / cond; starts at a
    standard normal x.
    """

    def __init__(self, config: QuadraticConfig) -> None:
        self.curvature = torch.logspace(0, -1, config.dim, base=config.cond)
        scale = float(self.curvature.sum()) / 2  # the expected loss at the start
        super().__init__(name="quadratic", dim=config.dim, std=config.std, scale=scale)

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        return {"x": torch.randn(self.dim, generator=generator).to(self.device)}, {}

    def value(self, x: Tensor) -> Tensor:
        return (self.curvature.to(x) * x * x).sum() / 2


@dataclass(frozen=True, kw_only=True)
class RosenbrockConfig(Checked):
    """Options of ``rosenbrock``: dimension and gradient noise."""

    dim: Annotated[int, Range(low=2, high=LARGEST)] = 2
    std: NotNegative = 0.0


@register_task("rosenbrock", config=RosenbrockConfig, uses_dataset=False)
class Rosenbrock(AnalyticTask):
    """``sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2``, minimum 0 at all ones (Rosenbrock 1960).

    Starts near (-1.2, 1, -1.2, 1, ...), the customary point, plus a normal of standard deviation
    0.1.
    """

    def __init__(self, config: RosenbrockConfig) -> None:
        self.start = torch.tensor([-1.2, 1.0]).repeat(config.dim)[: config.dim]
        super().__init__(
            name="rosenbrock", dim=config.dim, std=config.std, scale=float(self.value(self.start))
        )

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        x = self.start + 0.1 * torch.randn(self.dim, generator=generator)
        return {"x": x.to(self.device)}, {}

    def value(self, x: Tensor) -> Tensor:
        head, tail = x[:-1], x[1:]
        return (100 * (tail - head * head) ** 2 + (1 - head) ** 2).sum()
