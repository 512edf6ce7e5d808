"""The contracts between rooms, as structural types. ``docs/design.md``, "Contracts", says why they
are cut this way.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lo_framework.learned.base import LearnedOptimizer, Theta

Params = dict[str, Tensor]
Buffers = dict[str, Tensor]
Batch = tuple[Tensor, ...]


class Task(Protocol):
    """An optimizee: pure and vmappable; no module state, no hidden randomness."""

    name: str
    batch_size: int
    device: torch.device

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]: ...
    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]: ...
    def batch(
        self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()
    ) -> Batch: ...
    def full(self, split: str) -> Batch: ...
    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]: ...
    def normalize(self, loss: Tensor) -> Tensor: ...


class MetaGradient(NamedTuple):
    """A shard's estimate: ``grad`` is the mean over its tasks; ``meta_loss`` its mean objective.

    ``plain`` is the same without the absorbed regularizer, where that decomposes meta-gradients
    (GSAM).
    """

    grad: Theta
    metrics: dict[str, float]
    plain: Theta | None = None


class Estimator(Protocol):
    """Turns unrolls of one shard into a meta-gradient. All state is tensors, so that a run can be
    killed and resumed.
    """

    def init_state(self, theta: Theta, generator: torch.Generator) -> Any: ...
    def estimate(self, theta: Theta, state: Any) -> tuple[MetaGradient, Any]: ...


__all__ = [
    "Batch",
    "Buffers",
    "Estimator",
    "LearnedOptimizer",
    "MetaGradient",
    "Params",
    "Task",
    "Theta",
]
