"""The contract of an estimator of meta-gradients.

A new one is one file: a frozen config dataclass and a class with `Estimator`'s two methods under
``@ESTIMATORS.register("name", config=...)``. It is called with (config, `Unroller` of its shard).
One that keeps a graph of the unroll registers with ``unrolls=True``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.truncation import Unroller
from lo_framework.learned.base import Theta
from lo_framework.registry import Registry


class MetaGradient(NamedTuple):
    """A shard's estimate: ``grad`` is the mean over its tasks; ``metrics["meta_loss"]`` its mean
    objective.

    ``plain`` is the same without the absorbed regularizer, where that decomposes meta-gradients
    (GSAM).
    """

    grad: Theta
    metrics: dict[str, float]
    plain: Theta | None = None


class Estimator(Protocol):
    """Turns unrolls of one shard into a meta-gradient. All that it knows of a run is in its state,
    so that a run can be killed and resumed; what the clocks have no place for is in ``extra``.
    ``unroller`` is the one that it was called with.
    """

    unroller: Unroller

    def init_state(self, theta: Theta, generator: torch.Generator) -> UnrollState: ...
    def estimate(self, theta: Theta, state: UnrollState) -> tuple[MetaGradient, UnrollState]: ...


ESTIMATORS: Registry[Estimator] = Registry("estimator")
